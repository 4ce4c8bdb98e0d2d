"""Repaired copies of both stores, made beside the originals and proven to have lost nothing.

Chroma's client deletes records from a copy, in a child process that has ended when SQLite opens it.
A store that a newer chromadb has opened is of no use to an older one (1.0.20 panics on one of
1.5.9, measured), so a copy that the client has migrated is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nescord_ops import chroma, client, database, swap, verify, volume
from nescord_ops.checks import Check, Status, ok
from nescord_ops.errors import VolumeError
from nescord_ops.restore import UNTOUCHED
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress, Snapshot, copy_file, scratch
from nescord_ops.storefile import sync
from nescord_ops.waste import WORDS, Waste

RECORDS = ("deletions", "residue", "stale")  # the words whose targets are ids in Chroma
_GRAVITY = (Status.OK, Status.WARN, Status.UNKNOWN, Status.FAIL)
_TIMEOUT_SECONDS = 1800.0
_MARGIN_BYTES = 16 << 20


def fingerprint(swaps: Sequence[swap.Swap]) -> dict[Path, tuple[int, int, int]]:
    """Size, mtime and inode of every live file: equal as long as nobody writes.

    `-shm` is left out: SQLite's readers touch it.
    """
    return {
        path: (seen.st_size, seen.st_mtime_ns, seen.st_ino)
        for each in swaps
        for suffix, root in each.replaced.items()
        for path, seen in volume.walk(root)
        if suffix != "-shm" and seen and stat.S_ISREG(seen.st_mode)
    }


def rebuild(
    settings: Settings,
    copy: Snapshot,
    found: Mapping[str, Waste],
    swaps: Sequence[swap.Swap],
    say: Progress,
) -> list[Check]:
    """Write the stores of `swaps` to their staged places without what was `found`, and prove them.

    `copy` is a snapshot of the same moment; it is used up. Raise VolumeError if a repaired copy
    differs in anything else, or if any check of verify is worse than before.
    """
    before = verify.examine(copy, settings)
    say("copying the live data")
    stage(swaps, found["segments"].targets if "segments" in found else ())
    say("repairing the copy")
    staged = {each.name: each.staged for each in swaps}
    ids = sorted({id_ for word in RECORDS if word in found for id_ in found[word].targets})
    records: dict[str, Any] = {}
    if "chroma" in staged:
        records = _delete(settings, staged["chroma"] if ids else copy.chroma, ids)
        _refuse_migrated(copy, staged["chroma"])
    expected = edit(swaps, found)
    settle(swaps)
    say("comparing the copy with the original")
    changed = {}
    if copy.database and "database" in staged:
        changed = differences(copy.database, staged["database"])
    if changed != expected:
        text = f"the repaired database differs in {changed}, where {expected} was meant"
        raise VolumeError(f"{text}; {UNTOUCHED}", "nescord-ops clean, word by word")
    checks = [ok("clean.notes", "every other row of the database is as before")]
    room = volume.usage(staged["chroma"]).allocated_bytes if "chroma" in staged else 0
    with scratch(room + _MARGIN_BYTES) as root:
        after = dataclasses.replace(copy, database=staged.get("database", copy.database))
        here = settings
        if "chroma" in staged:
            copy_tree(staged["chroma"], root / "chromadb")
            after = dataclasses.replace(after, chroma=root / "chromadb")
            here = dataclasses.replace(settings, chroma_dir=staged["chroma"])
            again = _delete(settings, after.chroma, [])
            if again != records:
                text = f"{records['records']:,} records should be left in Chroma as they were"
                raise VolumeError(f"{text}; {UNTOUCHED}", "nescord-ops clean, word by word")
            text = "ids, documents, metadata and vectors of all other records are as before"
            checks.append(ok("clean.records", text, value=again["records"], unit="records"))
        seen = verify.examine(
            *(after, here), round_trip="chroma" in staged, index_limit_bytes=math.inf
        )
    backlog = sum(found[word].count for word in ("stale", "sync") if word in found)
    worse = [*regressions(before, seen, backlog=backlog)]
    if worse:
        text = f"verify would be worse: {'; '.join(worse)}; {UNTOUCHED}"
        raise VolumeError(text, "nescord-ops clean, word by word")
    return [*checks, ok("clean.verify", f"none of {len(seen)} checks of the copy is worse")]


def regressions(
    before: Iterable[Check], after: Iterable[Check], *, backlog: int = 0
) -> Iterator[str]:
    """Say which checks are worse: graver, or with a count that rose where it should be 0.

    A check that was not made before counts as ok. Up to `backlog` notes may wait anew for vectors.
    """
    was = {check.name: check for check in before}
    for check in after:
        then = was.get(check.name, Check(check.name, Status.OK, ""))
        graver = _GRAVITY.index(check.status) > _GRAVITY.index(then.status) and not check.expected
        if check.limit == 0 and isinstance(check.value, int):
            allowed = backlog if check.name == "stores.backlog" else 0
            graver = check.value > int(then.value or 0) + allowed
        if graver:
            yield f"{check.name}: {check.summary}"


def stage(swaps: Sequence[swap.Swap], leave_out: Iterable[Path] = ()) -> None:
    """Copy what is live to the staged places, but for the directories to `leave_out`."""
    for each in swaps:
        each.staged.parent.mkdir(mode=0o700, exist_ok=True)
        for suffix, path in each.replaced.items():
            if suffix != "-shm":
                copy_tree(path, database.beside(each.staged, suffix), leave_out)


def copy_tree(source: Path, target: Path, leave_out: Iterable[Path] = ()) -> None:
    """Copy a file or a tree with holes and times; links are copied as links, never followed.

    Raise VolumeError for what can be neither read nor copied.
    """
    for path, seen in volume.walk(source):
        if not {path, *path.parents}.isdisjoint(leave_out):
            continue
        place = target / path.relative_to(source)
        if seen and stat.S_ISDIR(seen.st_mode):
            place.mkdir(mode=0o700)
        elif seen and stat.S_ISLNK(seen.st_mode):
            place.symlink_to(path.readlink())
        elif seen and stat.S_ISREG(seen.st_mode):
            copy_file(path, place)
            os.utime(place, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        else:
            raise VolumeError(f"{path} cannot be copied; {UNTOUCHED}", "move it out of there")


def settle(swaps: Sequence[swap.Swap]) -> None:
    """Give every copy the owner and mode of its original, and sync it.

    What is new takes the owner of the store, and its mode without the execute bits.
    """
    for each in swaps:
        whole = each.live.lstat()
        for path, seen in volume.walk(each.staged):
            assert seen
            try:
                like = (each.live / path.relative_to(each.staged)).lstat()
            except FileNotFoundError:
                like = whole
            if os.geteuid() == 0:
                os.chown(path, like.st_uid, like.st_gid, follow_symlinks=False)
            if stat.S_ISLNK(seen.st_mode):
                continue
            same = stat.S_IFMT(like.st_mode) == stat.S_IFMT(seen.st_mode)
            path.chmod(stat.S_IMODE(like.st_mode) if same else like.st_mode & 0o666)
            swap.sync_entry(path)
        sync(each.staged.parent)


def _delete(settings: Settings, directory: Path | None, ids: Sequence[str]) -> dict[str, Any]:
    """Have Chroma delete ids from a copy; return the count and a digest of its other records."""
    request = {"action": "delete", "directory": str(directory), "ids": ids}
    answer = client.ask([{**request, "collection": settings.collection}], _TIMEOUT_SECONDS)
    if answer.problem:
        text = f"Chroma cannot work with the copy: {answer.problem}; {UNTOUCHED}"
        raise VolumeError(text, "see that there is memory for the index; nescord-ops verify")
    return answer.result


def _refuse_migrated(copy: Snapshot, staged: Path) -> None:
    assert copy.chroma
    if "migrations" in differences(
        copy.chroma / chroma.DATABASE, staged / chroma.DATABASE, only="migrations"
    ):
        text = f"this chromadb is newer than the bot's and would migrate its store; {UNTOUCHED}"
        raise VolumeError(text, "install nescord-ops beside the bot, in its environment")


def edit(swaps: Sequence[swap.Swap], found: Mapping[str, Waste]) -> dict[str, tuple[int, int]]:
    """Remove rows from the staged databases and vacuum them; fold in what a kill left beside them.

    Return how many rows of each of the bot's tables are gone, and how many are new.
    """
    changed: dict[str, tuple[int, int]] = {}
    names = {"database": "bot", "chroma": "vec"}
    files = {
        names[each.name]: each.staged / chroma.DATABASE if each.name == "chroma" else each.staged
        for each in swaps
    }
    with contextlib.closing(sqlite3.connect("file::memory:", uri=True)) as db:
        db.isolation_level = None
        db.execute("PRAGMA trusted_schema=OFF")
        modes = {}
        for schema, file in files.items():
            db.execute(f"ATTACH ? AS {schema}", (database.uri(file, "mode=rw"),))
            (modes[schema],) = db.execute(f"PRAGMA {schema}.journal_mode").fetchone()
            db.execute(f"PRAGMA {schema}.journal_mode=OFF")
            db.execute(f"PRAGMA {schema}.synchronous=OFF")
        for name, waste in found.items():
            word = WORDS[name]
            rows = word.remove(db, waste) if waste.count and word.remove else 0
            if word.table and rows:
                lost, new = changed.get(word.table, (0, 0))
                changed[word.table] = (lost + rows, new + (rows if name == "stale" else 0))
        for schema, mode in modes.items():
            if "pages" in found:
                db.execute(f"VACUUM {schema}")
            db.execute(f"PRAGMA {schema}.journal_mode={mode}")
    for file in files.values():
        for suffix in ("-wal", "-journal"):
            if database.beside(file, suffix).exists():
                raise VolumeError(f"{file} did not take in its {suffix}; {UNTOUCHED}")
    return changed


def differences(old: Path, new: Path, only: str = "") -> dict[str, tuple[int, int]]:
    """Compare two databases row by row, hidden row numbers included, which full-text search needs.

    Return for each table that differs how many rows only the old one has, and only the new one.
    """
    found = {}
    with contextlib.closing(sqlite3.connect("file::memory:", uri=True)) as db:
        for schema, file in (("old", old), ("new", new)):
            db.execute(f"ATTACH ? AS {schema}", (database.uri(file, "mode=ro&immutable=1"),))
        tables = "SELECT name FROM old.sqlite_schema WHERE type = 'table' AND rootpage > 0"
        names = {database.quote(name): "rowid, *" for (name,) in db.execute(tables)}
        names["sqlite_schema"] = "type, name, tbl_name, sql"
        for name, columns in names.items():
            if only not in ("", name.strip('"')):
                continue
            try:
                db.execute(f"SELECT rowid FROM old.{name} LIMIT 0")
            except sqlite3.OperationalError:  # WITHOUT ROWID
                columns = "*"
            lost, gained = (
                db.execute(
                    f"SELECT count(*) FROM (SELECT {columns} FROM {one}.{name}"
                    f" EXCEPT SELECT {columns} FROM {other}.{name})"
                ).fetchone()[0]
                for one, other in (("old", "new"), ("new", "old"))
            )
            if lost or gained:
                found[name.strip('"')] = (lost, gained)
    return found
