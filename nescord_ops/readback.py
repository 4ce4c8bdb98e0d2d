"""Reading the store back without trusting it: checking every byte, and writing trees out again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nescord_ops import pages, volume
from nescord_ops.database import of_the_machine
from nescord_ops.errors import StoreError
from nescord_ops.results import Result
from nescord_ops.storefile import (
    CHECK_HINT,
    Generation,
    Progress,
    Store,
    explained,
    file_digest,
    number_of,
    page_digest,
    read_generation,
    structure_problems,
    sync,
    transaction,
)

_UNREADABLE = (sqlite3.DatabaseError, UnicodeError)
_OPEN_FILES = 64  # written, and waiting to be synced
_COLUMNS = "CAST(page.name AS BLOB), CAST(page.data AS BLOB), CAST(base.data AS BLOB)"
_Made = TypeVar("_Made")
_Listed = tuple[bytes, int, int, int, int | None, bytes]  # path, number, mode, mtime, size, digest
Piece = tuple[bytes, bytes]  # content, and a zstd frame of it
_Row = tuple[int, bytes, bytes, bytes | None]  # number or position, name, data, the base's data


@dataclasses.dataclass(frozen=True, slots=True)
class Damage(Result):
    """One thing that is wrong: in a file of a generation, in a generation, or in the store.

    `generation_id` and `path` are empty where the damage is not tied to one.
    """

    generation_id: str
    path: str
    problem: str


@explained
def check(
    store: Store, generation_id: str | None = None, *, progress: Progress | None = None
) -> list[Damage]:
    """Read everything, or what one generation needs, and return all damage: none is whole.

    Every page is unpacked and hashed once however many generations use it; then the lists of
    pages, the records and SQLite's own structure: all of it twice where anything is damaged, as the
    disk may have failed. Progress counts pages. Writes nothing but the numbers of damaged pages,
    which the next backup with the same content then mends. Raise StoreError if there is no such
    generation, or if the disk does not give the store.
    """
    found = _look(store, generation_id, progress)
    if found:
        volume.read_through(store.path)
        found = _look(store, generation_id, progress)
    with contextlib.suppress(sqlite3.DatabaseError):  # the store may be read-only, or in pieces
        if store.connection.execute("SELECT 1 FROM temp.bad").fetchone():
            with transaction(store, "IMMEDIATE") as db:
                db.execute("INSERT OR IGNORE INTO suspect SELECT page FROM temp.bad")
    return found


def _look(store: Store, generation_id: str | None, progress: Progress | None) -> list[Damage]:
    found: list[Damage] = []
    with transaction(store, "DEFERRED") as db:
        wanted = None if generation_id is None else number_of(db, generation_id)
        with _finding(found, "the structure"):
            found += [Damage("", "", problem) for problem in structure_problems(db)]
        db.execute("CREATE TEMP TABLE IF NOT EXISTS bad (page INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM temp.bad")
        with _finding(found, "the list of pages"):
            _check_pages(db, wanted, progress or (lambda _done, _all: None))
        with _finding(found, "the list of generations"):
            numbers = "SELECT number FROM generation WHERE ?1 IS NULL OR number = ?1"
            for (number,) in db.execute(f"{numbers} ORDER BY number", (wanted,)).fetchall():
                with _finding(found, "the record of a generation"):
                    found += _check_generation(db, number)
    return found


@contextlib.contextmanager
def _finding(found: list[Damage], what: str) -> Iterator[None]:
    """Turn what SQLite cannot read into damage, and go on."""
    try:
        yield
    except (*_UNREADABLE, StoreError) as error:
        busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
        if busy or of_the_machine(error):
            raise
        found.append(Damage("", "", f"{what} cannot be read: {error}"))


def _check_pages(db: sqlite3.Connection, generation: int | None, progress: Progress) -> None:
    """Collect in `bad` the numbers of all pages that are not what their names say."""
    used = "SELECT page FROM place JOIN file ON file.number = file WHERE generation = ?1"
    numbers = f"FROM page WHERE ?1 IS NULL OR number IN ({used})"
    (total,) = db.execute(f"SELECT count(*) {numbers}", (generation,)).fetchone()
    rows = (
        _page(db, number)
        for (number,) in db.execute(f"SELECT number {numbers} ORDER BY number", (generation,))
    )
    done = 0
    with ThreadPoolExecutor(pages.WORKERS) as pool:
        for bad in pages.ahead(pool, _bad, pages.batched(rows)):
            db.executemany("INSERT OR IGNORE INTO temp.bad VALUES (?)", [(n,) for n in bad if n])
            done += len(bad)
            progress(done, total)


def _page(db: sqlite3.Connection, number: int) -> _Row:
    """Return a page and its base, or one that cannot be right where SQLite cannot read it."""
    rows = (
        f"SELECT page.number, {_COLUMNS} FROM page"
        " LEFT JOIN page AS base ON base.number = page.base WHERE page.number = ?"
    )
    try:
        row: _Row | None = db.execute(rows, (number,)).fetchone()
    except _UNREADABLE as error:
        if of_the_machine(error):
            raise
        row = None
    return row if row and None not in row[1:3] else (number, b"", b"", None)


def _bad(batch: list[_Row]) -> list[int]:
    """Return a number for each page: its own if it is bad, else 0."""
    numbers = []
    for number, name, data, base in batch:
        try:
            pages.unpack(data, base, name)
            numbers.append(0)
        except ValueError:
            numbers.append(number)
    return numbers


def _check_generation(db: sqlite3.Connection, number: int) -> Iterator[Damage]:
    generation = read_generation(db, number)
    if not generation.intact:
        yield Damage(generation.id, "", "its record is not the one that was written")
    files = "SELECT number, CAST(path AS BLOB), digest FROM file WHERE generation = ?"
    for file, name, digest in db.execute(f"{files} AND size NOTNULL", (number,)).fetchall():
        path = os.fsdecode(name or b"")
        harmed = "SELECT count(*) FROM place WHERE file = ? AND page IN (SELECT page FROM temp.bad)"
        try:
            (count,) = db.execute(harmed, (file,)).fetchone()
            listed = file_digest(db, file) == digest
        except _UNREADABLE as error:
            if of_the_machine(error):
                raise
            yield Damage(generation.id, path, f"its pages cannot be listed: {error}")
            continue
        if count:
            yield Damage(
                generation.id, path, f"{count} of its pages {'is' if count == 1 else 'are'} damaged"
            )
        elif not listed:
            yield Damage(generation.id, path, "its list of pages is damaged")


@explained
def extract(
    store: Store, generation_id: str, to: Path, *, progress: Progress | None = None
) -> Generation:
    """Write a generation's tree into the directory `to`, absent or empty, and sync it to disk.

    Every page, file and record is verified on the way. Raise StoreError, with nothing left behind,
    if one is damaged, or a name leads out of `to`. Progress counts bytes.
    """
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise StoreError(f"{to} is there already, and not an empty directory", "name a new one")
    with transaction(store, "DEFERRED") as db:
        generation, rows = _listing(db, generation_id)
        entries = [(confined(to, row[0]), *row[1:]) for row in rows]
        made = not to.exists()
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_tree(db, to, entries, generation.size_bytes, progress)
        except BaseException:
            volume.clear(to)
            if made:
                to.rmdir()
            raise
    return generation


def _listing(db: sqlite3.Connection, generation_id: str) -> tuple[Generation, list[_Listed]]:
    """Return a generation and its entries, parents first. Raise StoreError if it is damaged."""
    number = number_of(db, generation_id)
    generation = read_generation(db, number)
    if not generation.intact:
        raise StoreError(f"the record of {generation_id} is damaged", CHECK_HINT)
    rows = db.execute(
        "SELECT path, number, mode, mtime_ns, size, digest FROM file WHERE generation = ?"
        " ORDER BY path",
        (number,),
    )
    return generation, rows.fetchall()


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory of a generation: `size` in bytes, None for a directory.

    `content` yields all its bytes in pieces, holes as zeros, each with a zstd frame of it; a page
    is verified before it is handed out.
    """

    path: bytes
    mode: int
    mtime_ns: int
    size: int | None
    content: Iterator[Piece]


