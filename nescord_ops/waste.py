"""What lies on the volume in vain, word by word: how much of it there is, and what removes it.

Each word has a function that measures it on copies of both stores, and most have one that removes
it from copies that are attached as `bot` and `vec`. Records go through Chroma's own client
(`clean`), directories are left out when the copies are made.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nescord_ops import agreement, chroma, inventory, legacy, places, store, volume
from nescord_ops.inventory import ADOPTED
from nescord_ops.snapshot import DATABASE
from nescord_ops.stores import Stores

_INDEX_FILES = {chroma.PICKLE} | {
    f"{name}.bin" for name in ("header", "data_level0", "length", "link_lists")
}
# Chroma's own rule (`purge_log`), kept to the letter: the row at the limit stays, because the next
# sequence number is one more than the largest in the table.
_CONSUMED = "substr(topic, -36) = ? AND seq_id < ?"
_FINISHED = "status = 'completed'"  # obsidian_file_queue of the bot's persistent_queue.py


@dataclasses.dataclass(frozen=True, slots=True)
class Waste:
    """What one word found: how many, the bytes that they hold, and the first few by name.

    `targets` are what its removal needs. A `problem` says why nothing of it will be removed.
    """

    count: int = 0
    held_bytes: int = 0
    examples: tuple[str, ...] = ()
    targets: tuple[Any, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """One kind of waste: what it is in words, and which `stores` its removal changes.

    `remove` takes the connection and what was measured, and returns how many rows it changed in
    `table`. With `alone` its bytes go back to the file system by themselves; those of rows do when
    the database is vacuumed. A word that is `named_only` is left alone unless it is named.
    """

    summary: str
    measure: Callable[[Stores], Waste]
    stores: tuple[str, ...] = ()
    remove: Callable[[sqlite3.Connection, Waste], int] | None = None
    table: str = ""
    alone: bool = False
    named_only: bool = False


def _tally(rows: Iterable[tuple[Any, int | None]]) -> Waste:
    """Given rows of a name and the bytes that it holds, count them in constant memory."""
    count = held = 0
    examples: list[str] = []
    for name, size in rows:
        count += 1
        held += size or 0
        if len(examples) < 3:
            examples.append(str(name))
    return Waste(count, held, tuple(examples))


def _segments(stores: Stores) -> Waste:
    """Index directories without a segment; one with anything but an index's files is not ours."""
    used = {str(id_) for (id_,) in stores.connection.execute("SELECT id FROM vec.segments")}
    found = [
        directory
        for directory in chroma.segment_directories(stores.settings.chroma_dir)
        if directory.name not in used and _is_index(directory)
    ]
    sized = [(d.name, volume.usage(d).allocated_bytes) for d in found]
    return dataclasses.replace(_tally(sized), targets=tuple(found))


def _is_index(directory: Path) -> bool:
    if str(uuid.UUID(directory.name)) != directory.name:
        return False
    with os.scandir(directory) as entries:
        return all(
            entry.name in _INDEX_FILES and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            for entry in entries
        )


def _pages(stores: Stores) -> Waste:
    """Free pages; the targets are the stores that have some."""
    found = {}
    for schema, name in (("bot", "database"), ("vec", "chroma")):
        free = stores.count(f"PRAGMA {schema}.freelist_count")
        found[name] = (free, free * stores.count(f"PRAGMA {schema}.page_size"))
    count, held = (sum(numbers) for numbers in zip(*found.values(), strict=True))
    targets = tuple(name for name, (free, _) in found.items() if free)
    return Waste(count, held, tuple(f"{name} {found[name][0]:,}" for name in targets), targets)


def _queue(stores: Stores) -> Waste:
    """Rows of Chroma's write queue that every segment of their collection has applied."""
    limits = tuple(
        (each.id, min(each.vector_seq, each.metadata_seq))
        for each in stores.collections
        if each.vector_seq and each.metadata_seq
    )
    sizes = "coalesce(length(vector), 0) + coalesce(length(CAST(metadata AS BLOB)), 0)"
    query = f"SELECT seq_id, {sizes} FROM vec.embeddings_queue WHERE {_CONSUMED}"
    rows = (row for limit in limits for row in stores.connection.execute(query, limit))
    return dataclasses.replace(_tally(rows), targets=limits)


def _purge(connection: sqlite3.Connection, waste: Waste) -> int:
    sql = f"DELETE FROM vec.embeddings_queue WHERE {_CONSUMED}"
    return connection.executemany(sql, waste.targets).rowcount


def _records(stores: Stores, kind: str) -> Waste:
    """Records of the bot's collection of one kind; the targets are their ids."""
    mine = stores.collection
    if not (mine and stores.has_notes):
        return Waste()
    text = "SELECT sum(length(CAST(string_value AS BLOB))) FROM vec.embedding_metadata m"
    query = f"FROM vec.embeddings e WHERE e.segment_id = ? AND {kind}"
    segment = (mine.metadata_segment,)
    rows = stores.connection.execute(
        f"SELECT e.embedding_id, ({text} WHERE m.id = e.id) {query}", segment
    )
    ids = stores.connection.execute(f"SELECT e.embedding_id {query}", segment)
    return dataclasses.replace(_tally(rows), targets=tuple(id_ for (id_,) in ids))


