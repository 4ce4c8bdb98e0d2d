"""What fills the volume: every file is counted once, into exactly one component.

Live paths are only stat-ed and links are never followed. The scan ends after SCAN_LIMIT entries,
so that a wrong setting cannot send it through a whole disk; what it saw by then is a lower bound.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from nescord_ops import chroma, database, legacy, volume
from nescord_ops.results import Result
from nescord_ops.settings import Settings
from nescord_ops.volume import Usage

SCAN_LIMIT = 200_000
SPARSE_BYTES = 64 << 20  # a file that claims this much more than it holds is worth a word
STORE = "store.sqlite3"  # our own backups
LABELS = {
    "database": "Notes database",
    "database_free": "Notes database: free pages",
    "database_wal": "Notes database: write-ahead log",
    "chroma_store": "Chroma: documents, metadata, queue",
    "chroma_documents": "Chroma: documents and metadata",
    "chroma_search": "Chroma: full-text index",
    "chroma_queue": "Chroma: write queue",
    "chroma_vectors": "Chroma: vector index",
    "chroma_free": "Chroma: free pages",
    "chroma_orphans": "Chroma: orphan directories",
    "bot_backups": "The bot's own backups",
    "our_backups": "Backups of nescord-ops",
    "logs": "Logs",
    "other": "The rest",
}
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_SEGMENT = "segment/"


@dataclasses.dataclass(frozen=True, slots=True)
class Component(Result):
    """One kind of content: `allocated_bytes` is billed, `apparent_bytes` is what `ls` says.

    `on_volume` is False for what lies elsewhere in the container, which is not billed here.
    """

    name: str
    label: str
    allocated_bytes: int
    apparent_bytes: int
    files: int
    on_volume: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Scan(Result):
    """The files as they were found: usage by (component, whether it is on the volume).

    `segments` are Chroma's index directories by name. `backups` are the bot's own, newest first.
    `unread` counts what could not be looked at, `complete` is False where SCAN_LIMIT ended it.
    `sparse_file` is the file that claims most beyond its blocks, by `sparse_bytes`.
    """

    usage: Mapping[tuple[str, bool], Usage]
    segments: Mapping[str, tuple[Usage, bool]]
    backups: tuple[legacy.BotBackup, ...]
    entries: int
    unread: int
    complete: bool
    sparse_bytes: int
    sparse_file: str


def scan(settings: Settings, *, limit: int = SCAN_LIMIT) -> Scan:
    """Given settings, stat everything on the volume and every place that they name.

    The volume is its mount, or without one the directories of the database, of Chroma and of the
    backups. Never raises for what is missing or unreadable.
    """
    homes = _homes(settings)
    backups = tuple(_bot_backups(homes.backups))
    places = _places(settings, homes) | {backup.path: "bot_backups" for backup in backups}
    roots = _outermost([*homes.volume, *places])
    found: dict[tuple[str, bool], Usage] = {}
    linked: set[tuple[int, int]] = set()
    entries = unread = sparse = 0
    sparse_file = ""
    walk = itertools.chain.from_iterable(volume.walk(root) for root in roots)
    for path, seen in itertools.islice(walk, limit + 1):
        entries += 1
        if entries > limit:
            break
        if seen is None:
            unread += 1
            continue
        if seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode):
            if (seen.st_dev, seen.st_ino) in linked:
                continue
            linked.add((seen.st_dev, seen.st_ino))
        above = (path, *path.parents)
        name = next((places[p] for p in above if p in places), "other")
        key = (name, any(home in above for home in homes.volume))
        regular = stat.S_ISREG(seen.st_mode)
        size, held = seen.st_size if regular else 0, seen.st_blocks * 512
        found[key] = found.get(key, Usage()) + Usage(size, held, int(regular))
        if size - held > max(sparse, SPARSE_BYTES, held):
            sparse, sparse_file = size - held, path.name
    segments = {
        name.removeprefix(_SEGMENT): (found.pop((name, on)), on)
        for name, on in tuple(found)
        if name.startswith(_SEGMENT)
    }
    return Scan(found, segments, backups, entries, unread, entries <= limit, sparse, sparse_file)


def components(
    seen: Scan,
    *,
    free_bytes: Mapping[str, int],
    chroma_tables: Iterable[database.Table] = (),
    used_segments: frozenset[str] | None = None,
) -> tuple[Component, ...]:
    """Given a scan, return its components, largest first; together they are the whole scan.

    `free_bytes` of `database` and `chroma_store` come from their headers. With the tables of a
    copy of `chroma.sqlite3`, that file is divided; with the segments in use, orphans stand apart.
    """
    usage = dict(seen.usage)
    for name, (held, on) in seen.segments.items():
        used = used_segments is None or name in used_segments
        key = ("chroma_vectors" if used else "chroma_orphans", on)
        usage[key] = usage.get(key, Usage()) + held
    kinds = _chroma_kinds(chroma_tables)
    for name, on in tuple(usage):
        free = {f"{name.split('_')[0]}_free": free_bytes.get(name, 0)}
        if name == "chroma_store" and kinds:
            _divide(usage, (name, on), {**free, **kinds}, "chroma_documents")
        elif name in ("database", "chroma_store"):
            _divide(usage, (name, on), free, name)
    found = [
        Component(name, LABELS[name], u.allocated_bytes, u.apparent_bytes, u.files, on)
        for (name, on), u in usage.items()
    ]
    order = tuple(LABELS)
    return tuple(sorted(found, key=lambda c: (-c.allocated_bytes, order.index(c.name))))


def _chroma_kinds(tables: Iterable[database.Table]) -> dict[str, int]:
    """Bytes of the full-text index and of the queue; empty where SQLite cannot tell (no dbstat)."""
    kinds: dict[str, int] = {}
    for table in tables:
        if table.allocated_bytes is None:
            return {}
        kind = "chroma_queue" if table.name.startswith("embeddings_queue") else ""
        kind = "chroma_search" if table.name.startswith("embedding_fulltext") else kind
        if kind:
            kinds[kind] = kinds.get(kind, 0) + table.allocated_bytes
    return kinds


def _divide(
    usage: dict[tuple[str, bool], Usage],
    key: tuple[str, bool],
    parts: Mapping[str, int],
    remainder: str,
) -> None:
    """Divide one component into parts and a remainder, which keep its sums and its files."""
    whole = usage.pop(key)
    apparent, allocated = whole.apparent_bytes, whole.allocated_bytes
    for name, count in parts.items():
        part = Usage(min(count, apparent), min(count, allocated))
        if part.allocated_bytes or part.apparent_bytes:
            usage[(name, key[1])] = part
        apparent -= part.apparent_bytes
        allocated -= part.allocated_bytes
    usage[(remainder, key[1])] = Usage(apparent, allocated, whole.files)


@dataclasses.dataclass(frozen=True, slots=True)
class _Homes:
    """The volume's directories, and the named ones, links above them resolved.

    Without a mount the volume is wherever the data is. `chroma` or `backups` is None if it is
    missing, no directory, or a link that leads out of the volume.
    """

    volume: tuple[Path, ...]
    chroma: Path | None
    backups: tuple[Path, ...]


def _homes(settings: Settings) -> _Homes:
    base = Path(os.path.realpath(settings.volume_mount or settings.database.parent))
    chroma_dir = _named(settings.chroma_dir, base)
    bot = settings.database.parent / "backups"
    named = {_named(path, base): None for path in (settings.backup_dir, bot)}
    backups = tuple(path for path in named if path)
    elsewhere = () if settings.volume_mount else (chroma_dir, *backups)
    return _Homes((base, *(path for path in elsewhere if path)), chroma_dir, backups)


def _named(path: Path, base: Path) -> Path | None:
    """A directory that the settings name, if it is one; a link counts if it stays on the volume."""
    real = Path(os.path.realpath(path))
    inside = volume.place(path).kind != "link" or real.is_relative_to(base)
    return real if inside and volume.place(real).kind == "directory" else None


def _bot_backups(directories: Iterable[Path]) -> list[legacy.BotBackup]:
    """The bot's backups in these directories, newest first."""
    found: list[legacy.BotBackup] = []
    for directory in directories:
        with contextlib.suppress(OSError):
            found += legacy.backups(directory)
    return sorted(found, key=lambda backup: backup.taken_at, reverse=True)


def _places(settings: Settings, homes: _Homes) -> dict[Path, str]:
    """Which component each named place belongs to; what lies below a place belongs to it too."""
    notes = Path(os.path.realpath(settings.database.parent)) / settings.database.name
    found = {database.beside(notes, suffix): "database_wal" for suffix in _SUFFIXES}
    found[notes] = "database"
    for directory in homes.backups:
        found |= {directory / (STORE + suffix): "our_backups" for suffix in _SUFFIXES}
    if root := homes.chroma:
        found |= {root / (chroma.DATABASE + suffix): "chroma_store" for suffix in _SUFFIXES}
        with contextlib.suppress(OSError):
            directories = chroma.segment_directories(root)
            found |= {path: f"{_SEGMENT}{path.name}" for path in directories}
    log = settings.log_file
    with contextlib.suppress(OSError), os.scandir(log.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(log.name)]
        found |= {Path(os.path.realpath(log.parent)) / name: "logs" for name in names}
    return found


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """The paths that exist and lie in none of the others, so that nothing is walked twice."""
    unique = {path for path in paths if os.path.lexists(path)}
    return sorted(path for path in unique if not unique.intersection(path.parents))
