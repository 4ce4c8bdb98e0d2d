"""Everything that writes a sample Chroma store, run in a child process of its own.

A process that holds a Chroma client must not read `chroma.sqlite3` with Python's sqlite3 (two
SQLite libraries, POSIX locks; chromadb 1.5.9), and importing chromadb takes a second. So the
parent calls `run`, and only the child (`python -m nescord_ops.chroma_build`) imports chromadb.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nescord_ops.errors import CaptureError

COLLECTION = "nescord_knowledge"
METADATA = {"hnsw:space": "cosine"}
DIMENSION = 768
WRONG_DIMENSION = 384
EARLIER = "earlier-persist"
_BATCH = 500
_CLUSTERS = 24
_SPREAD = 0.5  # of a cluster's radius


def run(
    directory: Path, action: str, *, seed: int = 0, records: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Do one action on the store in `directory` in a child process, and wait for it.

    `records` ({id, document, metadata}) are streamed to the child one by one. Raise CaptureError
    with the child's last line if it fails.
    """
    command = [sys.executable, "-P", "-m", "nescord_ops.chroma_build"]
    command += [str(directory), action, str(seed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as child:
        assert child.stdin
        assert child.stderr
        with contextlib.suppress(BrokenPipeError):  # the child has failed; what it said follows
            try:
                for record in records:
                    child.stdin.write(json.dumps(record, ensure_ascii=False) + "\n")
            finally:
                child.stdin.close()
        said = child.stderr.read()
    if child.returncode:
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise CaptureError(
            f"the sample Chroma store could not be written ({action}): {last}",
            "check that chromadb can be imported: python -c 'import chromadb'",
        )


def open_client(directory: Path) -> Any:
    """Return a PersistentClient on `directory`, telemetry off. Child processes only."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # a slow, unused import
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    return chromadb.PersistentClient(path=str(directory), settings=settings)


def collection_of(client: Any) -> Any:
    """Return the bot's collection, made as the bot makes it, without an embedding function."""
    return client.get_or_create_collection(COLLECTION, metadata=METADATA, embedding_function=None)


def add(directory: Path, seed: int) -> None:
    """Add the records of standard input, one JSON object a line, each with a seeded vector."""
    collection = collection_of(open_client(directory))
    for number, batch in enumerate(_batches(json.loads(line) for line in sys.stdin)):
        collection.add(
            ids=[record["id"] for record in batch],
            embeddings=vectors([record["metadata"]["tags"] for record in batch], seed, number),
            documents=[record["document"] for record in batch],
            metadatas=[record["metadata"] for record in batch],
        )


def persist(directory: Path, _seed: int) -> None:
    """Write vectors again, unchanged, until Chroma persists its HNSW files and purges its queue."""
    _persist(collection_of(open_client(directory)), directory)


def orphan(directory: Path, seed: int) -> None:
    """Make and delete a collection: Chroma leaves the directory of its vectors behind."""
    client = open_client(directory)
    other = client.create_collection("persistence_check", embedding_function=None)
    other.add(ids=["probe"], embeddings=vectors(["probe"], seed, 0), documents=["probe"])
    client.delete_collection("persistence_check")


def poison(directory: Path, seed: int) -> None:
    """Run the bot's own persistence check on an empty store: a default embedding of 384 numbers.

    The first vector fixes the collection's dimension; deleting the document does not free it.
    """
    collection = collection_of(open_client(directory))
    vector = vectors(["persistence test"], seed, 0)[:, :WRONG_DIMENSION]
    collection.add(ids=["persistence_test_doc"], embeddings=vector, documents=["test"])
    collection.delete(ids=["persistence_test_doc"])


def tear(directory: Path, _seed: int) -> None:
    """Build the store again in two persists, in `<directory>.new`.

    The index as of the first persist, nine tenths of the records, is kept in its `EARLIER`.
    """
    rows = collection_of(open_client(directory)).get(
        include=["embeddings", "documents", "metadatas"]
    )
    target = directory.with_name(directory.name + ".new")
    collection = collection_of(open_client(target))
    middle = len(rows["ids"]) * 9 // 10
    for part in (slice(0, middle), slice(middle, None)):
        chosen = {name: rows[name][part] for name in ("embeddings", "documents", "metadatas")}
        for start in range(0, len(rows["ids"][part]), _BATCH):
            batch = slice(start, start + _BATCH)
            collection.add(
                ids=rows["ids"][part][batch],
                **{name: values[batch] for name, values in chosen.items()},
            )
        _persist(collection, target)
        if part.start == 0:
            (segment,) = (entry for entry in target.iterdir() if entry.is_dir())
            shutil.copytree(segment, target / EARLIER)


def vectors(tags: list[str], seed: int, batch: int) -> Any:
    """Given one text per record, return unit vectors (float32) clustered by those texts."""
    import numpy as np

    centres = np.random.default_rng(seed).standard_normal((_CLUSTERS, DIMENSION), np.float32)
    noise = np.random.default_rng([seed, batch]).standard_normal((len(tags), DIMENSION), np.float32)
    chosen = [zlib.crc32(text.encode()) % _CLUSTERS for text in tags]
    found = centres[chosen] + _SPREAD * noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _persist(collection: Any, directory: Path) -> None:
    """Update the oldest records with their own vectors until the id map has been written.

    Chroma persists when `hnsw:sync_threshold` (1000) writes have been applied since it opened the
    store, those waiting in its queue included, and keeps one row of the queue (1.5.9, measured).
    """
    rows = collection.get(limit=100, include=["embeddings"])
    before = _id_maps(directory)
    while rows["ids"] and _id_maps(directory) == before:
        collection.update(ids=rows["ids"], embeddings=rows["embeddings"])


def _id_maps(directory: Path) -> list[tuple[Path, int, int]]:
    """Every id map in the store, with what changes when it is written again."""
    found = ((path, path.stat()) for path in sorted(directory.glob("*/index_metadata.pickle")))
    return [(path, stat.st_ino, stat.st_mtime_ns) for path, stat in found]


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


_ACTIONS = {"add": add, "persist": persist, "orphan": orphan, "poison": poison, "tear": tear}

if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    _ACTIONS[sys.argv[2]](Path(sys.argv[1]), int(sys.argv[3]))
