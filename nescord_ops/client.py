"""Chroma's own client, in child processes, on a copy: the proof that the store opens and searches.

No process but `chroma_child` imports chromadb. A client changes the files that it opens, so it
never sees a live store. It loads a whole index into memory, also to count or to fetch a document
(chromadb 1.5.9: 94 MB, and 150 MB more for 40,000 vectors of 768 dimensions). An index above a
fixed limit is therefore set aside and searched in its files, which the check says: memory does not
grow with the store, and a large one can be proven in a small container. What a clean-up deletes is
deleted from a copy as well, which is then swapped in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from nescord_ops import chroma, chroma_child, database, doubt, graph, memory, show, volume
from nescord_ops.checks import RESTORE_PROVEN, Check, Status, fail, ok, unknown
from nescord_ops.database import MACHINE_HINT
from nescord_ops.errors import VolumeError
from nescord_ops.results import Result
from nescord_ops.stores import Stores

BASE_BYTES = 120_000_000  # a Python with chromadb imported
INDEX_LIMIT_BYTES = 140_000_000  # keeps the child below 300 MB
SAMPLE = 20
STEPS = ("found", "searched", "counted", "deleted")  # of a round trip: all, or it failed
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


def round_trip(stores: Stores, *, sound: bool = False) -> Iterator[Check]:
    """Create a document in the copy, find it again in a new process, delete it; try a sample.

    Where the index takes more memory than INDEX_LIMIT_BYTES, or than is left, it is set aside: the
    sample is then searched for in its files, and Chroma gives documents and counts only. Where
    Chroma fails although the files are `sound`, its failure is doubted: see `_doubted`.
    """
    mine = stores.collection
    if not mine:
        return
    room = memory.available_bytes()
    if room is not None and room < BASE_BYTES:
        why = f"only {show.size(room)} of memory is left, Chroma needs {show.size(BASE_BYTES)}"
        yield unknown("chroma.roundtrip", why, expected=True)
        return
    size, limit = _index_bytes(stores), INDEX_LIMIT_BYTES
    if room is not None:
        limit = min(limit, (room - BASE_BYTES) * 4 // 5)
    waiting = stores.count(
        "SELECT count(*) FROM vec.embeddings_queue WHERE substr(topic, -36) = ? AND seq_id > ?",
        *(mine.id, mine.metadata_seq or 0),
    )
    records = stores.count(
        "SELECT count(*) FROM vec.embeddings WHERE segment_id = ?", mine.metadata_segment
    )
    if size > limit:
        tried = _search_files(stores)
        aside = f"the index's {show.size(size)} are more than the {show.size(limit)} of memory "
        tried = dataclasses.replace(tried, aside=f"{aside}that Chroma may load")
        _set_aside(stores)
    else:
        tried = Tried(_sample(stores))
    request: dict[str, Any] = {
        "directory": str(stores.root),
        "collection": mine.name,
        "dimension": mine.dimension or stores.settings.dimension,
        "records": None if waiting else records,
        "sample": tried.ids,
        "with_vectors": not tried.aside,
    }

    def judged() -> list[Check]:
        return [*_judge(_planted_and_found(request), tried, records)]

    seen = judged()
    if sound and Status.FAIL in {check.status for check in seen}:
        seen = [*_doubted(stores)] or judged()
    yield from seen


def _planted_and_found(request: dict[str, Any]) -> Answer:
    return ask([{**request, "action": "plant"}, {**request, "action": "find"}])


def _doubted(stores: Stores) -> Iterator[Check]:
    """Yield an unknown if it is not the copy that Chroma failed on; nothing if it may be.

    Chroma works on an empty store beside the copy: if it fails there too it is Chroma or the disk,
    and what it has made of that store tells which migrations it knows.
    """
    directory = Path(tempfile.mkdtemp(prefix="control-", dir=stores.root.parent))
    control: dict[str, Any] = {
        **{"directory": str(directory), "collection": "control", "new": True, "dimension": 3},
        **{"records": 0, "sample": [], "with_vectors": False},
    }
    try:
        answer = _planted_and_found(control)
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


@dataclasses.dataclass(frozen=True, slots=True)
class Tried(Result):
    """A sample of ids, and where Chroma is not to search for it: why not, and what the files gave.

    `found` counts those that were found in the index's files, `problem` says what is wrong there.
    """

    ids: list[str]
    aside: str = ""
    found: int = 0
    problem: str = ""


def _sample(stores: Stores) -> list[str]:
    """Return some ids at random, but those without a vector first."""
    assert stores.collection
    rows = stores.connection.execute(
        "SELECT embedding_id FROM vec.embeddings e WHERE segment_id = ? ORDER BY"
        " EXISTS (SELECT 1 FROM hnsw WHERE id = e.embedding_id)"
        " OR EXISTS (SELECT 1 FROM queued WHERE id = e.embedding_id), random() LIMIT ?",
        (stores.collection.metadata_segment, SAMPLE),
    )
    return [str(id_) for (id_,) in rows]


def _search_files(stores: Stores) -> Tried:
    """Search the index's files for a sample of the vectors in them, by the graph in them."""
    mine = stores.collection
    assert mine
    directory = stores.root / mine.vector_segment
    try:
        header = chroma.read_hnsw(directory) if directory.is_dir() else None
        if not (header and header.elements):
            return Tried([])
        with graph.opened(directory, header, mine.distance) as index:
            numbers = {index.label(number): number for number in index.sample(8 * SAMPLE)}
            rows = stores.connection.execute(
                f"SELECT id, label FROM hnsw WHERE label IN ({','.join('?' * len(numbers))})"
                " AND EXISTS (SELECT 1 FROM vec.embeddings WHERE segment_id = ?"
                " AND embedding_id = hnsw.id) LIMIT ?",  # without what was deleted since
                (*numbers, mine.metadata_segment, SAMPLE),
            ).fetchall()
            found = sum(index.leads_to(numbers[label]) for _, label in rows)
    except VolumeError as error:
        return Tried([], problem=str(error).replace(f"{stores.root}/", ""))
    return Tried([str(id_) for id_, _ in rows], found=found)


