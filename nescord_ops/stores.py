"""Both copies of a snapshot on one connection, so that checks between them are plain SQL.

The copy of the bot's database is attached as `bot`, Chroma's as `vec`. The persisted id map of
the bot's collection is loaded into a temporary table, which SQLite keeps on disk: memory does not
grow with the number of notes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from nescord_ops import chroma, database, memory
from nescord_ops.errors import VolumeError
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Snapshot

_IMMUTABLE = "mode=ro&immutable=1"


@dataclasses.dataclass(frozen=True, slots=True)
class Stores:
    """The joined copies: schemas `bot` and `vec`, and two temporary tables.

    `hnsw(id, label)` is the persisted id map of the bot's `collection`; `queued(id)` are the ids
    whose vector is still in the write queue. `index_problem` says why the map is unreadable.
    `has_notes` and `has_sync` tell which of the bot's tables exist: it makes `sync_metadata` at
    its first sync only.
    """

    connection: sqlite3.Connection
    snapshot: Snapshot
    settings: Settings
    collections: tuple[chroma.Collection, ...]
    collection: chroma.Collection | None
    index_problem: str
    has_notes: bool
    has_sync: bool

    @property
    def root(self) -> Path:
        """The copy of Chroma's directory."""
        assert self.snapshot.chroma
        return self.snapshot.chroma

    def count(self, sql: str, *values: object) -> int:
        """Run a query that gives one number, and return it."""
        (number,) = self.connection.execute(sql, values).fetchone()
        return int(number or 0)

    def example(self, sql: str, *values: object) -> str:
        """Run a query of one text column and return its first value, or nothing."""
        row = self.connection.execute(f"{sql} LIMIT 1", values).fetchone()
        return str(row[0]) if row else ""


@contextlib.contextmanager
def join(snapshot: Snapshot, settings: Settings) -> Iterator[Stores]:
    """Attach both copies to one private connection; Chroma's must be there.

    Raise sqlite3.DatabaseError if Chroma's copy has not Chroma's tables, or is too damaged, and
    CaptureError where numpy, which reads vectors, could not be loaded.
    """
    assert snapshot.chroma
    memory.refuse_few_addresses()
    file = snapshot.chroma / chroma.DATABASE
    with database.open_copy(file) as connection:
        collections = chroma.collections(connection)
    mine = next((c for c in collections if c.name == settings.collection), None)
    joined = sqlite3.connect("file::memory:", uri=True, isolation_level=None)
    with contextlib.closing(joined), database.confined(joined):
        joined.text_factory = database.decode
        joined.execute("PRAGMA temp_store=FILE")
        joined.execute("ATTACH ? AS vec", (database.uri(file, _IMMUTABLE),))
        tables: set[str] = set()
        if snapshot.database:
            joined.execute("ATTACH ? AS bot", (database.uri(snapshot.database, _IMMUTABLE),))
            rows = joined.execute("SELECT name FROM bot.sqlite_schema WHERE type = 'table'")
            tables = {name for (name,) in rows}
        problem = _load_index(joined, snapshot.chroma, mine)
        yield Stores(
            *(joined, snapshot, settings, collections, mine, problem),
            has_notes="knowledge_notes" in tables,
            has_sync="sync_metadata" in tables,
        )


def _load_index(
    joined: sqlite3.Connection, root: Path, collection: chroma.Collection | None
) -> str:
    """Fill `temp.hnsw` and `temp.queued`; return why the id map is unreadable, or nothing."""
    joined.execute("CREATE TEMP TABLE hnsw(id TEXT PRIMARY KEY, label INTEGER) WITHOUT ROWID")
    joined.execute("CREATE TEMP TABLE queued(id TEXT PRIMARY KEY) WITHOUT ROWID")
    if not collection:
        return ""
    joined.execute(
        "INSERT OR IGNORE INTO queued SELECT id FROM vec.embeddings_queue"
        " WHERE substr(topic, -36) = ? AND seq_id > ? AND operation IN (0, 2)",  # add, upsert
        (collection.id, collection.vector_seq or 0),
    )
    directory = root / collection.vector_segment
    if not (collection.vector_segment and (directory / chroma.PICKLE).exists()):
        return ""
    try:
        with joined:  # which knows that a full disk has ended the transaction already
            joined.execute("BEGIN")
            joined.execute("CREATE TEMP TABLE read(id, label)")
            joined.executemany("INSERT INTO read VALUES (?, ?)", chroma.id_map(directory))
            # in order: at random every row would cost a page, once the table outgrows the cache
            joined.execute(
                "INSERT OR IGNORE INTO hnsw SELECT id, label FROM read ORDER BY id, rowid"
            )
            joined.execute("DROP TABLE temp.read")
    except VolumeError as error:
        return str(error)
    return ""
