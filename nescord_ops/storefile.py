"""The file that the store lives in: its schema, opening it, and what its errors mean.

Rollback journal rather than WAL: one file at rest, and a first backup is written once, not twice.
`synchronous=FULL` with one exclusive transaction a generation leaves, after a crash at any moment,
what was there before; the lock is taken at the start, so that memory stays within the cache while
others read. The file is made whole beside its place and linked there: an empty one is damage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from nescord_ops import database, volume
from nescord_ops.errors import StoreError
from nescord_ops.results import Result

APPLICATION_ID = 0x4E4F5053  # "NOPS", in the file's header
VERSION = 1
BUSY_SECONDS = 120.0
_SQLITE_PAGE_BYTES = 4096  # the end of a packed page is unused: 3 % of the store, 1 % with 2048
_CACHE_KIB = 16_384
_EVIDENCE_CHARS = 4 << 20  # JSON takes up to 25 times as much when it is read; ours has some 10 kB
SCHEMA = """
CREATE TABLE generation (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, taken_at TEXT NOT NULL,
    evidence TEXT NOT NULL, added_bytes INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE file (
    number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, path BLOB NOT NULL,
    mode INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, size INTEGER, digest BLOB,
    UNIQUE (path, generation)) STRICT;
CREATE INDEX file_generation ON file (generation);
CREATE TABLE place (
    file INTEGER NOT NULL, position INTEGER NOT NULL, page INTEGER NOT NULL,
    PRIMARY KEY (file, position)) STRICT, WITHOUT ROWID;
CREATE TABLE page (
    number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, base INTEGER,
    data BLOB NOT NULL) STRICT;
CREATE TABLE suspect (page INTEGER PRIMARY KEY) STRICT;
"""
Progress = Callable[[int, int], None]  # done, in all
_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOST = "move it away and pull a copy from off site, or begin a new store"
_HINTS = {
    "BUSY": "another backup is at work: wait for it to end, then run this again",
    "CANTOPEN": "see that the directory exists and is writable",
    "FULL": "make room, for example with `nescord-ops backup prune --keep 2`",
    "IOERR": "see whether the volume is full or failing: `df`, and the log of the host",
    "NOMEM": "see that there is memory, and run it again",
    "READONLY": "make the backup directory writable; on Railway volumes belong to root",
}
CHECK_HINT = "nescord-ops backup check names what is damaged and what is whole"


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """An open store: its file and the one connection to it."""

    path: Path
    connection: sqlite3.Connection


@dataclasses.dataclass(frozen=True, slots=True)
class Generation(Result):
    """One captured tree: `size_bytes` of files, for which the store grew by `added_bytes`.

    `intact` says that this record is the one that was written; the contents are for `check`.
    """

    id: str
    taken_at: datetime
    evidence: Mapping[str, Any]
    files: int
    size_bytes: int
    added_bytes: int
    intact: bool


def explained(
    work: Callable[Concatenate[Store, _P], _R],
) -> Callable[Concatenate[Store, _P], _R]:
    """Make what SQLite and the system say into a StoreError that names the file and a way on."""

    @functools.wraps(work)
    def explained(store: Store, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return work(store, *args, **kwargs)
        except (sqlite3.Error, OSError, UnicodeError) as error:
            _explain(store.path, error)

    return explained


def _explain(path: Path, error: Exception) -> NoReturn:
    """Raise StoreError from what SQLite or the system says of a store."""
    kind = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").split("_")[0]
    if database.of_damage(error):
        _read_through(path)
    text, hint = str(error), _HINTS.get(kind, CHECK_HINT)
    if isinstance(error, OSError):
        path = Path(os.fsdecode(error.filename or path))
        text, hint = error.strerror or text, "see that it exists, and has room"
    raise StoreError(f"{path}: {text}", hint) from error


def _read_through(path: Path) -> None:
    """Raise StoreError if the disk does not give a store: SQLite calls that damaged as well."""
    try:
        volume.read_through(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", _HINTS["IOERR"]) from error


@contextlib.contextmanager
def open_store(
    path: Path, *, create: bool = False, busy_seconds: float = BUSY_SECONDS
) -> Iterator[Store]:
    """Given the path of a store, open it; with `create`, make it if nothing is there.

    Waits `busy_seconds` for another process. Raise StoreError if it is missing, empty, no store,
    of a newer version, or unreadable.
    """
    try:
        if create and not path.exists():
            _create(path)
        if path.stat().st_size == 0:
            raise StoreError(f"{path} is empty: its content was lost", _LOST)
        if database.names_another(path):
            text = f"the journal of {path} names another file, which SQLite would delete"
            raise StoreError(text, "see who wrote it; without it: nescord-ops backup check")
        connection = sqlite3.connect(
            database.uri(path, "mode=rw"), uri=True, isolation_level=None, timeout=busy_seconds
        )
    except (OSError, sqlite3.Error) as error:
        _explain(path, error)
    with contextlib.closing(connection), database.confined(connection):
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            _recognise(path, connection)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        except (sqlite3.Error, UnicodeError) as error:  # its own messages may be damaged
            _explain(path, error)
        yield Store(path, connection)


def _recognise(path: Path, connection: sqlite3.Connection) -> None:
    """Raise StoreError unless this is a store that this version can read."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if not database.of_damage(error):
            raise
        _read_through(path)
        raise StoreError(f"{path} is damaged or no store: {error}", _LOST) from error
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a SQLite database, but no store of backups", _LOST)
    if version != VERSION:
        raise StoreError(
            f"{path} has version {version}, this program knows {VERSION}", "upgrade nescord-ops"
        )


def _create(path: Path) -> None:
    """Make an empty store beside its place and link it there: whole or absent, whoever is first.

    Closed before it is linked: closing a file drops all locks that this process has on it.
    """
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as empty, open(handle, "wb") as file:
            empty.executescript(
                f"PRAGMA page_size={_SQLITE_PAGE_BYTES}; PRAGMA auto_vacuum=FULL;"
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; {SCHEMA}"
            )
            file.write(empty.serialize())
            file.flush()
            os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        Path(beside).unlink()
    sync(path.parent)


def structure_problems(db: sqlite3.Connection) -> list[str]:
    """Return what is wrong with the header, the tables' definitions and SQLite's own structure."""
    problems = []
    for setting, expected in (
        ("journal_mode", "delete"),
        ("encoding", "UTF-8"),
        ("auto_vacuum", 1),
    ):
        (value,) = db.execute(f"PRAGMA {setting}").fetchone()
        if value != expected:
            problems.append(f"{setting} is {value!r}, not {expected!r}")
    found = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql NOTNULL")]
    if found != [sql.strip() for sql in SCHEMA.split(";") if sql.strip()]:
        problems.append("the definitions of the tables are damaged")
    checked = [text for (text,) in db.execute("PRAGMA integrity_check(20)")]
    return problems + [text for text in checked if text != "ok"]


@contextlib.contextmanager
def transaction(store: Store, kind: str) -> Iterator[sqlite3.Connection]:
    """Run the block in one transaction (DEFERRED, IMMEDIATE or EXCLUSIVE), all of it or nothing."""
    store.connection.execute(f"BEGIN {kind}")
    try:
        yield store.connection
        store.connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            store.connection.execute("ROLLBACK")
        raise


def number_of(db: sqlite3.Connection, generation_id: str) -> int:
    """Return a generation's number in the file; raise StoreError if there is none of that id."""
    row = db.execute("SELECT number FROM generation WHERE id = ?", (generation_id,)).fetchone()
    if row is None:
        raise StoreError(f"there is no generation {generation_id!r}", "nescord-ops backup list")
    return int(row[0])


def page_digest(position: int, name: bytes) -> bytes:
    """Return the line that one page adds to its file's digest: position and name in hex."""
    return f"{position} {name.hex()}\n".encode()


def file_digest(db: sqlite3.Connection, file: int) -> bytes:
    """Return the SHA-256 over the list of a file's pages; the casts keep damaged rows readable."""
    digest = hashlib.sha256()
    rows = (
        "SELECT CAST(position AS INTEGER), CAST(name AS BLOB) FROM place"
        " JOIN page ON page.number = page WHERE file = ? ORDER BY position"
    )
    for position, name in db.execute(rows, (file,)):
        digest.update(page_digest(position, name or b""))
    return digest.digest()


def manifest_digest(db: sqlite3.Connection, number: int) -> bytes:
    """Return the SHA-256 over everything known of a generation: a JSON line a row, bytes in hex."""
    facts = "SELECT id, taken_at, evidence, added_bytes FROM generation WHERE number = ?1"
    files = (
        "SELECT path, mode, mtime_ns, size, digest FROM file WHERE generation = ?1 ORDER BY path"
    )
    digest = hashlib.sha256()
    for query in (facts, files):
        for row in db.execute(query, (number,)):
            digest.update(json.dumps(row, default=bytes.hex).encode() + b"\n")
    return digest.digest()


def seal(db: sqlite3.Connection, number: int) -> None:
    """Write a generation's digest, the last thing that is done to its record."""
    digest = manifest_digest(db, number)
    db.execute("UPDATE generation SET digest = ? WHERE number = ?", (digest, number))


def read_generation(db: sqlite3.Connection, number: int) -> Generation:
    """Return a generation by its number in the file; nothing in a damaged record is parsed."""
    row = db.execute(
        "SELECT id, taken_at, evidence, added_bytes, digest FROM generation WHERE number = ?",
        (number,),
    ).fetchone()
    if row is None:
        raise StoreError(f"the record of generation {number} is missing", CHECK_HINT)
    identity, taken_at, evidence, added, digest = row
    damaged = Generation(str(identity), datetime.fromtimestamp(0, UTC), {}, 0, 0, 0, intact=False)
    if not isinstance(evidence, str) or len(evidence) > _EVIDENCE_CHARS:
        return damaged
    if digest != manifest_digest(db, number):
        return damaged
    try:  # whoever altered it may have sealed it anew
        moment, facts = datetime.fromisoformat(taken_at).astimezone(UTC), json.loads(evidence)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return damaged
    files, size = db.execute(
        "SELECT count(size), coalesce(sum(size), 0) FROM file WHERE generation = ?", (number,)
    ).fetchone()
    if not (isinstance(facts, dict) and all(type(n) is int for n in (size, added))):
        return damaged
    return Generation(
        id=str(identity),
        taken_at=moment,
        evidence=facts,
        files=files,
        size_bytes=size,
        added_bytes=added,
        intact=True,
    )


def sync(directory: Path) -> None:
    """Make the entries of a directory last (fsync(2))."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
