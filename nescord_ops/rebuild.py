"""Repaired copies of both stores, made beside the originals and proven to have lost nothing.

Chroma's client deletes records from a copy, in a child process that has ended when SQLite opens it.
A store that a newer chromadb has opened is of no use to an older one (1.0.20 panics on one of
1.5.9, measured), so a copy that the client has migrated is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nescord_ops import chroma, client, database, swap, verify, volume
from nescord_ops.checks import Check, Status, ok
from nescord_ops.errors import ChecksFailed, VolumeError
from nescord_ops.restore import MARGIN_BYTES, UNTOUCHED
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress, Snapshot, copy_tree, scratch
from nescord_ops.storefile import sync
from nescord_ops.waste import ROWS, Waste, set_pending

RECORDS = ("deletions", "residue", "stale")  # the words whose targets are ids in Chroma
REQUEUED = ("stale", "unsynced")  # those whose notes the bot is to embed again
_TIMEOUT_SECONDS = 1800.0
_HINT = "nescord-ops clean, word by word"
Changes = dict[str, tuple[int, int]]  # by table: rows that only the old one has, and the new one


def rebuild(
    settings: Settings,
    copy: Snapshot,
    found: Mapping[str, Waste],
    swaps: Sequence[swap.Swap],
    say: Progress,
) -> list[Check]:
    """Write the stores of `swaps` to their staged places without what was `found`, and prove them.

    `copy` is a snapshot of the same moment; it is used up. Raise VolumeError if a repaired copy
    differs in anything else, ChecksFailed if any check of verify is worse than before.
    """
    before = verify.examine(copy, settings)
    say("copying the live data")
    stage(swaps, found["segments"].targets if "segments" in found else ())
    say("repairing the copy")
    staged = {each.name: each.staged for each in swaps}
    ids = sorted({id_ for word in RECORDS if word in found for id_ in found[word].targets})
    records: dict[str, Any] = {}
    if "chroma" in staged:
        assert copy.chroma
        version = _migrations(copy.chroma)
        records = _delete(settings, copy.chroma, ids)
        if ids:
            _delete(settings, staged["chroma"], ids)
        if _migrations(staged["chroma"]) != version:
            text = f"this chromadb is newer than the bot's and would migrate its store; {UNTOUCHED}"
            raise VolumeError(text, "install nescord-ops beside the bot, in its environment")
    expected = edit(swaps, found)
    settle(swaps)
    say("comparing the copy with the original")
    changed = differences(copy, staged["database"]) if "database" in staged else {}
    if changed != expected:
        text = f"the repaired database differs in {changed}, where {expected} was meant"
        raise VolumeError(f"{text}; {UNTOUCHED}", _HINT)
    checks = [ok("clean.notes", "every other row of the database is as before")]
    seen = _examined(settings, copy, staged, records)
    backlog = sum(found[word].count for word in (*REQUEUED, "sync") if word in found)
    if worse := [*regressions(before, seen, backlog=backlog)]:
        raise ChecksFailed(f"verify would be worse: {'; '.join(worse)}; {UNTOUCHED}", _HINT)
    if records:
        text = "ids, documents, metadata and vectors of all other records are as before"
        checks.append(ok("clean.records", text, value=records["records"], unit="records"))
    return [*checks, ok("clean.verify", f"none of {len(seen)} checks of the copy is worse")]


def _examined(
    settings: Settings, copy: Snapshot, staged: Mapping[str, Path], records: Mapping[str, Any]
) -> tuple[Check, ...]:
    """Examine the repaired copies; Chroma's client reads all of a copy of its own."""
    after = dataclasses.replace(copy, database=staged.get("database", copy.database))
    if "chroma" not in staged:
        return verify.examine(after, settings)
    here = dataclasses.replace(settings, chroma_dir=staged["chroma"])
    with scratch(volume.usage(here.chroma_dir).allocated_bytes + MARGIN_BYTES) as root:
        copy_tree(here.chroma_dir, root / "chromadb")
        after = dataclasses.replace(after, chroma=root / "chromadb")
        if _delete(settings, root / "chromadb", []) != records:
            text = f"the {records['records']:,} records that stay would not be as they were"
            raise VolumeError(f"{text}; {UNTOUCHED}", _HINT)
        return verify.examine(after, here, round_trip=True)


def regressions(
    before: Iterable[Check], after: Iterable[Check], *, backlog: int = 0
) -> Iterator[str]:
    """Say which checks are worse: graver, or with a count that rose where it should be 0.

    A check that was not made before counts as ok. Up to `backlog` notes may wait anew for vectors.
    """
    was = {check.name: check for check in before}
    for check in after:
        then = was.get(check.name, Check(check.name, Status.OK, ""))
        worse = check.status.is_worse_than(then.status) and not check.expected
        if check.limit == 0 and isinstance(check.value, int):
            allowed = backlog if check.name == "stores.backlog" else 0
            worse = check.value > int(then.value or 0) + allowed
        if worse:
            yield f"{check.name}: {check.summary}"


