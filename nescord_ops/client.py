"""Chroma's own client, in child processes, on a copy: the proof that the store opens and searches.

No process but `chroma_child` imports chromadb. A client changes the files that it opens and loads a
whole index into memory (chromadb 1.5.9: 94 MB, and 150 MB more for 40,000 vectors of 768
dimensions), so it never sees a live store, and an index that would not fit is left closed, which
the check says. What a clean-up deletes is deleted from a copy as well, which is then swapped in.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from nescord_ops import chroma, chroma_child, database, doubt, memory, show, volume
from nescord_ops.checks import RESTORE_PROVEN, Check, Status, fail, ok, unknown
from nescord_ops.database import MACHINE_HINT
from nescord_ops.errors import VolumeError
from nescord_ops.stores import Stores

BASE_BYTES = 120_000_000  # a Python with chromadb imported
INDEX_LIMIT_BYTES = 140_000_000  # keeps the child below 300 MB
SAMPLE = 20
RECALL_FLOOR = 0.25  # HNSW is approximate, worst in tight clusters; a lost index finds nothing
TIMEOUT_SECONDS = 180.0
# What says that Chroma was not let finish, by the memory or the disk: no verdict on the copy.
NO_VERDICT = (
    *("did not answer within", "could be started", "killed by signal 9", "no answer"),
    *("disk is full", "disk I/O error", "No space left on device", "Input/output error"),
    *("Too many open files", "Cannot allocate memory", "MemoryError"),
)
NEWER = "a newer chromadb wrote the store"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the last request gave: `result`, or a one-line `problem` of any of them."""

    result: dict[str, Any]
    problem: str = ""


def ask(requests: list[dict[str, Any]], timeout_seconds: float = TIMEOUT_SECONDS) -> Answer:
    """Run requests one after the other, each in a new process, and return the last answer.

    A crash, a hang and nonsense are answers with a problem. No process is left.
    """
    deadline = time.monotonic() + timeout_seconds
    line = b""
    try:
        with chroma_child.start() as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(json.dumps(requests).encode() + b"\n")
            while received := connection.recv(1 << 16):
                line += received
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        answer = json.loads(line)
        return Answer(answer.get("result", {}), show.printable(answer.get("problem", ""))[:300])
    except TimeoutError:
        return Answer({}, f"Chroma did not answer within {timeout_seconds:.0f} s")
    except (ValueError, ConnectionError):
        return Answer({}, "Chroma's process gave no answer")
    except OSError as error:
        return Answer({}, f"no child process could be started: {error.strerror}")


