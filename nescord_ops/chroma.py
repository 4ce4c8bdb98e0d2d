"""ChromaDB's files, read without ChromaDB: `chroma.sqlite3`, HNSW headers, id maps and vectors.

Works on a copy. A Chroma client loads a whole index into memory and changes the files that it
opens; this reader does neither, so it can look at every vector in constant memory.

Source of the formats: chromadb 1.0.20–1.5.9, measured. `chroma.sqlite3` keeps documents and
metadata (METADATA segment) and the write queue; each VECTOR segment has a directory named by the
segment's id with `header.bin`, `data_level0.bin`, `length.bin`, `link_lists.bin` and, after the
first persist, `index_metadata.pickle`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickletools
import sqlite3
import stat
import struct
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nescord_ops import database
from nescord_ops.errors import VolumeError
from nescord_ops.results import Result

DATABASE = "chroma.sqlite3"
# The first version whose stores have been migrated so far: 1.2.0 has neither, 1.4.1 not the second.
MIGRATED_BY = {("sysdb", 10): "1.3.0", ("metadb", 6): "1.5.0"}
PICKLE = "index_metadata.pickle"
_HEADER = struct.Struct("<i6QiI3QdQ")
_CHUNK_BYTES = 8_000_000
_KEY_BYTES = 1 << 16  # the longest id in an id map
_MOST_NUMBERS = 1 << 18  # of a vector: an element of an index is below 1 MB
_MOST_LAYERS = 64  # of an index; each has a sixteenth of the elements of the one below
# Opcodes that only make plain values; anything else could run code and is refused.
_FRAMING = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_SCALARS = frozenset(
    {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"}
    | {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "GET", "BINGET", "LONG_BINGET"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Collection(Result):
    """One collection: `dimension` is None until the first vector; `distance` is the space.

    `vector_seq` and `metadata_seq` are the newest sequence numbers that each segment has applied,
    None before the first (for vectors: before the first persist).
    """

    id: str
    name: str
    dimension: int | None
    distance: str
    vector_segment: str
    metadata_segment: str
    vector_seq: int | None
    metadata_seq: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Hnsw(Result):
    """`header.bin` of one index: counts of elements, and byte offsets within one element.

    A search starts at element `entry` of `top_layer`; layer 0 has every element, with room for
    `max_links0` links each, the layers above `max_links`.
    """

    max_elements: int
    elements: int
    element_bytes: int
    label_offset: int
    data_offset: int
    top_layer: int
    entry: int
    max_links: int

    @property
    def dimension(self) -> int:
        """Numbers in a vector (float32, 4 bytes each)."""
        return (self.label_offset - self.data_offset) // 4

    @property
    def max_links0(self) -> int:
        """Links that an element has room for in the lowest layer."""
        return (self.data_offset - 4) // 4

    def element(self) -> Any:
        """One element of `data_level0.bin` as a NumPy type; bit 0 of the flags is "deleted"."""
        import numpy

        links, vector = f"({self.max_links0},)<u4", f"({self.dimension},)<f4"
        return numpy.dtype(
            {
                "names": ["count", "flags", "links", "vector", "label"],
                "formats": ["<u2", "u1", links, vector, "<u8"],
                "offsets": [0, 2, 4, self.data_offset, self.label_offset],
                "itemsize": self.element_bytes,
            }
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Vectors(Result):
    """What `data_level0.bin` holds: elements read, and how many of them are not usable.

    `broken` counts vectors with a number that is not finite, or in cosine space a length that is
    not 1; `unknown_labels` elements that the id map does not name and that are not deleted;
    `misled` elements whose links lead out of the index.
    """

    read: int
    broken: int
    unknown_labels: int
    missing_labels: int
    misled: int


def collections(connection: sqlite3.Connection) -> tuple[Collection, ...]:
    """Given a connection to a copy of `chroma.sqlite3`, return its collections by name.

    Raise sqlite3.DatabaseError if the tables or values are not as Chroma's are.
    """
    rows = connection.execute("SELECT id, scope, collection FROM segments")
    segments = {(collection, scope): _segment(id_) for id_, scope, collection in rows}
    applied = connection.execute("SELECT segment_id, seq_id FROM max_seq_id")
    newest = {id_: sequence(seq) for id_, seq in applied}
    found = []
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    for row in cursor.execute("SELECT * FROM collections ORDER BY name"):
        try:
            identity, name, dimension = row["id"], row["name"], row["dimension"]
        except IndexError as error:
            raise sqlite3.DatabaseError("collections has not the columns of Chroma's") from error
        if not (
            isinstance(identity, str)
            and isinstance(name, str)
            and isinstance(dimension, int | None)
            and 0 < (dimension or 1) < _MOST_NUMBERS
        ):
            raise sqlite3.DatabaseError("a row of collections is not as Chroma writes it")
        vector = segments.get((identity, "VECTOR"), "")
        metadata = segments.get((identity, "METADATA"), "")
        found.append(
            Collection(
                id=identity,
                name=name,
                dimension=dimension,
                distance=_distance(connection, row),
                vector_segment=vector,
                metadata_segment=metadata,
                vector_seq=newest.get(vector),
                metadata_seq=newest.get(metadata),
            )
        )
    return tuple(found)


def migrations(connection: sqlite3.Connection, schema: str = "main") -> set[tuple[str, int]]:
    """Given a connection to a copy of `chroma.sqlite3`, return what chromadb has made of it.

    An older chromadb cannot open what a newer one has migrated.
    """
    rows = connection.execute(f"SELECT dir, version FROM {schema}.migrations LIMIT 1000")
    return {(str(directory), int(version)) for directory, version in rows}


def _segment(name: object) -> str:
    """Return a segment's id, which names a directory; raise sqlite3.DatabaseError for another."""
    if isinstance(name, str):
        with contextlib.suppress(ValueError):
            uuid.UUID(name)
            return name
    raise sqlite3.DatabaseError(f"a segment has the id {name!r:.80}, which is no UUID")