def entries(store: Store, generation_id: str) -> Iterator[Entry]:
    """Yield what a generation holds, parents first, without laying it out; see `Entry`.

    Read each content to its end before the next entry. The store is not locked meanwhile. Raise
    StoreError where something is damaged, or pruned, also in the middle.
    """
    db = store.connection
    with ThreadPoolExecutor(pages.WORKERS) as pool:
        for path, file, mode, mtime_ns, size, digest in _listing(db, generation_id)[1]:
            confined(Path(), path)
            content = _content(db, pool, path, file, size or 0, digest)
            yield Entry(path, mode, mtime_ns, size, iter(()) if size is None else content)


def _content(
    db: sqlite3.Connection, pool: Executor, path: bytes, file: int, size: int, digest: bytes
) -> Iterator[Piece]:
    done = 0
    try:
        for batch in _pages_of(db, pool, file, digest, functools.partial(_framed, size)):
            for position, content, frame in batch:
                yield from _zeros(position * pages.PAGE_BYTES - done)
                yield content, frame
                done = position * pages.PAGE_BYTES + len(content)
    except ValueError as error:
        raise StoreError(f"{os.fsdecode(path)} is damaged: {error}", CHECK_HINT) from error
    yield from _zeros(size - done)


def _framed(size: int, batch: list[_Row]) -> list[tuple[int, bytes, bytes]]:
    """Return (position, content, frame) of pages; what is stored whole is its own frame."""
    return [
        (position, content, data if base is None else pages.pack(content, None)[0])
        for (position, content), (_, _, data, base) in zip(
            _unpacked(size, batch), batch, strict=True
        )
    ]


