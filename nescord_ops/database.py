"""A SQLite file from outside and inside: its header, its tables, its integrity.

The header is read as plain bytes, so a live file needs no connection. Everything else takes a
connection to a copy, opened by `open_copy`; `open_live` is for the schema only.

Sources: https://www.sqlite.org/fileformat2.html (header), https://www.sqlite.org/uri.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote as percent

from nescord_ops.errors import OpsError, UnreadError, VolumeError
from nescord_ops.results import Result

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
VALUE_BYTES = 8 << 20  # the longest text or blob of a row that is read: no note comes near
# integrity_check looks every row up in every index: with SQLite's own 2,000 KiB it reads 3.3 times
# as much of a `chroma.sqlite3` of 430 MB
CACHE_KIB = 16_384
MIGRATIONS = range(1, 9)
BOT_TABLES = ("knowledge_notes", "note_links", "schema_migrations", "token_usage")
SEARCH_TABLE = "knowledge_notes_fts"
MACHINE_HINT = "see that TMPDIR has room and that its disk is well, and run it again"
RIGHTS_HINT = "run it as the bot's user or root"
_MACHINE_CODES = (
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
    sqlite3.SQLITE_CANTOPEN,
)
_SUPER = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names a super-journal
# What these say is about the path; all else is the machine's, or a lack of rights.
_OF_THE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
# integrity_check's words for a page that it could not have, with SQLite's code for why
_NO_PAGE = re.compile(r"unable to get the page\. error code=(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Header(Result):
    """The first 100 bytes of a SQLite file, with the sizes of the files beside it, in bytes."""

    page_bytes: int
    pages: int
    free_pages: int
    wal_mode: bool
    file_bytes: int
    wal_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Table(Result):
    """One table with its indices: `allocated_bytes` is None where SQLite lacks `dbstat`."""

    name: str
    rows: int | None
    allocated_bytes: int | None


def decode(raw: bytes) -> str:
    """SQLite's text as far as it is UTF-8; other bytes are shown as escapes, never an error."""
    return raw.decode("utf-8", "backslashreplace")


def quote(name: str) -> str:
    """Given any SQL identifier, return it quoted."""
    return '"' + name.replace('"', '""') + '"'


def beside(path: Path, suffix: str) -> Path:
    """Given a database, return the path of its `-wal`, `-shm` or `-journal`."""
    return path.with_name(path.name + suffix)


