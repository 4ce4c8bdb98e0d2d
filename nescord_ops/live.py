"""What the live files show without a copy: headers, the schema, and what this runs with."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nescord_ops import __version__, chroma, database, show, volume
from nescord_ops.checks import NOTHING_TO_DO, RESTORE_PROVEN, Check, fail, ok, unknown, warn
from nescord_ops.doubt import guarded, refused
from nescord_ops.errors import UnreadError, VolumeError
from nescord_ops.settings import Settings

WAL_WARN_BYTES = 16 << 20


def stores(settings: Settings) -> Iterator[Check]:
    """The checks of both live stores from outside; only stats, headers and the schema are read."""
    yield from _database(settings)
    yield from _chroma(settings)


def _database(settings: Settings) -> Iterator[Check]:
    """The live database: header, WAL, schema and migrations (I12)."""
    path = settings.database
    if volume.place(path).kind != "file":
        return
    try:
        header = database.read_header(path)
    except (VolumeError, UnreadError) as error:
        yield refused("database.file", error, f"stop the bot and {RESTORE_PROVEN}")
        return
    size = header.file_bytes
    yield ok("database.file", f"SQLite, {show.size(size)}", value=size, unit="bytes")
    if header.wal_mode:
        yield ok("database.journal", "journal mode WAL", value="wal", limit="wal")
    else:
        hint = "the bot sets WAL itself: is another program writing to this file?"
        text = "journal mode is not WAL: readers block the bot"
        yield warn("database.journal", text, hint, value="delete", limit="wal")
    details = {"value": header.wal_bytes, "unit": "bytes", "limit": WAL_WARN_BYTES}
    text = f"{show.size(header.wal_bytes)} of the newest notes are in the -wal file"
    if header.wal_bytes > WAL_WARN_BYTES:
        hint = "normal after a crash: never delete it; start the bot, which folds it in"
        yield warn("database.wal", text, hint, **details)
    else:
        yield ok("database.wal", text, **details)
    yield from guarded("database.schema", lambda: _schema(path))


def _schema(path: Path) -> Iterator[Check]:
    with database.open_live(path) as connection:
        tables = database.table_names(connection)
        recorded = database.migrations(connection) if "schema_migrations" in tables else []
    missing = [name for name in database.BOT_TABLES if name not in tables]
    if missing:
        hint = "is this the bot's database? check DATABASE_URL; else restore a backup"
        yield fail("database.schema", f"no table {', '.join(missing)}", hint)
        return
    yield ok("database.schema", f"{len(tables)} tables, the bot's among them", value=len(tables))
    gaps = [str(version) for version in database.MIGRATIONS if version not in recorded]
    hint = "start the bot once: it migrates by itself; else look for the error in its log"
    if gaps:
        text = f"{'migration' if len(gaps) == 1 else 'migrations'} {', '.join(gaps)} not recorded"
        yield warn("database.migrations", text, hint, value=len(gaps), unit="migrations")
    else:
        yield ok("database.migrations", f"migrations 1 to {max(recorded)} are recorded")
    if database.SEARCH_TABLE in tables:
        yield ok("database.search", f"{database.SEARCH_TABLE} exists")
    elif 5 not in recorded:
        text = f"no {database.SEARCH_TABLE}: migration 5, which makes it, is not recorded"
        yield warn("database.search", text, hint)
    else:
        text = f"{database.SEARCH_TABLE} does not exist although migration 5 is recorded"
        hint = f"{NOTHING_TO_DO}, and no data is lost: a known defect of the bot's migration; "
        hint += "keyword search finds nothing, search by meaning works"
        yield warn("database.search", text, hint)


def _chroma(settings: Settings) -> Iterator[Check]:
    """The live Chroma directory from outside: the header of its SQLite file."""
    root = settings.chroma_dir
    if not os.access(os.path.join(root, ""), os.R_OK | os.X_OK):  # noqa: PTH118 - a directory
        return
    try:
        header = database.read_header(root / chroma.DATABASE)
    except (VolumeError, UnreadError) as error:
        yield refused(
            "chroma.file", error, f"check CHROMADB_PERSIST_DIRECTORY; else {RESTORE_PROVEN}"
        )
        return
    size = header.file_bytes
    yield ok("chroma.file", f"{chroma.DATABASE}, {show.size(size)}", value=size, unit="bytes")


def versions() -> Check:
    """What this ran with: a store opened by a newer chromadb is migrated, with no way back."""
    found = {"nescord-ops": __version__, "Python": platform.python_version()}
    found["SQLite"] = sqlite3.sqlite_version
    try:
        found["chromadb"] = metadata.version("chromadb")
    except metadata.PackageNotFoundError:
        return unknown("versions", "chromadb is not installed", "pip install chromadb")
    return ok("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
