"""Chroma's own client, in child processes, on a copy: the proof that the store opens and searches.

This module is the child as well (`python -m nescord_ops.client`): it reads a JSON list of
requests on stdin and answers each with one line of JSON on stdout. No other process of ours
imports chromadb. A client changes the files that it opens and loads a whole index into memory
(chromadb 1.5.9: 94 MB, and 150 MB more for 40,000 vectors of 768 dimensions), so it never sees a
live store, and an index that would not fit is left closed, which the check says. What a clean-up
deletes is deleted from a copy as well, which is then swapped in.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nescord_ops import chroma, show
from nescord_ops.checks import RESTORE_PROVEN, Check, fail, ok, unknown
from nescord_ops.errors import VolumeError
from nescord_ops.stores import Stores

BASE_BYTES = 120_000_000  # a Python with chromadb imported
INDEX_LIMIT_BYTES = 140_000_000  # keeps the child below 300 MB
SAMPLE = 20
NEAREST = 100  # how many results a record is looked for in
RECALL_FLOOR = 0.25  # HNSW is approximate, worst in tight clusters; a lost index finds nothing
TIMEOUT_SECONDS = 180.0
BATCH = 500  # records fetched or deleted at once
# What says that Chroma was not let finish, by the memory or the disk: no verdict on the copy.
NO_VERDICT = (
    *("did not answer within", "could be started", "killed by signal 9", "exit code -9"),
    *("disk is full", "disk I/O error", "No space left on device", "Input/output error"),
    *("Too many open files", "Cannot allocate memory", "MemoryError"),
)
_PR_SET_PDEATHSIG = 1  # prctl(2)
PROBE_COLLECTION = "nescord_ops_probe"
PROBE_ID = "nescord_ops_probe_document"
PROBE_TEXT = "永続性の確認 · a document that must be found again"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the last request gave: `result`, or a one-line `problem` of any of them."""

    result: dict[str, Any]
    problem: str = ""


def ask(requests: list[dict[str, Any]], timeout_seconds: float = TIMEOUT_SECONDS) -> Answer:
    """Run requests one after the other, each in a new process, and return the last answer.

    A crash, a hang and nonsense are answers with a problem.
    """
    environment = {**os.environ, "ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1"}
    try:
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "nescord_ops.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # so that a hang ends with all of its processes
        )
    except OSError as error:
        return Answer({}, f"no child process could be started: {error.strerror}")
    try:
        output, errors = child.communicate(json.dumps(requests), timeout_seconds)
    except subprocess.TimeoutExpired:
        return Answer({}, f"Chroma did not answer within {timeout_seconds:.0f} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        return Answer({}, show.printable(last[0])[:300])
    try:
        result = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return Answer({}, "Chroma's process gave no answer")
    return Answer(result)


def round_trip(stores: Stores, index_limit_bytes: float = INDEX_LIMIT_BYTES) -> Iterator[Check]:
    """Create a document in the copy, find it again in a new process, delete it; try a sample.

    The document goes into the bot's collection, or, where that index is larger than the limit or
    than the memory that is left, into a collection of its own; the sample is then not tried.
    The sample is random, but that records without a vector come first.
    """
    mine = stores.collection
    if not mine:
        return
    size = _index_bytes(stores)
    room = _available_bytes()
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
        "collection": mine.name if small else PROBE_COLLECTION,
        "dimension": mine.dimension or stores.settings.dimension,
        "sample": ids if small else [],
    }
    found = ask([{**request, "action": "plant"}, {**request, "action": "find"}])
    why = f"{mine.name} has no record to search for"
    if not small:
        why = f"not searched through Chroma: its index takes {show.size(size)} of memory; every "
        why += "vector was read from the files instead"
    yield from _judge(found, len(request["sample"]), why)


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