def _set_aside(stores: Stores) -> None:
    """Let Chroma find no vector in the copy but the newest: it would load them all.

    A collection without an index and with an empty queue is to Chroma a new one with records.
    """
    mine = stores.collection
    assert mine
    directory = stores.root / mine.vector_segment
    if directory.is_dir():
        directory.rename(stores.root / "index-set-aside")
    copy = sqlite3.connect(stores.root / chroma.DATABASE, isolation_level=None)
    with contextlib.closing(copy), database.confined(copy):
        copy.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (mine.vector_segment,))
        copy.execute(
            "DELETE FROM embeddings_queue WHERE substr(topic, -36) = ? AND seq_id <= ?"
            " AND seq_id < (SELECT max(seq_id) FROM embeddings_queue)",
            (mine.id, mine.metadata_seq or 0),
        )


def _judge(answer: Answer, tried: Tried, records: int) -> Iterator[Check]:
    seen, hint = answer.result, f"stop the bot and {RESTORE_PROVEN}"
    if any(words in answer.problem for words in NO_VERDICT):
        text = f"Chroma could not be let finish: {answer.problem}"
        hint = "see that there is memory, and room in TMPDIR, and run it again"
        yield unknown("chroma.roundtrip", text, hint)
        return
    if answer.problem:
        yield fail("chroma.roundtrip", f"Chroma cannot work with a copy: {answer.problem}", hint)
        return
    if not all(seen.get(step) for step in STEPS):
        steps = ", ".join(f"{step}: {'yes' if seen.get(step) else 'no'}" for step in STEPS)
        beside = show.count(records, "record")
        text = f"a test document beside {beside} was not found again and deleted"
        yield fail("chroma.roundtrip", f"{text} ({steps})", hint)
        return
    text = "a test document was created in a copy, found again by a new process, and deleted"
    if tried.aside:
        text += f", beside {show.count(records, 'record')} whose index was set aside"
    yield ok("chroma.roundtrip", text)
    yield _searched(seen, tried, records)


def _searched(seen: dict[str, Any], tried: Tried, records: int) -> Check:
    """Say how much of the sample was fetched and found, and by whom."""
    sample, hint = len(tried.ids), f"stop the bot and {RESTORE_PROVEN}"
    if tried.problem:
        return fail("chroma.search", f"the index cannot be searched: {tried.problem}", hint)
    if not sample:
        why = "there is no record to search for"
        if records:
            why = f"not searched: no vector is in the index's files, and {tried.aside}"
        return unknown("chroma.search", why, expected=True)
    fetched, found = int(seen.get("fetched", 0)), int(seen.get("nearest", tried.found))
    of = f"of a sample of {show.count(sample, 'record')}"
    text = f"{of} {fetched} fetched with their vectors, {found} found by them (approximate search)"
    if tried.aside:
        text = (
            f"{of} Chroma fetched {fetched}; {found} found by their vectors in the index's files,"
        )
        text += f" without Chroma, as {tried.aside}"
    details = {"value": found, "unit": "records", "limit": sample * RECALL_FLOOR}
    if fetched < sample or found < sample * RECALL_FLOOR:
        return fail("chroma.search", text, hint, **details)
    return ok("chroma.search", text, **details)


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
