"""The store of backups: generations of a directory tree in one SQLite file.

Contents are cut into pages (`pages`), each distinct page is stored once under its SHA-256, and a
page that resembles the one at the same place in the generation before is stored as the difference
from it, one step deep at most. A generation is a list of files, a file a list of pages. Removing
one never touches another: a page stays while a list, or a difference in a list, needs it.

The store is its own witness. A page is checked against its name, a file against the SHA-256 of
its list of names, a generation against the SHA-256 of everything known about it, the rest by
SQLite's `integrity_check`. Of 3,000 bytes flipped at random in a small store, none went unseen but
those that nothing reads: the unused end of a database page (3 % of a large store), and counters
and reserved bytes in the header.

Measured with 612 MB (405 MB of notes, 209 MB of Chroma) on two cores; README has the benchmark.
Pages of 16, 32, 64 and 128 KiB: store 347, 321, 303 and 292 MB, a day 5.6, 5.3, 5.3 and 4.9 MB
when Chroma rewrote its vectors, CPU for the first backup 4.4, 3.1, 2.6 and 2.4 s, for the next 2.2,
1.7, 1.8 and 1.9 s, memory 44, 48, 56 and 74 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops import pages
from nescord_ops.errors import StoreError
from nescord_ops.readback import Damage, check, extract
from nescord_ops.storefile import (
    CHECK_HINT,
    Generation,
    Progress,
    Store,
    explained,
    file_digest,
    number_of,
    open_store,
    read_generation,
    seal,
    transaction,
)

__all__ = [
    "Damage",
    "Generation",
    "Store",
    "StoreError",
    "add",
    "check",
    "extract",
    "generations",
    "note",
    "open_store",
    "remove",
]
_STEP = 256  # pages removed in one transaction: its journal takes 16 MB of room at most


@explained
def add(
    store: Store,
    generation_id: str,
    root: Path,
    evidence: Mapping[str, Any],
    *,
    taken_at: datetime,
    progress: Progress | None = None,
) -> Generation:
    """Given a tree that holds still, store it and its evidence (JSON values) as one generation.

    Raise StoreError, with nothing stored, if the id is taken, an entry is neither file nor
    directory, a file changes while it is read, or the evidence is too much to be read back.
    """
    with transaction(store, "EXCLUSIVE") as db, ThreadPoolExecutor(pages.WORKERS) as pool:
        if not generation_id or not generation_id.isprintable() or "/" in generation_id:
            raise StoreError(f"{generation_id!r} cannot be an id", "use letters, digits and _")
        if db.execute("SELECT 1 FROM generation WHERE id = ?", (generation_id,)).fetchone():
            raise StoreError(f"there is a generation {generation_id} already", "use another id")
        (number,) = db.execute(
            "INSERT INTO generation (id, taken_at, evidence, added_bytes, digest)"
            " VALUES (?, ?, ?, 0, x'') RETURNING number",
            (generation_id, taken_at.astimezone(UTC).isoformat(), _json(evidence)),
        ).fetchone()
        intake = _Intake(db, progress or (lambda _done, _all: None))
        hashed = pages.ahead(pool, _named, pages.batched(intake.read(number, root)))
        added = intake.insert(pages.ahead(pool, _packed, intake.unknown(hashed)))
        files = "SELECT number FROM file WHERE generation = ? AND size NOTNULL"
        for (file,) in db.execute(files, (number,)).fetchall():
            digest = file_digest(db, file)
            db.execute("UPDATE file SET digest = ? WHERE number = ?", (digest, file))
        db.execute("UPDATE generation SET added_bytes = ? WHERE number = ?", (added, number))
        seal(db, number)
        made = read_generation(db, number)
        if not made.intact:
            text = f"what is known of {generation_id} is too much, and could not be read back"
            raise StoreError(text, "see why the database has so many tables: nescord-ops verify")
        return made


@dataclasses.dataclass(slots=True)
class _Page:
    """A page on its way into the store."""

    file: int
    older: int | None  # the file of that name in the generation before
    position: int
    content: bytes
    name: bytes = b""
    number: int = 0
    base: int | None = None
    base_data: bytes = b""
    base_name: bytes = b""
    data: bytes = b""


def _named(batch: list[_Page]) -> list[_Page]:
    for page in batch:
        page.name = pages.name(page.content)
    return batch


def _packed(batch: list[_Page]) -> list[_Page]:
    """Pack pages, as differences where that pays and the older page is what its name says."""
    for page in batch:
        base = None
        if page.base is not None:
            with contextlib.suppress(ValueError):
                base = pages.unpack(page.base_data, None, page.base_name)
        page.data, differs = pages.pack(page.content, base)
        page.base = page.base if differs else None
        page.content = page.base_data = b""
    return batch


class _Intake:
    """The way of one tree's contents into the store, as a chain of generators."""

    def __init__(self, db: sqlite3.Connection, progress: Progress) -> None:
        self.db = db
        self.progress = progress
        self.next = db.execute("SELECT coalesce(max(number), 0) + 1 FROM page").fetchone()[0]
        self.coming: dict[bytes, int] = {}  # names of pages that are being packed: a few batches

    def read(self, generation: int, root: Path) -> Iterator[_Page]:
        """Insert the files of a tree and yield their pages, in order."""
        entries = sorted(_walk(root))
        total = sum(seen.st_size for _, seen in entries if stat.S_ISREG(seen.st_mode))
        done = 0
        for path, seen in entries:
            regular = stat.S_ISREG(seen.st_mode)
            name = os.fsencode(path.relative_to(root))
            facts = (
                stat.S_IMODE(seen.st_mode),
                seen.st_mtime_ns,
                seen.st_size if regular else None,
            )
            older = self.db.execute(
                "SELECT number FROM file WHERE path = ? ORDER BY generation DESC LIMIT 1", (name,)
            ).fetchone()
            (file,) = self.db.execute(
                "INSERT INTO file (generation, path, mode, mtime_ns, size) VALUES (?, ?, ?, ?, ?)"
                " RETURNING number",
                (generation, name, *facts),
            ).fetchone()
            if regular:
                for position, content in _read_file(path, seen):
                    yield _Page(file, older and older[0], position, content)
                    self.progress(done + position * pages.PAGE_BYTES, total)
                done += seen.st_size
        self.progress(total, total)

    def unknown(self, batches: Iterable[list[_Page]]) -> Iterator[list[_Page]]:
        """Insert the places of pages, and yield the pages that the store does not have."""
        for batch in batches:
            new = []
            for page in batch:
                if page.name in self.coming:
                    page.number = self.coming[page.name]
                elif not self._known(page):
                    self.coming[page.name] = page.number
                    new.append(page)
            rows = [(page.file, page.position, page.number) for page in batch]
            self.db.executemany("INSERT INTO place VALUES (?, ?, ?)", rows)
            if new:
                yield new

    def insert(self, batches: Iterable[list[_Page]]) -> int:
        """Insert packed pages and return their bytes."""
        added = 0
        for batch in batches:
            rows = [(page.number, page.name, page.base, page.data) for page in batch]
            self.db.executemany(
                "INSERT INTO page VALUES (?, ?, ?, ?) ON CONFLICT (name)"
                " DO UPDATE SET base = excluded.base, data = excluded.data",
                rows,
            )
            mended = [(page.number,) for page in batch]
            self.db.executemany("DELETE FROM suspect WHERE page = ?", mended)
            added += sum(len(page.data) for page in batch)
            for page in batch:
                del self.coming[page.name]
        return added

    def _known(self, page: _Page) -> bool:
        """Give a page its number; return False if it must be packed, with its base looked up.

        A page that `check` found damaged is packed again, alone, since others may build on it.
        """
        row = self.db.execute(
            "SELECT number, number IN (SELECT page FROM suspect) FROM page WHERE name = ?",
            (page.name,),
        ).fetchone()
        if row:
            page.number, suspect = row
            return not suspect
        page.number = self.next
        self.next += 1
        self._find_base(page)
        return False

    def _find_base(self, page: _Page) -> None:
        """Look up the whole page that stood, or was built on, at this place before."""
        row = self.db.execute(
            "SELECT base.number, base.name, base.data FROM place"
            " JOIN page ON page.number = place.page"
            " JOIN page AS base ON base.number = coalesce(page.base, page.number)"
            " WHERE place.file = ? AND place.position = ?",
            (page.older, page.position),
        ).fetchone()
        if row:
            page.base, page.base_name, page.base_data = row


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what lies below `root`; raise StoreError for anything but files and directories."""
    for entry in root.iterdir():
        seen = entry.lstat()
        if not (stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)):
            raise StoreError(f"{entry} is neither a file nor a directory", "leave it out")
        yield entry, seen
        if stat.S_ISDIR(seen.st_mode):
            yield from _walk(entry)


def _read_file(path: Path, seen: os.stat_result) -> Iterator[tuple[int, bytes]]:
    """Yield a file's pages; raise StoreError unless it stays what it was seen to be."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield from pages.read(handle, seen.st_size)
        now = os.fstat(handle)
        if (now.st_size, now.st_mtime_ns) != (seen.st_size, seen.st_mtime_ns):
            raise EOFError
    except EOFError as error:
        raise StoreError(f"{path} changed while it was read", "run the backup again") from error
    finally:
        os.close(handle)