def names_another(path: Path) -> bool:
    """Whether a database's `-journal` names another file, which SQLite deletes as it rolls back.

    Source: sqlite.org/fileformat2.html#the_rollback_journal and pager.c, seen to happen.
    """
    try:
        handle = os.open(beside(path, "-journal"), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return os.pread(handle, 8, max(0, os.fstat(handle).st_size - 8)) == _SUPER
    finally:
        os.close(handle)


def read_header(path: Path) -> Header:
    """Given a SQLite file, live or copied, return its header without opening a connection.

    Raise VolumeError if it is no regular file, empty, truncated or not SQLite, and UnreadError if
    it could not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise refusal(f"{path} cannot be opened", error) from error
    try:
        size = os.fstat(handle).st_size
        raw = os.read(handle, HEADER_BYTES)
    except OSError as error:
        raise refusal(f"{path} cannot be read", error) from error
    finally:
        os.close(handle)
    if not raw:
        raise VolumeError(f"{path} is empty (0 bytes)")
    if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
        raise VolumeError(f"{path} is not a SQLite database")
    (page,) = struct.unpack_from(">H", raw, 16)
    page = 65536 if page == 1 else page
    changes, pages, _, free = struct.unpack_from(">4I", raw, 24)
    (valid_for,) = struct.unpack_from(">I", raw, 92)
    if page < 512 or page & (page - 1):
        raise VolumeError(f"{path} has a damaged header: page size {page}")
    if changes == valid_for and size < pages * page and not beside(path, "-wal").exists():
        raise VolumeError(f"{path} is truncated: {size:,} of {pages * page:,} bytes")
    try:
        return Header(page, pages, free, raw[18] == 2, size, _size(beside(path, "-wal")))
    except OSError as error:
        raise refusal(f"{path} cannot be read", error) from error


def refusal(text: str, error: OSError) -> OpsError:
    """Given an error of the system's, return it as one of ours.

    VolumeError if it is about the path, UnreadError if it says nothing of the file.
    """
    text = f"{text}: {error.strerror}"
    if error.errno in _OF_THE_PATH:
        return VolumeError(text)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    return UnreadError(text, RIGHTS_HINT if denied else MACHINE_HINT)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def uri(path: Path, options: str) -> str:
    """Given a path with any bytes in its name, return the SQLite URI that opens just that file."""
    return f"file:{percent(os.fsencode(path))}?{options}"


@contextlib.contextmanager
def open_live(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a live database for reading; nothing is created beside one that is at rest.

    A database without a `-wal` is opened `immutable`, which takes no lock and makes no file; one
    with a `-wal` belongs to a bot, alive or killed, and is opened read-only, where SQLite itself
    may write its `-shm`.
    """
    at_rest = not beside(path, "-wal").exists() and not beside(path, "-journal").exists()
    options = "mode=ro&immutable=1" if at_rest else "mode=ro"
    connection = sqlite3.connect(uri(path, options), uri=True, timeout=5, isolation_level=None)
    with contextlib.closing(connection), confined(connection):
        yield connection


@contextlib.contextmanager
def open_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy for reading, with every text decoded as far as it is UTF-8 (never raising).

    Its schema and its text are hostile: see `confined`.
    """
    connection = sqlite3.connect(uri(path, "mode=ro&immutable=1"), uri=True, isolation_level=None)
    with contextlib.closing(connection), confined(connection):
        connection.text_factory = decode
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA temp_store=FILE")
        yield connection


@contextlib.contextmanager
def confined(connection: sqlite3.Connection) -> Iterator[None]:
    """Let nothing in a hostile schema run, and no value of it fill the memory.

    A view or a trigger may take for ever (sqlite.org/lang_with.html), and neither store has a view
    that anything here reads. Raises sqlite3.DatabaseError, also in place of the UnicodeDecodeError
    that Python has for a message of SQLite's with a damaged name in it.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
    connection.set_authorizer(_authorized)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        yield
    except UnicodeDecodeError as error:
        damaged = sqlite3.DatabaseError(f"a name in it is damaged: {error.object!r:.200}")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        damaged.sqlite_errorname = "SQLITE_CORRUPT"
        raise damaged from error


def _authorized(
    action: int, _first: str | None, _second: str | None, _schema: str | None, inner: str | None
) -> int:
    """Deny what a view or a trigger (`inner`) does, and recursion, which no query here needs."""
    denied = inner is not None or action == sqlite3.SQLITE_RECURSIVE
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


def table_names(connection: sqlite3.Connection) -> set[str]:
    """Return the names of every table, virtual ones included."""
    return {
        name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")
    }


def migrations(connection: sqlite3.Connection) -> list[int]:
    """Return the versions that `schema_migrations` records, in order."""
    rows = connection.execute("SELECT version FROM schema_migrations ORDER BY version")
    return [version for (version,) in rows if isinstance(version, int)]


def integrity(connection: sqlite3.Connection, *, quick: bool = False) -> list[str]:
    """Run `PRAGMA integrity_check`, or `quick_check`, on a copy; return its complaints.

    Raise VolumeError if the disk would not give the copy back, which says nothing about it.
    """
    try:
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")  # the first to read the schema
        rows = connection.execute(
            f"PRAGMA {'quick' if quick else 'integrity'}_check(20)"
        ).fetchall()
    except sqlite3.DatabaseError as error:
        if of_the_machine(error):
            raise VolumeError(str(error), MACHINE_HINT) from error
        return [str(error)]
    lines = [line for row in rows for line in str(row[0]).splitlines()]
    for line in lines:
        if (code := _NO_PAGE.search(line)) and int(code[1]) & 0xFF in _MACHINE_CODES:
            raise VolumeError(f"the copy could not be read: {line}", MACHINE_HINT)
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def of_the_machine(error: BaseException | None) -> bool:
    """Whether an error of SQLite's is the disk's or the memory's, and no damage of the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _MACHINE_CODES


def of_damage(error: BaseException | None) -> bool:
    """Whether SQLite calls a file damaged, as it also does one that the disk does not give."""
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in damaged


def foreign_key_orphans(connection: sqlite3.Connection) -> dict[str, int]:
    """Run `PRAGMA foreign_key_check`; return how many rows of each table point at nothing."""
    orphans: dict[str, int] = {}
    for table, *_ in connection.execute("PRAGMA foreign_key_check"):
        orphans[table] = orphans.get(table, 0) + 1
    return orphans


def tables(connection: sqlite3.Connection) -> tuple[Table, ...]:
    """Return every ordinary table with its rows and bytes (indices included), largest first.

    A table that cannot be counted has None for rows; `dbstat` is in most builds of SQLite only.
    """
    owners: dict[str, str] = dict(
        connection.execute("SELECT name, tbl_name FROM sqlite_schema WHERE rootpage > 0").fetchall()
    )
    pages: dict[str, int] = {}
    try:
        pages = dict(
            connection.execute("SELECT name, pgsize FROM dbstat WHERE aggregate = TRUE").fetchall()
        )
    except sqlite3.DatabaseError:
        known = False
    else:
        known = True
    allocated: dict[str, int] = dict.fromkeys(owners.values(), 0)
    for name, count in pages.items():
        owner = owners.get(name, name)
        allocated[owner] = allocated.get(owner, 0) + count
    found = [
        Table(name, rows(connection, name), count if known else None)
        for name, count in allocated.items()
    ]
    return tuple(sorted(found, key=lambda t: (-(t.allocated_bytes or 0), t.name)))


def rows(connection: sqlite3.Connection, table: str) -> int | None:
    """Return how many rows a table has, or None if damage keeps it from being counted.

    Raise sqlite3.DatabaseError if it is the disk that does not give them.
    """
    try:
        (count,) = connection.execute(f"SELECT count(*) FROM {quote(table)}").fetchone()
    except sqlite3.DatabaseError as error:
        if of_the_machine(error):
            raise
        return None
    return int(count)
