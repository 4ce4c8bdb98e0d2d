"""An HNSW index searched in its files: does its graph lead to its own vectors?

Chroma's client answers that too, with all of the index in memory. A search visits some hundred
elements; this reads just those, so memory does not grow with the index.

Source: Malkov and Yashunin, arXiv:1603.09320, algorithms 2 and 5. The layout is hnswlib's, as
chromadb 1.0.20-1.5.9 writes it, measured: `data_level0.bin` holds elements (see `chroma.Hnsw`);
`link_lists.bin` holds for each element a uint32, the bytes of its layers above the lowest, and then
for each of them, lowest first, a uint32 with the number of links and room for `max_links` of them.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import dataclasses
import heapq
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nescord_ops import chroma
from nescord_ops.chroma_child import NEAREST, SAME
from nescord_ops.errors import VolumeError
from nescord_ops.results import Result

MOST_READ = 20_000  # elements that one search may read; a sound graph needs some hundred


@dataclasses.dataclass(frozen=True, slots=True)
class Graph(Result):
    """An index's open files: `upper` are the elements above the lowest layer, ascending.

    `places` are where their lists begin in `link_lists.bin`; `space` is cosine, ip or l2.
    """

    header: chroma.Hnsw
    space: str
    data: int
    lists: int
    upper: Sequence[int]
    places: Sequence[int]

    def sample(self, count: int) -> list[int]:
        """Return the numbers of some elements that are not deleted, at random, at most `count`."""
        some = random.sample(range(self.header.elements), min(self.header.elements, 8 * count))
        return [number for number in some if not self._read(number)["flags"] & 1][:count]

    def label(self, number: int) -> int:
        """Return an element's label. Raise VolumeError for one that Chroma does not give."""
        label = int(self._read(number)["label"])
        if label >> 63:
            raise VolumeError(f"element {number} has the label {label:,}")
        return label

    def leads_to(self, number: int) -> bool:
        """Whether a search for an element's vector finds it, or one that is the same.

        Raise VolumeError if a link leads out of the index, or the files end early.
        """
        wanted = self._read(number)["vector"].astype("f8")
        at = self._descend(wanted)
        first = self._distances([at], wanted)[0]
        waiting = [(first, at)]  # nearest first
        best = [(-first, at)]  # farthest first
        seen = {at}
        while waiting and len(seen) < MOST_READ:
            distance, at = heapq.heappop(waiting)
            if at == number or (distance < SAME and self.space != "ip"):
                return True
            if len(best) == NEAREST and distance > -best[0][0]:
                return False
            found = [link for link in self._links(at, 0) if link not in seen]
            seen.update(found)
            for distance, at in zip(self._distances(found, wanted), found, strict=True):
                if len(best) < NEAREST or distance < -best[0][0]:
                    heapq.heappush(waiting, (distance, at))
                    heapq.heappush(best, (-distance, at))
                    if len(best) > NEAREST:
                        heapq.heappop(best)
        return False

    def _descend(self, wanted: Any) -> int:
        """Walk from the entry point to the nearest element of each layer above the lowest."""
        at = self.header.entry
        nearest = self._distances([at], wanted)[0]
        for layer in range(self.header.top_layer, 0, -1):
            while True:
                links = self._links(at, layer)
                near = min(zip(self._distances(links, wanted), links, strict=True), default=None)
                if not near or not near[0] < nearest:
                    break
                nearest, at = near
        return at

    def _links(self, number: int, layer: int) -> list[int]:
        """Return the elements that an element leads to in a layer."""
        if layer:
            room = self.header.max_links * 4 + 4
            place = bisect.bisect_left(self.upper, number)
            if place == len(self.upper) or self.upper[place] != number:
                raise VolumeError(
                    f"a link leads to element {number}, which is not in layer {layer}"
                )
            raw = os.pread(self.lists, room, self.places[place] + (layer - 1) * room)
            count = int.from_bytes(raw[:2], "little")
            links = array.array("I", raw[4 : 4 + 4 * count])
        else:
            element = self._read(number)
            count = int(element["count"])
            links = element["links"][:count]
        if len(links) < count or any(link >= self.header.elements for link in links):
            raise VolumeError(f"a link of element {number} leads out of the index")
        return [int(link) for link in links]

    def _distances(self, numbers: list[int], wanted: Any) -> list[float]:
        """Return how far elements are from a vector, in the index's space."""
        import numpy

        if not numbers:
            return []
        vectors = numpy.array([self._read(number)["vector"] for number in numbers], "f8")
        with numpy.errstate(all="ignore"):
            squared = self.space == "l2"
            far = ((vectors - wanted) ** 2).sum(axis=1) if squared else 1 - vectors @ wanted
        return [float(each) for each in far]

    def _read(self, number: int) -> Any:
        import numpy

        size = self.header.element_bytes
        raw = os.pread(self.data, size, number * size)
        if len(raw) < size:
            raise VolumeError(f"data_level0.bin ends before element {number}")
        return numpy.frombuffer(raw, self.header.element())[0]


@contextlib.contextmanager
def opened(directory: Path, header: chroma.Hnsw, space: str) -> Iterator[Graph]:
    """Open the files of an index with elements. Raise VolumeError if they are not whole."""
    with contextlib.ExitStack() as stack:
        try:
            data = os.open(directory / "data_level0.bin", os.O_RDONLY)
            stack.callback(os.close, data)
            file = stack.enter_context((directory / "link_lists.bin").open("rb"))
            upper, places = array.array("I"), array.array("Q")
            _index(file, header, upper, places)
        except FileNotFoundError as error:
            raise VolumeError(f"{error.filename} is missing") from error
        yield Graph(header, space, data, file.fileno(), upper, places)


def _index(file: Any, header: chroma.Hnsw, upper: Any, places: Any) -> None:
    """Note which elements have lists in `link_lists.bin`, and where."""
    room, at = header.max_links * 4 + 4, 0
    for number in range(header.elements):
        raw = file.read(4)
        if len(raw) < 4:
            raise VolumeError(f"link_lists.bin ends before element {number}")
        (size,) = struct.unpack("<I", raw)
        at += 4
        if size:
            if size % room or size // room > header.top_layer:
                raise VolumeError(f"link_lists.bin is damaged at element {number}: {size} bytes")
            upper.append(number)
            places.append(at)
            at += size
            file.seek(size, os.SEEK_CUR)