def stage(swaps: Iterable[swap.Swap], leave_out: Iterable[Path] = ()) -> None:
    """Copy what is live to the staged places, but for the directories to `leave_out`."""
    for each in swaps:
        volume.private_directory(each.staged.parent)
        for suffix, path in each.replaced.items():
            if suffix != "-shm":
                copy_tree(path, database.beside(each.staged, suffix), leave_out)


def settle(swaps: Iterable[swap.Swap]) -> None:
    """Give every copy the owner and mode of its original, and sync it.

    What Chroma has made new takes the owner of the store, and its mode but for the execute bits.
    """
    for each in swaps:
        for path, seen in volume.walk(each.staged):
            assert seen
            original = each.live / path.relative_to(each.staged)
            known = os.path.lexists(original)
            like = (original if known else each.live).lstat()
            if os.geteuid() == 0:
                os.chown(path, like.st_uid, like.st_gid, follow_symlinks=False)
            if not stat.S_ISLNK(seen.st_mode):
                path.chmod(like.st_mode & (0o7777 if known else 0o666))
                swap.sync_entry(path)
        sync(each.staged.parent)


def _delete(settings: Settings, directory: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Have Chroma delete ids from a copy; return the count and a digest of its other records."""
    request = {"action": "delete", "directory": str(directory), "ids": ids}
    answer = client.ask([{**request, "collection": settings.collection}], _TIMEOUT_SECONDS)
    if answer.problem:
        text = f"Chroma cannot work with the copy: {answer.problem}; {UNTOUCHED}"
        raise VolumeError(text, "see that there is memory for the index; nescord-ops verify")
    return answer.result


def _migrations(root: Path) -> set[tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(root / chroma.DATABASE)) as db:
        return chroma.migrations(db)


def edit(swaps: Iterable[swap.Swap], found: Mapping[str, Waste]) -> Changes:
    """Remove rows from the staged databases, vacuum them, and fold in what lies beside them.

    Return what that should change in the bot's database.
    """
    files = {
        "vec" if each.name == "chroma" else "bot": (
            each.staged / chroma.DATABASE if each.name == "chroma" else each.staged
        )
        for each in swaps
    }
    changes: Changes = {}
    with contextlib.closing(sqlite3.connect("file::memory:", uri=True)) as db:
        db.isolation_level = None
        db.execute("PRAGMA trusted_schema=OFF")
        modes = {}
        for schema, file in files.items():
            db.execute(f"ATTACH ? AS {schema}", (database.uri(file, "mode=rw"),))
            (modes[schema],) = db.execute(f"PRAGMA {schema}.journal_mode").fetchone()
            db.execute(f"PRAGMA {schema}.journal_mode=OFF")
            db.execute(f"PRAGMA {schema}.synchronous=OFF")
        for word, rows in ROWS.items():
            if word in found and found[word].count:
                schema, table = rows.table.split(".")
                removed = rows.remove(db)
                if schema == "bot":
                    changes[table] = (removed, 0)
        if ids := [id_ for word in REQUEUED if word in found for id_ in found[word].targets]:
            new = set_pending(db, ids) if "sync_metadata" in _tables(db) else 0
            lost, _ = changes.get("sync_metadata", (0, 0))
            changes |= {"sync_metadata": (lost + new, new)} if new else {}
        for schema, mode in modes.items():
            if "pages" in found:
                db.execute(f"VACUUM {schema}")
            db.execute(f"PRAGMA {schema}.journal_mode={mode}")
    if left := [file for file in files.values() if database.beside(file, "-wal").exists()]:
        raise VolumeError(f"{left[0]} did not take in its -wal; {UNTOUCHED}", _HINT)
    return changes


def _tables(db: sqlite3.Connection) -> set[str]:
    rows = db.execute("SELECT name FROM bot.sqlite_schema WHERE type = 'table' AND rootpage > 0")
    return {str(name) for (name,) in rows}


def differences(copy: Snapshot, new: Path) -> Changes:
    """Compare the bot's database with a repaired one row by row; return what differs by table.

    The hidden row number counts, as full-text search needs it and VACUUM may change it.
    """
    assert copy.database
    found: Changes = {}
    with contextlib.closing(sqlite3.connect("file::memory:", uri=True)) as db:
        for schema, file in (("bot", copy.database), ("new", new)):
            db.execute(f"ATTACH ? AS {schema}", (database.uri(file, "mode=ro&immutable=1"),))
        columns = dict.fromkeys(_tables(db), "rowid, *") | {"sqlite_schema": "type, name, sql"}
        for name, chosen in columns.items():
            table = database.quote(name)
            try:
                db.execute(f"SELECT {chosen} FROM bot.{table} LIMIT 0")
            except sqlite3.OperationalError:  # it is WITHOUT ROWID
                chosen = "*"
            sides = [f"SELECT {chosen} FROM {schema}.{table}" for schema in ("bot", "new")]
            lost, gained = (
                db.execute(f"SELECT count(*) FROM ({one} EXCEPT {other})").fetchone()[0]
                for one, other in (sides, reversed(sides))
            )
            if lost or gained:
                found[name] = (lost, gained)
    return found