@explained
def generations(store: Store) -> list[Generation]:
    """Return every generation, in the order they were stored."""
    with transaction(store, "DEFERRED") as db:
        numbers = db.execute("SELECT number FROM generation ORDER BY number").fetchall()
        return [read_generation(db, number) for (number,) in numbers]


@explained
def note(store: Store, generation_id: str, facts: Mapping[str, Any]) -> Generation:
    """Add facts (JSON values) to a generation's evidence, such as when it was last drilled.

    Raise StoreError if there is no such generation, or if its record is damaged.
    """
    with transaction(store, "IMMEDIATE") as db:
        number = number_of(db, generation_id)
        known = read_generation(db, number)
        if not known.intact:
            raise StoreError(f"the record of {generation_id} is damaged", CHECK_HINT)
        evidence = _json({**known.evidence, **facts})
        db.execute("UPDATE generation SET evidence = ? WHERE number = ?", (evidence, number))
        seal(db, number)
        return read_generation(db, number)


@explained
def remove(store: Store, generation_ids: Sequence[str], *, dry_run: bool = False) -> int:
    """Remove generations and the pages that no other needs; return the bytes that this frees.

    The file shrinks by them, a few MB a transaction, which is the room it needs on a full disk;
    what a crash leaves undone, the next call does. A `dry_run` only counts. Raise StoreError, with
    nothing removed, if one of the generations does not exist.
    """
    before = store.path.stat().st_size
    with transaction(store, "DEFERRED" if dry_run else "EXCLUSIVE") as db:
        numbers = json.dumps([number_of(db, identity) for identity in generation_ids])
        if dry_run:
            count = f"SELECT coalesce(sum(length(data)), 0) FROM page WHERE {_UNNEEDED}"
            return int(db.execute(count, (numbers,)).fetchone()[0])
        db.execute(f"DELETE FROM place WHERE file IN ({_FILES})", (numbers,))
        db.execute(f"DELETE FROM file WHERE number IN ({_FILES})", (numbers,))
        db.execute(f"DELETE FROM generation WHERE number IN ({_GIVEN})", (numbers,))
    removed, version = 1, None
    while removed:
        with transaction(store, "EXCLUSIVE") as db:
            seen = db.execute("PRAGMA data_version").fetchone()
            if seen != version:  # at first, and when another process may have come to need a page
                db.execute("CREATE TEMP TABLE IF NOT EXISTS unneeded (page INTEGER PRIMARY KEY)")
                db.execute("DELETE FROM temp.unneeded")
                found = f"SELECT number FROM page WHERE {_UNNEEDED}"
                db.execute(f"INSERT INTO temp.unneeded {found}", ("[]",))
                version = seen
            last = f"SELECT page FROM temp.unneeded ORDER BY page DESC LIMIT {_STEP}"
            removed = db.execute(f"DELETE FROM page WHERE number IN ({last})").rowcount
            db.execute(f"DELETE FROM temp.unneeded WHERE page IN ({last})")
    return before - store.path.stat().st_size


_GIVEN = "SELECT value FROM json_each(?1)"  # numbers of generations, as a JSON list
_FILES = f"SELECT number FROM file WHERE generation IN ({_GIVEN})"
_PLACED = f"SELECT page FROM place WHERE file NOT IN ({_FILES})"
_UNNEEDED = (
    f"number NOT IN ({_PLACED} UNION"
    f" SELECT base FROM page WHERE base NOTNULL AND number IN ({_PLACED}))"
)


def _json(evidence: Mapping[str, Any]) -> str:
    return json.dumps(dict(evidence), ensure_ascii=True, sort_keys=True)
