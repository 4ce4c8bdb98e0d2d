"""What lies on the volume in vain, word by word: how much of it there is, and what removes it.

A word is measured on copies of both stores. Rows are removed by SQL, records by Chroma's own
client, directories by not being copied: all in `rebuild`, on copies that nobody has open.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nescord_ops import agreement, chroma, inventory, legacy, places, show, store, volume
from nescord_ops.inventory import ADOPTED
from nescord_ops.results import Result
from nescord_ops.snapshot import DATABASE
from nescord_ops.stores import Stores

_INDEX_FILES = {chroma.PICKLE} | {
    f"{name}.bin" for name in ("header", "data_level0", "length", "link_lists")
}
# Chroma's own rule (`purge_log`): what every segment of the collection has applied, but for the
# last row. The newest of all stays too: the next sequence number is one more than the largest.
_APPLIED = (
    "m.seq_id < (SELECT max(seq_id) FROM vec.embeddings_queue)"
    " AND m.seq_id < (SELECT min(CASE typeof(x.seq_id) WHEN 'integer' THEN x.seq_id ELSE 0 END)"
    " FROM vec.segments s LEFT JOIN vec.max_seq_id x ON x.segment_id = s.id"
    " WHERE s.collection = substr(m.topic, -36))"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Waste(Result):
    """What one word found: how many, the bytes that they hold, and the first few by name.

    `targets` are what its removal needs. A `problem` says why nothing of it may be removed, and a
    `hint` what to do then; with `unread`, it could not be looked at.
    """

    count: int = 0
    held_bytes: int = 0
    examples: tuple[str, ...] = ()
    targets: tuple[Any, ...] = ()
    problem: str = ""
    hint: str = "check DATABASE_URL; nescord-ops verify"
    unread: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Rows (m) of a table that may be absent: their name, the bytes that they hold, and which."""

    table: str
    key: str
    held: str
    where: str

    def measure(self, stores: Stores) -> Waste:
        """Count them on copies."""
        schema, name = self.table.split(".")
        there = f"SELECT count(*) FROM {schema}.sqlite_schema WHERE name = ?"
        if not stores.count(there, name):
            return Waste()
        query = f"SELECT {self.key}, {self.held} FROM {self.table} m WHERE {self.where}"
        return _tally(stores.connection.execute(query))

    def remove(self, connection: sqlite3.Connection) -> int:
        """Delete them, and return how many they were."""
        return connection.execute(f"DELETE FROM {self.table} AS m WHERE {self.where}").rowcount


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """One kind of waste: what one and many are in words, and which `stores` its removal changes.

    With `alone`, its bytes go back to the file system by themselves; those of rows and records do
    when the database is vacuumed. A word that is `named_only` is left alone unless it is named.
    `done` says what its removal does.
    """

    one: str
    many: str
    measure: Callable[[Stores], Waste]
    stores: tuple[str, ...] = ()
    alone: bool = False
    named_only: bool = False
    done: str = "removed"


def _tally(rows: Iterable[tuple[Any, int | None]], targets: tuple[Any, ...] = ()) -> Waste:
    """Given rows of a name and the bytes that it holds, count them in constant memory."""
    count = held = 0
    examples: list[str] = []
    for name, size in rows:
        count += 1
        held += size or 0
        if len(examples) < 3:
            examples.append(str(name))
    return Waste(count, held, tuple(examples), targets)


def _segments(stores: Stores) -> Waste:
    """Index directories of no segment; one that holds anything else is not ours to remove."""
    used = {str(id_) for (id_,) in stores.connection.execute("SELECT id FROM vec.segments")}
    live = chroma.segment_directories(stores.settings.chroma_dir)
    found = tuple(path for path in live if path.name not in used and _is_index(path))
    return _tally(((path.name, volume.usage(path).allocated_bytes) for path in found), found)


def _is_index(directory: Path) -> bool:
    with os.scandir(directory) as entries:
        return len(directory.name) == 36 and all(
            entry.name in _INDEX_FILES and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            for entry in entries
        )


def _pages(stores: Stores) -> Waste:
    """Free pages; the targets are the stores that have some."""
    count = held = 0
    targets = []
    for name, schema in (("database", "bot"), ("chroma", "vec")):
        if free := stores.count(f"PRAGMA {schema}.freelist_count"):
            count += free
            held += free * stores.count(f"PRAGMA {schema}.page_size")
            targets.append(name)
    return Waste(count, held, (), tuple(targets))


def _records(stores: Stores, kind: str) -> Waste:
    """Records of the bot's collection of one kind; the targets are their ids."""
    if not stores.collection:
        return Waste()
    text = "SELECT sum(length(CAST(string_value AS BLOB))) FROM vec.embedding_metadata t"
    rows = stores.connection.execute(
        f"SELECT e.embedding_id, ({text} WHERE t.id = e.id) FROM vec.embeddings e"
        f" WHERE e.segment_id = ? AND {kind}",
        (stores.collection.metadata_segment,),
    ).fetchall()
    return _tally(rows, tuple(id_ for id_, _ in rows))


def _deletions(stores: Stores) -> Waste:
    """Records of notes that are gone, unless their notes may lie in another database."""
    found = _records(stores, agreement.LEAKED)
    segment = stores.collection.metadata_segment if stores.collection else ""
    count = "SELECT count(*) FROM vec.embeddings WHERE segment_id = ?"
    text = ""
    if found.count * 2 > (records := stores.count(count, segment)):
        of = show.count(records, "record")
        text = f"{found.count:,} of {of} without a note: is this the right database?"
    elif found.count and (others := places.stray_databases(stores.settings)):
        lost = show.count(found.count, "record")
        text = f"{lost} without a note here: do the notes lie in {others[0]}?"
    return dataclasses.replace(found, problem=text)