def _distance(connection: sqlite3.Connection, row: sqlite3.Row) -> str:
    """A collection's space: from schema (1.3+), configuration (1.0+), metadata, or default."""
    for column in ("schema_str", "config_json_str"):
        # a sqlite3.Row has no __contains__ for keys
        if column in row.keys() and (space := _find_space(row[column])):  # noqa: SIM118
            return space
    found = connection.execute(
        "SELECT str_value FROM collection_metadata WHERE collection_id = ? AND key = 'hnsw:space'",
        (row["id"],),
    ).fetchone()
    return str(found[0]) if found else "l2"


def _find_space(text: object) -> str:
    """The vector index's `space` in a JSON text; `#embedding` is the key of the vectors."""
    try:
        pending: list[Any] = [json.loads(str(text or "{}")[:_KEY_BYTES])]
    except (ValueError, RecursionError):
        return ""
    if isinstance(pending[0], dict) and isinstance(pending[0].get("keys"), dict):
        pending = [pending[0]["keys"].get("#embedding")]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(space := node.get("space"), str):
                return space
            pending.extend(node.values())
    return ""


def sequence(value: object) -> int:
    """Given a sequence number as Chroma stores it (integer, or 8 big-endian bytes), return it.

    Raise sqlite3.DatabaseError for anything else: a number that is none must not look like 0.
    """
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "big")
    if not isinstance(value, int) or value >> 63:
        raise sqlite3.DatabaseError(f"a sequence number is {value!r:.80}")
    return value