def _deletions(stores: Stores) -> Waste:
    """Records of notes that are gone; if most are, then the database is the wrong one."""
    found = _records(stores, agreement.LEAKED)
    records = stores.count(
        "SELECT count(*) FROM vec.embeddings WHERE segment_id = ?",
        stores.collection.metadata_segment if stores.collection else "",
    )
    if found.count * 2 <= records:
        return found
    text = f"{found.count:,} of {records:,} records have no note: is this the right database?"
    return dataclasses.replace(found, problem=text)


def _residue(stores: Stores) -> Waste:
    return _records(stores, agreement.RESIDUE)


def _stale(stores: Stores) -> Waste:
    """Records whose document is an old text of their note."""
    if not (stores.collection and stores.has_notes):
        return Waste()
    ids = tuple(f"note_{note}" for note, is_old, _ in agreement.compare(stores) if is_old)
    return Waste(len(ids), 0, ids[:3], ids)


def _set_pending(connection: sqlite3.Connection, waste: Waste) -> int:
    if not connection.execute(_HAS_TABLE, ("sync_metadata",)).fetchone():
        return 0
    sql = (
        "UPDATE bot.sync_metadata SET sync_status = 'pending', retry_count = 0 WHERE note_id ="
        " substr(?, 6) AND (sync_status IS NOT 'pending' OR retry_count IS NOT 0)"
    )
    return connection.executemany(sql, ((id_,) for id_ in waste.targets)).rowcount


_HAS_TABLE = "SELECT 1 FROM bot.sqlite_schema WHERE type = 'table' AND name = ?"


def _sync(stores: Stores) -> Waste:
    if not (stores.has_sync and stores.has_notes):
        return Waste()
    sizes = "length(m.note_id) + coalesce(length(m.embedding_hash), 0)"
    query = f"SELECT m.note_id, {sizes} FROM bot.sync_metadata m WHERE {agreement.ORPHAN_SYNC}"
    return _tally(stores.connection.execute(query))


def _forget(connection: sqlite3.Connection, _: Waste) -> int:
    sql = f"DELETE FROM bot.sync_metadata AS m WHERE {agreement.ORPHAN_SYNC}"
    return connection.execute(sql).rowcount


def _items(stores: Stores) -> Waste:
    """Files that the bot has written to its repository, and whose text it keeps in its queue."""
    if not stores.connection.execute(_HAS_TABLE, ("obsidian_file_queue",)).fetchone():
        return Waste()
    sizes = "length(CAST(file_request_json AS BLOB))"
    query = f"SELECT id, {sizes} FROM bot.obsidian_file_queue WHERE {_FINISHED}"
    return _tally(stores.connection.execute(query))


def _finish(connection: sqlite3.Connection, _: Waste) -> int:
    return connection.execute(f"DELETE FROM bot.obsidian_file_queue WHERE {_FINISHED}").rowcount


def _backups(stores: Stores) -> Waste:
    """The bot's backups that are in the store whole; the targets are pairs of it and ours."""
    known = inventory.listing(stores.settings, looking=True).generations
    adopted = {
        (backup.evidence.get("source"), backup.taken_at, backup.stores): backup
        for backup in known
        if backup.kind == ADOPTED and backup.whole
    }
    pairs = []
    for bot in inventory.bots(stores.settings):
        held = (("database", bot.has_database), ("chroma", bot.has_chroma))
        ours = adopted.get((bot.path.name, bot.taken_at, tuple(n for n, there in held if there)))
        if ours and _is_only_backup(bot.path):
            pairs.append((bot, ours))
    sized = ((bot.path.name, bot.allocated_bytes) for bot, _ in pairs)
    return dataclasses.replace(_tally(sized), targets=tuple(pairs))


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
    sized = ((path, volume.usage(path).allocated_bytes) for path in found)
    return dataclasses.replace(_tally(sized), targets=found)


WORDS = {
    "segments": Word("index directories of no collection", _segments, ("chroma",), alone=True),
    "queue": Word("applied rows of Chroma's write queue", _queue, ("chroma",), _purge),
    "deletions": Word("records of deleted notes, which search finds", _deletions, ("chroma",)),
    "residue": Word("test documents of the bot's own check", _residue, ("chroma",)),
    "sync": Word(
        *("rows of sync_metadata without their note", _sync, ("database",), _forget),
        table="sync_metadata",
    ),
    "items": Word(
        *("finished items of the bot's file queue", _items, ("database",), _finish),
        table="obsidian_file_queue",
    ),
    "stale": Word(
        *("records with an old text of their note", _stale, ("chroma", "database"), _set_pending),
        table="sync_metadata",
        named_only=True,
    ),
    "pages": Word("free pages of both databases", _pages, alone=True),
    "backups": Word("the bot's backups that are in the store", _backups, alone=True),
    "strays": Word("databases beside the one in use", _strays, named_only=True),
}
