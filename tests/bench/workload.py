"""The volume that the benchmarks run on: 405 MB of notes and 209 MB of Chroma, the same every time.

    python tests/bench/workload.py DIR [--scale 1.0] [--days 0] [--persist]

Notes are bilingual sentences of invented words, which compress like prose. The Chroma store is a
real one, built by chromadb in a child process (40,000 documents take about a minute), and so is
every day's churn. With `persist` each day ends in Chroma writing its HNSW files, the worst case for
a backup: it rewrites links all over `data_level0.bin`. Without, new vectors wait in the queue in
`chroma.sqlite3`, as they do on most days of a personal bot.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

NOTES = 152_000
DOCUMENTS = 40_000
ADDED, EDITED = 0.005, 0.002  # a day's churn, as shares of the notes and of the documents
_KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
_KANJI = "日本語記録知識会議予定開発設計実験結果検索保存復元容量費用確認作業今週来月東京大阪文書"
_SCHEMA = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=OFF;
CREATE TABLE knowledge_notes (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL, tags TEXT DEFAULT '[]',
    source_type TEXT, source_id TEXT, user_id TEXT, channel_id TEXT, guild_id TEXT,
    created_at TEXT, updated_at TEXT, vector_updated_at TEXT);
CREATE INDEX idx_notes_user_id ON knowledge_notes(user_id);
CREATE INDEX idx_notes_created_at ON knowledge_notes(created_at);
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """Where the live files of a workload lie."""

    root: Path

    @property
    def database(self) -> Path:
        """The notes."""
        return self.root / "nescordbot.db"

    @property
    def chroma(self) -> Path:
        """Chroma's directory."""
        return self.root / "chromadb"


def build(root: Path, *, scale: float = 1.0, persist: bool = False) -> Workload:
    """Given an absent directory and a factor, build the workload there."""
    work = Workload(root)
    root.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(work.database, isolation_level=None)) as database:
        database.executescript(_SCHEMA)
        _insert(database, random.Random(1), round(NOTES * scale), day=0)
    _chroma(work, 0, scale, persist=persist)
    return work


def day(work: Workload, number: int, *, scale: float = 1.0) -> None:
    """Change the workload as a day of use does: 0.5 % added, 0.2 % edited, in both stores."""
    rng = random.Random(1000 + number)
    with contextlib.closing(sqlite3.connect(work.database, isolation_level=None)) as database:
        _insert(database, rng, round(NOTES * scale * ADDED), day=number)
        text = _Text(rng)
        database.execute("BEGIN")
        for row in rng.sample(range(1, round(NOTES * scale)), round(NOTES * scale * EDITED)):
            database.execute(
                "UPDATE knowledge_notes SET content = ?, updated_at = ? WHERE rowid = ?",
                (text.content(rng), _moment(number, row), row),
            )
        database.execute("COMMIT")
    _chroma(work, number, scale)


class _Text:
    """A pool of sentences that notes are put together from, half English and half Japanese."""

    def __init__(self, rng: random.Random) -> None:
        words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
        kanji = [
            "".join(rng.choices(_KANJI, k=2)) + "".join(rng.choices(_KANA, k=rng.randint(1, 4)))
            for _ in range(3000)
        ]
        weights = [1 / (rank + 3) for rank in range(3000)]
        english = (rng.choices(words, weights, k=rng.randint(6, 14)) for _ in range(6000))
        japanese = (rng.choices(kanji, weights, k=rng.randint(3, 8)) for _ in range(6000))
        self.sentences = [" ".join(picked).capitalize() + ". " for picked in english]
        self.sentences += ["".join(picked) + "。" for picked in japanese]

    def content(self, rng: random.Random, sentences: int = 0) -> str:
        """Return a note's text: some 1.9 KB, unless told how many sentences."""
        return "".join(rng.choices(self.sentences, k=sentences or rng.randint(4, 42)))


def _insert(database: sqlite3.Connection, rng: random.Random, count: int, *, day: int) -> None:
    text = _Text(rng)
    database.execute("BEGIN")
    database.executemany(
        "INSERT INTO knowledge_notes VALUES (?,?,?,?,'discord',?,?,?,'9',?,?,NULL)",
        (
            (
                str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                text.content(rng, 1)[:60],
                text.content(rng),
                json.dumps(rng.choices(("work", "idea", "会議", "todo"), k=2)),
                str(rng.getrandbits(60)),
                str(rng.randrange(50)),
                str(rng.randrange(20)),
                _moment(day, row),
                _moment(day, row),
            )
            for row in range(count)
        ),
    )
    database.execute("COMMIT")


def _moment(day: int, second: int) -> str:
    then = time.gmtime(1_767_225_600 + 86_400 * day + second % 86_400)
    return time.strftime("%Y-%m-%d %H:%M:%S", then)


def _chroma(work: Workload, day: int, scale: float, *, persist: bool = False) -> None:
    """Run this script again as the child that alone imports chromadb."""
    command = [sys.executable, __file__, str(work.root), "--scale", str(scale), "--child", str(day)]
    subprocess.run([*command, *(["--persist"] if persist else [])], check=True)


def _chroma_child(work: Workload, day: int, scale: float, *, persist: bool) -> None:
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # a slow import
    import chromadb
    import numpy as np

    rng, noise = random.Random(2000 + day), np.random.default_rng(day)
    text = _Text(rng)
    count = round(DOCUMENTS * scale)
    added = round(count * ADDED)
    options: dict[str, object] = {"hnsw:space": "cosine"}
    if persist:
        options |= {"hnsw:sync_threshold": max(added, 3), "hnsw:batch_size": 2}
    collection = chromadb.PersistentClient(str(work.chroma)).get_or_create_collection(
        "nescord_knowledge", metadata=options
    )

    def records(numbers: list[int]) -> dict[str, object]:
        return {
            "ids": [f"note_{uuid.UUID(int=number, version=4)}" for number in numbers],
            "embeddings": noise.standard_normal((len(numbers), 768), dtype=np.float32),
            "documents": [text.content(rng, 3) for _ in numbers],
            "metadatas": [{"title": text.content(rng, 1), "user_id": "7"} for _ in numbers],
        }

    first = 0 if day == 0 else count + added * (day - 1)
    last = count if day == 0 else first + added
    for start in range(first, last, 1000):
        collection.add(**records(list(range(start, min(start + 1000, last)))))  # type: ignore[arg-type]
    if day:
        edited = rng.sample(range(count), round(count * EDITED))
        collection.update(**records(edited))  # type: ignore[arg-type]


def main() -> None:
    """Build a workload and let days pass."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--days", type=int, default=0)
    parser.add_argument("--persist", action="store_true", help="let every day end in a persist")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return _chroma_child(
            Workload(options.root), options.child, options.scale, persist=options.persist
        )
    work = build(options.root, scale=options.scale, persist=options.persist)
    for number in range(1, options.days + 1):
        day(work, number, scale=options.scale)
    return None


if __name__ == "__main__":
    main()