def read_hnsw(directory: Path) -> Hnsw:
    """Given a VECTOR segment's directory, return its header.

    Raise VolumeError if it is missing, or if its numbers contradict each other or the files.
    """
    path = directory / "header.bin"
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER.size + 1)
    except OSError as error:
        raise database.refusal(f"{path} cannot be read", error) from error
    if len(raw) != _HEADER.size:
        raise VolumeError(f"{path} has {len(raw)} bytes, not {_HEADER.size}")
    _, _, limit, count, size, label, data, top, entry, links, *_ = _HEADER.unpack(raw)
    whole = 4 < data < label <= size - 8 < 1 << 20  # a label takes 8 bytes
    if not whole or data % 4 or (label - data) % 4:
        raise VolumeError(f"{path} is damaged: element of {size} bytes, vector at {data}..{label}")
    if count > limit:
        raise VolumeError(f"{path} is damaged: {count:,} elements, room for {limit:,}")
    if count and (entry >= count or not 0 <= top <= _MOST_LAYERS or not 0 < links <= data // 4):
        raise VolumeError(f"{path} is damaged: entry {entry:,} of layer {top}, {links:,} links")
    try:
        held = (directory / "data_level0.bin").stat().st_size // size
    except OSError as error:
        raise database.refusal(f"{directory.name}/data_level0.bin", error) from error
    if held < count:
        raise VolumeError(f"{directory.name}/data_level0.bin holds {held:,} of {count:,} elements")
    return Hnsw(limit, count, size, label, data, top, entry, links)


def id_map(directory: Path) -> Iterator[tuple[str, int]]:
    """Given a VECTOR segment's directory, yield (id, label) of every persisted vector.

    Reads `index_metadata.pickle` as a stream of opcodes and runs none of them: memory does not
    grow with the index, and a pickle that could run code is refused. Raise VolumeError if the
    pickle is damaged, hostile or not Chroma's dictionary of dictionaries.
    """
    path = directory / PICKLE
    try:
        with path.open("rb") as file:
            yield from _pairs(_Bounded(file), path)
    except OSError as error:
        raise database.refusal(f"{path} cannot be read", error) from error
    except (ValueError, EOFError, UnicodeError, OverflowError, MemoryError) as error:
        raise VolumeError(f"{path} is damaged: {error}") from error


class _Bounded:
    """A file of which nobody reads more than a key at a time, whatever lengths stand in it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek = file.seek

    def read(self, count: int) -> bytes:
        if count > _KEY_BYTES:
            raise ValueError(f"a value of {count:,} bytes")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(_KEY_BYTES)


def _operations(file: _Bounded) -> Iterator[tuple[str, Any]]:
    """Yield (opcode, argument) of a pickle; the two that Chroma's items are made of read by hand.

    pickletools takes 2.5 times as long for them: 0.19 s for 40,000 ids, against 0.08 s.
    """
    while code := file.read(1):
        if code == b"X":
            size = int.from_bytes(_exactly(file, 4), "little")
            yield "BINUNICODE", _exactly(file, size).decode()
        elif code == b"J":
            yield "BININT", int.from_bytes(_exactly(file, 4), "little", signed=True)
        else:
            file.seek(-1, os.SEEK_CUR)
            operation, argument, _ = next(pickletools.genops(file))  # type: ignore[arg-type]
            if isinstance(argument, str):
                argument.encode()  # half a character, which pickle takes, is no id's
            yield operation.name, argument


def _exactly(file: _Bounded, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError(f"{count} bytes are due at its end, {len(content)} are there")
    return content


def _pairs(file: _Bounded, path: Path) -> Iterator[tuple[str, int]]:
    """The items of `id_to_label`: level 1 is the outer dictionary, level 2 an inner one."""
    level = 0
    name: object = None  # the key at level 1 whose value comes next
    inner: object = None  # the key at level 1 whose dictionary is being filled
    left: list[object] = []  # a key at level 2 that waits for its value
    for kind, argument in _operations(file):
        if kind in _FRAMING:
            continue
        if kind == "STOP" and level == 0:
            return
        if kind == "EMPTY_DICT" and level < 2:
            inner, name = name, None
        elif kind == "MARK" and level < 2:
            level += 1
        elif kind == "SETITEMS" and level > 0 and not left:
            level -= 1
        elif kind in _SCALARS and level == 1:
            name = argument if name is None else None
        elif kind in _SCALARS and level == 2 and not left:
            left = [argument]
        elif kind in _SCALARS and level == 2:
            key = left.pop()
            if inner == "id_to_label":
                if not (isinstance(key, str) and isinstance(argument, int)) or argument >> 63:
                    raise VolumeError(f"{path} is damaged: label {argument!r} of an id")
                yield key, argument
        elif kind in _SCALARS | {"EMPTY_DICT", "MARK", "SETITEMS", "STOP"}:
            raise VolumeError(f"{path} is not Chroma's id map ({kind} at level {level})")
        else:
            raise VolumeError(f"{path} holds more than plain values ({kind}): it was not loaded")
    raise VolumeError(f"{path} is damaged: it ends early")


def read_vectors(directory: Path, header: Hnsw, labels: Iterable[int], *, unit: bool) -> Vectors:
    """Read every element of `data_level0.bin` once and compare its labels with the id map's.

    `unit` expects vectors of length 1 (cosine space; hnswlib normalises them when they are
    added). Memory: one chunk of elements and nine bytes a label. Raise VolumeError if the file
    cannot be read.
    """
    import numpy

    element, room = header.element(), numpy.arange(header.max_links0)
    named = numpy.fromiter(labels, dtype="u8")
    named.sort()
    seen = numpy.zeros(len(named), dtype=bool)
    chunk = max(1, _CHUNK_BYTES // header.element_bytes)
    broken = strangers = misled = read = 0
    path = directory / "data_level0.bin"
    try:
        with path.open("rb") as file:
            while read < header.elements:
                part = numpy.fromfile(file, element, min(chunk, header.elements - read))
                if not len(part):
                    break
                read += len(part)
                lengths = numpy.linalg.norm(part["vector"].astype("<f4"), axis=1)
                good = numpy.isfinite(lengths)
                if unit:
                    good &= numpy.abs(lengths - 1) < 1e-3
                broken += int(len(part) - good.sum())
                alive = (part["flags"] & 1) == 0
                at = numpy.searchsorted(named, part["label"])
                known = at < len(named)
                known[known] = named[at[known]] == part["label"][known]
                seen[at[known]] = True
                strangers += int((alive & ~known).sum())
                astray = (part["links"] >= header.elements) & (room < part["count"][:, None])
                misled += int((astray.any(axis=1) | (part["count"] > len(room))).sum())
    except OSError as error:
        raise database.refusal(f"{path} cannot be read", error) from error
    return Vectors(read, broken, strangers, int((~seen).sum()), misled)


def segment_directories(root: Path) -> tuple[Path, ...]:
    """Given a Chroma directory, return those below it that are named by a UUID, links left out."""
    found = []
    for entry in sorted(root.iterdir()):
        try:
            uuid.UUID(entry.name)
        except ValueError:
            continue
        if stat.S_ISDIR(entry.lstat().st_mode):
            found.append(entry)
    return tuple(found)
