"""The child process that alone imports chromadb: it works on a copy as it is asked to.

It reads a JSON list of requests from a socket, runs each in a fork, and answers with one line of
JSON. `python -m nescord_ops.chroma_child` is one child. Importing chromadb takes 0.8 s of processor
time, and 2.4 s without bytecode (1.5.9), so the notebooks of a report share a process that has done
it, and each of their children is a fork of that (`prepare`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nescord_ops import memory, volume

NEAREST = 100  # how many results a record is looked for in; Chroma's own `search_ef`
SAME = 1e-4  # records whose vectors are nearer than that are the same to a search
BATCH = 500  # records fetched or deleted at once
PROBE_ID = "nescord_ops_probe_document"
PROBE_TEXT = "永続性の確認 · a document that must be found again"
_END_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_ENVIRONMENT = {"ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1"}

_prepared: socket.socket | None = None


@contextlib.contextmanager
def start() -> Iterator[socket.socket]:
    """Start a child, yield the connection to it, and end it with every process of its own."""
    mine, its = socket.socketpair()
    with mine, contextlib.ExitStack() as stack:
        stack.callback(_hang_up, mine)
        with its:
            if not _forked(its):
                nowhere = subprocess.DEVNULL
                child = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-m", __name__],
                    stdin=its.fileno(),
                    stdout=nowhere,
                    stderr=nowhere,
                    env={**os.environ, **_ENVIRONMENT},
                )
                stack.callback(child.wait)
                stack.callback(child.kill)
        yield mine


def _forked(its: socket.socket) -> bool:
    """Have the prepared process fork a child for this end of a connection, if there is one."""
    with contextlib.suppress(OSError):  # it may have been killed
        return bool(_prepared and socket.send_fds(_prepared, [b"."], [its.fileno()]))
    return False


def _hang_up(mine: socket.socket) -> None:
    """End the child and wait until no process has the other end of its connection."""
    with contextlib.suppress(OSError):
        mine.settimeout(_END_SECONDS)
        mine.shutdown(socket.SHUT_WR)
        while mine.recv(1 << 16):
            pass


def prepare(fork: Callable[[], int]) -> None:
    """Fork a process that imports chromadb when it is first needed, for all forks of this one.

    To be called where there is one thread. The process ends with the last of those forks.
    """
    global _prepared
    _prepared, calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if fork():
        calls.close()
        return
    try:
        _prepared.close()
        os.environ.update(_ENVIRONMENT)
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
        while received := socket.recv_fds(calls, 1, 1)[1]:
            with contextlib.suppress(Exception):  # each child tries again, and says what is wrong
                _import_chroma()
            with socket.socket(fileno=received[0]) as connection:
                if not os.fork():
                    calls.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _serve(connection)
                    break
    finally:
        os._exit(0)


def _import_chroma() -> None:
    """Import chromadb, so that the forks to come have it and share its memory."""
    if "chromadb" in sys.modules:
        return
    # jupyterlab's rfc3987-syntax compiles a grammar for 3 s on import, for checks nobody makes
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import chromadb  # noqa: F401

    memory.trim()
    gc.freeze()


def _serve(connection: socket.socket) -> None:
    """Read the requests, run each in a fork, and answer; end when the other side hangs up.

    The forks are made before there is any client, so each is a new process to Chroma.
    """
    _die_with_parent()
    answer: dict[str, Any] = {}
    with connection, connection.makefile("rb") as lines:
        try:
            requests = json.loads(lines.readline())
            _import_chroma()
            for request in requests:
                answer = _in_fork(request, connection)
                if "problem" in answer:
                    break
        except Exception as error:
            answer = _problem(error)
        connection.sendall(json.dumps(answer).encode())


def _in_fork(request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
    """Answer one request in a process of its own, which does not outlive the connection."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        _die_with_parent()
        try:
            answer = {"result": _answer(request)}
        except BaseException as error:
            answer = _problem(error)
        with open(writer, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        if connection.fileno() in select.select([connection.fileno(), reader], [], [])[0]:
            os.kill(process, signal.SIGKILL)
        text = pipe.read()
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        why = " for want of addresses: MemoryError" if limited else ""  # Rust aborts then
        ended = os.WTERMSIG(status)
        return {"problem": f"killed by signal {ended}{why if ended == signal.SIGABRT else ''}"}
    answer = json.loads(text)
    assert isinstance(answer, dict)
    return answer


def _problem(error: BaseException) -> dict[str, Any]:
    """What stopped a request, in one line."""
    return {"problem": " ".join(traceback.format_exception_only(error)[-1].split())}


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that started it is killed (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; raise OSError if this process may not read what Chroma failed on.

    Chroma calls that malformed, or says no more than which of its steps it was in.
    """
    try:
        return _asked(request)
    except BaseException:
        for path, _ in volume.walk(Path(request["directory"])):
            volume.read_through(path)
        raise


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for with a client of its own."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(
        request["directory"], settings=Settings(anonymized_telemetry=False)
    )
    if request["action"] == "delete":
        return _delete(client, request)
    opened = client.get_or_create_collection if request.get("new") else client.get_collection
    collection = opened(request["collection"], embedding_function=None)
    vector = [
        (1.0 if i % 2 else -1.0) / request["dimension"] ** 0.5 for i in range(request["dimension"])
    ]
    if request["action"] == "plant":
        collection.add(ids=[PROBE_ID], embeddings=[vector], documents=[PROBE_TEXT])
        return {"planted": True}
    before = collection.count()
    held = collection.get(ids=[PROBE_ID], include=["documents"])
    nearest = collection.query(query_embeddings=[vector], n_results=1, include=["distances"])
    result: dict[str, Any] = {
        "found": held["documents"] == [PROBE_TEXT],
        "searched": nearest["ids"] == [[PROBE_ID]],
        "counted": request["records"] in (None, before - 1),
        **_search(collection, request["sample"], with_vectors=request["with_vectors"]),
    }
    collection.delete(ids=[PROBE_ID])
    gone = not collection.get(ids=[PROBE_ID])["ids"]
    return {**result, "deleted": gone and collection.count() == before - 1}


def _search(collection: Any, ids: list[str], *, with_vectors: bool) -> dict[str, int]:
    """How many of the ids have their document, and how many are found by their vector, if asked."""
    if not ids:
        return {}
    if not with_vectors:
        held = collection.get(ids=ids, include=["documents"])["documents"]
        return {"fetched": len(held) - held.count(None)}
    held = collection.get(ids=ids, include=["documents", "embeddings"])
    fetched = nearest = 0
    for id_, document, vector in zip(
        held["ids"], held["documents"], held["embeddings"], strict=True
    ):
        fetched += document is not None
        near = collection.query(query_embeddings=[vector], n_results=NEAREST, include=["distances"])
        same = near["distances"][0] and near["distances"][0][0] < SAME
        nearest += bool(id_ in near["ids"][0] or same)
    return {"fetched": fetched, "nearest": nearest}


def _delete(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Delete ids from a collection; return the count and a digest of all other records.

    They are read before: each gives a SHA-256 of its id, document, metadata and vector, and the
    digest is their sum, which no order changes. Of all records at once only the ids are in memory,
    a fortieth of what the index takes.
    """
    doomed = set(request["ids"])
    total = records = 0
    for listed in client.list_collections():
        collection = client.get_collection(listed.name, embedding_function=None)
        leaving = doomed if listed.name == request["collection"] else set()
        every = collection.get(include=[])["ids"]
        for start in range(0, len(every), BATCH):  # by ids: an offset reads all that is before it
            page = collection.get(
                ids=every[start : start + BATCH], include=["documents", "metadatas", "embeddings"]
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
    _serve(socket.socket(fileno=0))