def _available_bytes() -> int | None:
    """The memory that may still be used here: the container's limit, else the machine's; or None.

    Sources: cgroup v2 `memory.max` and `memory.current`, proc(5) `MemAvailable`.
    """
    rooms = []
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            statistics = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            used = int((group / "memory.current").read_text())
            rooms.append(int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                rooms.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    return min(rooms, default=None)


def _serve(requests: list[dict[str, Any]]) -> None:
    """Print an answer a request. Each runs in a process forked before there was any client.

    So each is a new process to Chroma, and its import (0.8 s) is paid once.
    """
    # jupyterlab's rfc3987-syntax compiles a grammar for 3 s on import, for checks nobody makes
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import chromadb  # noqa: F401 - for the forks

    _die_with_parent()
    for request in requests:
        process = os.fork()
        if not process:
            _die_with_parent()
            try:
                print(json.dumps(_answer(request)), flush=True)  # noqa: T201 - the answer
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            sys.exit(f"killed by signal {os.WTERMSIG(status)}")
        if status:
            sys.exit(1)


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that started it is killed (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request with a client of its own."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(
        request["directory"], settings=Settings(anonymized_telemetry=False)
    )
    if request["action"] == "delete":
        return _delete(client, request)
    name = request["collection"]
    vector = [
        (1.0 if i % 2 else -1.0) / request["dimension"] ** 0.5 for i in range(request["dimension"])
    ]
    if request["action"] == "plant":
        if name == PROBE_COLLECTION:
            collection = client.create_collection(name, embedding_function=None)
        else:
            collection = client.get_collection(name, embedding_function=None)
        collection.add(ids=[PROBE_ID], embeddings=[vector], documents=[PROBE_TEXT])
        return {"planted": True}
    collection = client.get_collection(name, embedding_function=None)
    before = collection.count()
    held = collection.get(ids=[PROBE_ID], include=["documents"])
    nearest = collection.query(query_embeddings=[vector], n_results=1, include=["distances"])
    result: dict[str, Any] = {
        "found": held["documents"] == [PROBE_TEXT],
        "searched": nearest["ids"] == [[PROBE_ID]],
        **_search(collection, request["sample"]),
    }
    collection.delete(ids=[PROBE_ID])
    gone = not collection.get(ids=[PROBE_ID])["ids"]
    return {**result, "deleted": gone and collection.count() == before - 1}


def _search(collection: Any, ids: list[str]) -> dict[str, int]:
    """How many of the ids have document and vector, and how many are found by that vector."""
    if not ids:
        return {}
    held = collection.get(ids=ids, include=["documents", "embeddings"])
    fetched = nearest = 0
    for id_, document, vector in zip(
        held["ids"], held["documents"], held["embeddings"], strict=True
    ):
        fetched += document is not None
        near = collection.query(query_embeddings=[vector], n_results=NEAREST, include=["distances"])
        same = near["distances"][0] and near["distances"][0][0] < 1e-4
        nearest += bool(id_ in near["ids"][0] or same)
    return {"fetched": fetched, "nearest": nearest}


def _delete(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Delete ids from a collection; return the count and a digest of all other records.

    They are read before: each gives a SHA-256 of its id, document, metadata and vector, and the
    digest is their sum, which no order changes. Memory does not grow with the records.
    """
    doomed = set(request["ids"])
    total = records = 0
    for listed in client.list_collections():
        collection = client.get_collection(listed.name, embedding_function=None)
        leaving = doomed if listed.name == request["collection"] else set()
        for start in range(0, collection.count(), BATCH):
            page = collection.get(
                limit=BATCH, offset=start, include=["documents", "metadatas", "embeddings"]
            )
            facts = (page[name] for name in ("ids", "documents", "metadatas", "embeddings"))
            for id_, document, metadata, vector in zip(*facts, strict=True):
                if id_ not in leaving:
                    text = json.dumps([listed.name, id_, document, metadata], sort_keys=True)
                    found = hashlib.sha256(text.encode(errors="surrogatepass"))
                    found.update(vector.tobytes())
                    total += int.from_bytes(found.digest(), "big")
                    records += 1
    ids = sorted(doomed)
    for start in range(0, len(ids), BATCH):
        client.get_collection(request["collection"], embedding_function=None).delete(
            ids=ids[start : start + BATCH]
        )
    return {"records": records, "digest": f"{total % 2**256:064x}"}


if __name__ == "__main__":
    _serve(json.loads(sys.stdin.read()))