def _residue(stores: Stores) -> Waste:
    return _records(stores, agreement.RESIDUE)


def _stale(stores: Stores) -> Waste:
    """Records whose document is an old text of their note."""
    compared = agreement.compare(stores) if stores.collection else ()
    ids = tuple(f"note_{note}" for note, is_old, _ in compared if is_old)
    return _tally(((id_, 0) for id_ in ids), ids)


def _unsynced(stores: Stores) -> Waste:
    """Notes that the bot believes synced, or has given up, and that Chroma does not have."""
    if not (stores.collection and stores.has_sync):
        return Waste()
    rows = stores.connection.execute(
        f"SELECT 'note_' || m.note_id FROM bot.sync_metadata m WHERE {agreement.UNSYNCED}",
        (stores.collection.metadata_segment,),
    ).fetchall()
    return _tally(((id_, 0) for (id_,) in rows), tuple(id_ for (id_,) in rows))


def set_pending(connection: sqlite3.Connection, ids: Iterable[str]) -> int:
    """Have the bot sync notes again, by the ids of their records; return how many rows changed.

    The bot syncs what is pending, and what has no row.
    """
    sql = (
        "UPDATE bot.sync_metadata SET sync_status = 'pending', retry_count = 0 WHERE note_id ="
        " substr(?, 6) AND (sync_status IS NOT 'pending' OR retry_count IS NOT 0)"
    )
    return connection.executemany(sql, ((id_,) for id_ in ids)).rowcount


def _backups(stores: Stores) -> Waste:
    """The bot's backups that lie in the store whole; the targets are pairs, the bot's and ours."""
    known = inventory.listing(stores.settings, looking=True)
    if known.problem and len(known.backups) > len(known.generations):
        return Waste(problem=known.problem, hint=known.hint, unread=True)
    adopted = {
        (backup.evidence.get("source"), backup.taken_at, backup.stores): backup
        for backup in known.generations
        if backup.kind == ADOPTED and backup.whole
    }
    pairs = []
    for bot in inventory.bots(stores.settings):
        held = (("database", bot.has_database), ("chroma", bot.has_chroma))
        ours = adopted.get((bot.path.name, bot.taken_at, tuple(n for n, there in held if there)))
        if ours and _is_only_backup(bot.path):
            pairs.append((bot, ours))
    return _tally(((bot.path.name, bot.allocated_bytes) for bot, _ in pairs), tuple(pairs))


def _is_only_backup(path: Path) -> bool:
    """Whether nothing lies in it that adoption did not take."""
    known = {legacy.MANIFEST, legacy.CHROMA, DATABASE}
    return not path.is_dir() or {entry.name for entry in path.iterdir()} <= known


def proven_copies(waste: Waste) -> list[legacy.BotBackup]:
    """Of the backups measured, return those whose copy in the store is whole, every byte read."""
    found = []
    for bot, ours in waste.targets:
        with store.open_store(ours.path) as opened:
            harm = store.check(opened, ours.id)
        if not any(damage.generation_id in ("", ours.id) for damage in harm):
            found.append(bot)
    return found


def _strays(stores: Stores) -> Waste:
    found = tuple(places.stray_databases(stores.settings))
    return _tally(((path, volume.usage(path).allocated_bytes) for path in found), found)


# `items` are files that the bot has written to its repository (persistent_queue.py); what failed
# has a text that may be nowhere else, and stays.
ROWS = {
    "queue": Rows("vec.embeddings_queue", "m.seq_id", "length(m.vector)", _APPLIED),
    "sync": Rows("bot.sync_metadata", "m.note_id", "length(m.note_id)", agreement.ORPHAN_SYNC),
    "items": Rows(
        "bot.obsidian_file_queue", "m.id", "length(m.file_request_json)", "m.status = 'completed'"
    ),
}
WORDS = {
    "segments": Word(
        "index directory of no collection",
        "index directories of no collection",
        _segments,
        ("chroma",),
        alone=True,
    ),
    "pages": Word(
        "free page in both databases", "free pages in both databases", _pages, alone=True
    ),
    "queue": Word(
        "applied write in Chroma's queue",
        "applied writes in Chroma's queue",
        ROWS["queue"].measure,
        ("chroma",),
    ),
    "deletions": Word(
        "deleted note that search still finds",
        "deleted notes that search still finds",
        _deletions,
        ("chroma",),
    ),
    "residue": Word(
        "test document of the bot's own check",
        "test documents of the bot's own check",
        _residue,
        ("chroma",),
    ),
    "sync": Word(
        "sync row of no note, or of another",
        "sync rows of no note, or of another",
        ROWS["sync"].measure,
        ("database",),
    ),
    "items": Word(
        "finished item of the bot's queue",
        "finished items of the bot's queue",
        ROWS["items"].measure,
        ("database",),
    ),
    "backups": Word(
        "backup of the bot's that is in the store",
        "backups of the bot's that are in the store",
        _backups,
        alone=True,
    ),
    "strays": Word(
        "database beside the one in use",
        "databases beside the one in use",
        _strays,
        named_only=True,
    ),
    "stale": Word(
        "note whose old text search finds",
        "notes whose old text search finds",
        _stale,
        ("chroma", "database"),
        named_only=True,
    ),
    "unsynced": Word(
        "note without a vector that the bot no longer tries to add",
        "notes without vectors that the bot no longer tries to add",
        _unsynced,
        ("database",),
        named_only=True,
        done="handed to the bot, which adds it when it starts:",
    ),
}