def round_trip(
    stores: Stores, index_limit_bytes: float = INDEX_LIMIT_BYTES, *, sound: bool = False
) -> Iterator[Check]:
    """Create a document in the copy, find it again in a new process, delete it; try a sample.

    The document goes into the bot's collection, or, where that index is larger than the limit or
    than the memory that is left, into a collection of its own; the sample is then not tried.
    The sample is random, but that records without a vector come first. Where Chroma fails although
    the files are `sound`, its failure is doubted: see `_doubted`.
    """
    mine = stores.collection
    if not mine:
        return
    size = _index_bytes(stores)
    room = memory.available_bytes()
    small = size <= index_limit_bytes and (room is None or BASE_BYTES + size * 5 // 4 < room)
    if room is not None and room < BASE_BYTES:
        why = f"only {show.size(room)} of memory is left, Chroma needs {show.size(BASE_BYTES)}"
        yield unknown("chroma.roundtrip", why, expected=True)
        return
    ids = [
        str(id_)
        for (id_,) in stores.connection.execute(
            "SELECT embedding_id FROM vec.embeddings e WHERE segment_id = ? ORDER BY"
            " EXISTS (SELECT 1 FROM hnsw WHERE id = e.embedding_id)"
            " OR EXISTS (SELECT 1 FROM queued WHERE id = e.embedding_id), random() LIMIT ?",
            (mine.metadata_segment, SAMPLE),
        )
    ]
    request: dict[str, Any] = {
        "directory": str(stores.root),
        "collection": mine.name if small else chroma_child.PROBE_COLLECTION,
        "dimension": mine.dimension or stores.settings.dimension,
        "sample": ids if small else [],
    }
    why = f"{mine.name} has no record to search for"
    if not small:
        why = f"not searched through Chroma: its index takes {show.size(size)} of memory; every "
        why += "vector was read from the files instead"

    def tried() -> list[Check]:
        return [*_judge(_planted_and_found(request), len(request["sample"]), why)]

    seen = tried()
    if sound and Status.FAIL in {check.status for check in seen}:
        seen = [*_doubted(stores)] or tried()
    yield from seen


def _planted_and_found(request: dict[str, Any]) -> Answer:
    return ask([{**request, "action": "plant"}, {**request, "action": "find"}])


def _doubted(stores: Stores) -> Iterator[Check]:
    """Yield an unknown if it is not the copy that Chroma failed on; nothing if it may be.

    Chroma works on an empty store beside the copy: if it fails there too it is Chroma or the disk,
    and what it has made of that store tells which migrations it knows.
    """
    directory = Path(tempfile.mkdtemp(prefix="control-", dir=stores.root.parent))
    control = {"directory": str(directory), "collection": chroma_child.PROBE_COLLECTION}
    try:
        answer = _planted_and_found({**control, "dimension": 3, "sample": []})
        known: set[tuple[str, int]] = set()
        if not answer.problem:
            with database.open_copy(directory / chroma.DATABASE) as connection:
                known = chroma.migrations(connection)
    finally:
        volume.remove_tree(directory)
    if answer.problem or not answer.result.get("searched"):
        text = "Chroma could not be let finish: it fails on an empty store as well"
        hint = "see that chromadb is installed whole (pip check), that there is memory, and room in"
        problem = f": {answer.problem}" if answer.problem else ""
        yield unknown("chroma.roundtrip", text + problem, f"{hint} TMPDIR")
    elif newer := chroma.migrations(stores.connection, "vec") - known:
        versions = [chroma.MIGRATED_BY[each] for each in newer if each in chroma.MIGRATED_BY]
        here, least = metadata.version("chromadb"), max(versions, default="")
        text = f"{NEWER} ({least or 'which, is not known'} or newer) than the one that is installed"
        text += f" here ({here}), which cannot open it: that says nothing about the data"
        wanted = f"'chromadb>={least}'" if least else "the chromadb that the bot has"
        yield unknown("chroma.roundtrip", text, f"pip install {wanted}, and run it again")
    elif why := doubt.unreadable(stores.snapshot):
        yield unknown("chroma.roundtrip", f"the copy could not be read: {why}", MACHINE_HINT)


def _judge(answer: Answer, sample: int, no_sample: str) -> Iterator[Check]:
    seen = answer.result
    if any(words in answer.problem for words in NO_VERDICT):
        text = f"Chroma could not be let finish: {answer.problem}"
        hint = "see that there is memory, and room in TMPDIR, and run it again"
        yield unknown("chroma.roundtrip", text, hint)
        return
    if answer.problem:
        hint = f"stop the bot and {RESTORE_PROVEN}"
        yield fail("chroma.roundtrip", f"Chroma cannot work with a copy: {answer.problem}", hint)
        return
    if not (seen.get("found") and seen.get("searched") and seen.get("deleted")):
        names = ("found", "searched", "deleted")
        steps = ", ".join(f"{step}: {'yes' if seen.get(step) else 'no'}" for step in names)
        yield fail(
            "chroma.roundtrip",
            f"a test document was not found again and deleted ({steps})",
            f"stop the bot and {RESTORE_PROVEN}",
        )
        return
    yield ok(
        "chroma.roundtrip",
        "a test document was created in a copy, found again by a new process, and deleted",
    )
    if not sample:
        yield unknown("chroma.search", no_sample, expected=True)
        return
    fetched, found = int(seen.get("fetched", 0)), int(seen.get("nearest", 0))
    text = f"of a sample of {sample} records {fetched} were fetched with their vectors and {found} "
    text += "were found by them"
    details = {"value": found, "unit": "records", "limit": sample * RECALL_FLOOR}
    if fetched < sample or found < sample * RECALL_FLOOR:
        hint = f"stop the bot and {RESTORE_PROVEN}"
        yield fail("chroma.search", text, hint, **details)
    else:
        yield ok("chroma.search", f"{text} (search is approximate)", **details)


def _index_bytes(stores: Stores) -> int:
    """The memory that the bot's index takes when loaded: its file, or the vectors in the queue."""
    mine = stores.collection
    assert mine
    queued = stores.count("SELECT count(*) FROM queued") * (mine.dimension or 0) * 8
    data = stores.root / mine.vector_segment / "data_level0.bin"
    try:
        header = chroma.read_hnsw(data.parent)
    except VolumeError:
        return queued
    return header.elements * header.element_bytes + queued