def _zeros(count: int) -> Iterator[Piece]:
    """Yield so many zeros, in pieces of a page."""
    for start in range(0, count, pages.PAGE_BYTES):
        yield _zero(min(pages.PAGE_BYTES, count - start))


@functools.lru_cache(8)
def _zero(length: int) -> Piece:
    return bytes(length), pages.pack(bytes(length), None)[0]


def confined(to: Path, name: bytes) -> Path:
    """Given a name from a store, return it below `to`; raise StoreError if it leads elsewhere."""
    parts = name.split(b"/")
    if b"\0" in name or {b"", b".", b".."} & set(parts):
        raise StoreError(f"the store names a file {name!r}, which leads elsewhere", CHECK_HINT)
    return to / os.fsdecode(name)


_Entry = tuple[Path, int, int, int, int | None, bytes]  # target, number, mode, mtime, size, digest


def _write_tree(
    db: sqlite3.Connection, to: Path, entries: list[_Entry], total: int, progress: Progress | None
) -> None:
    """Write files and directories, parents first; give directories their modes last, inmost first.

    A file is synced and closed by a worker while the next one is being written.
    """
    done = 0
    with ThreadPoolExecutor(pages.WORKERS) as pool, ThreadPoolExecutor(1) as closer:
        closing: deque[Future[None]] = deque()
        for path, file, mode, mtime_ns, size, digest in entries:
            if size is None:
                path.mkdir(mode=0o700)
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            handle = os.open(path, flags, 0o600)
            try:
                os.ftruncate(handle, size)  # what no page covers stays a hole
                writing = functools.partial(_write, handle, size)
                deque(_pages_of(db, pool, file, digest, writing), maxlen=0)
            except ValueError as error:
                raise StoreError(
                    f"{path.relative_to(to)} is damaged: {error}", CHECK_HINT
                ) from error
            finally:
                closing.append(closer.submit(_close, handle, mode, mtime_ns))
            if len(closing) > _OPEN_FILES:
                closing.popleft().result()
            done += size
            if progress:
                progress(done, total)
        for closed in closing:
            closed.result()
    for path, _, mode, mtime_ns, size, _ in reversed(entries):
        if size is None:
            path.chmod(mode & 0o777)
            os.utime(path, ns=(mtime_ns, mtime_ns))
            sync(path)
    sync(to)
    sync(to.parent)


def _pages_of(
    db: sqlite3.Connection,
    pool: Executor,
    file: int,
    digest: bytes,
    work: Callable[[list[_Row]], _Made],
) -> Iterator[_Made]:
    """Yield what `work` makes of a file's pages, batch by batch, in order.

    Raise ValueError if a page is missing or damaged, or their list is not the one of `digest`.
    """
    seen = hashlib.sha256()
    query = (
        f"SELECT CAST(place.position AS INTEGER), {_COLUMNS} FROM place"
        " LEFT JOIN page ON page.number = place.page"
        " LEFT JOIN page AS base ON base.number = page.base"
        " WHERE place.file = ? AND place.position > ? ORDER BY place.position LIMIT 12"
    )

    def listed() -> Iterator[list[_Row]]:
        last = -1
        # each batch at once: outside a transaction, the store is locked for no longer
        while rows := db.execute(query, (file, last)).fetchall():
            for position, name, data, _ in rows:
                if None in (position, name, data) or position <= last:
                    raise ValueError(f"page {position} is missing or out of order")
                seen.update(page_digest(position, name))
                last = position
            yield rows

    yield from pages.ahead(pool, work, listed())
    if seen.digest() != digest:
        raise ValueError("its list of pages is damaged")


def _unpacked(size: int, batch: list[_Row]) -> list[tuple[int, bytes]]:
    """Return (position, content) of the pages of a file of that size, each verified."""
    found = []
    for position, name, data, base in batch:
        content = pages.unpack(data, base, name)
        if len(content) != pages.length(size, position):
            raise ValueError(f"page {position} has the wrong length")
        found.append((position, content))
    return found


def _write(handle: int, size: int, batch: list[_Row]) -> None:
    for position, content in _unpacked(size, batch):
        rest, offset = memoryview(content), position * pages.PAGE_BYTES
        while rest:
            written = os.pwrite(handle, rest, offset)
            rest, offset = rest[written:], offset + written


def _close(handle: int, mode: int, mtime_ns: int) -> None:
    try:
        os.fchmod(handle, mode & 0o777)  # no setuid: the store may have been altered
        os.utime(handle, ns=(mtime_ns, mtime_ns))
        os.fsync(handle)
    finally:
        os.close(handle)
