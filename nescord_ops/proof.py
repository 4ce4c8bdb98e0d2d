"""What speaks for a backup: what it held when it was taken, every byte of it, and that it restores.

Chroma's client runs in a child process on the restored copy, never on a live file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from nescord_ops import __version__, chroma, database, inventory, show, store, verify
from nescord_ops.checks import Check, Findings, Status, fail, none_of, ok, unknown, warn
from nescord_ops.doubt import CLIENT, DAMAGE, damage, unread
from nescord_ops.errors import BackupError, OpsError, VolumeError
from nescord_ops.evidence import BOTH
from nescord_ops.freshness import Standing, standing
from nescord_ops.inventory import BOT, Backup
from nescord_ops.settings import Settings
from nescord_ops.snapshot import DATABASE, Progress, Snapshot, scratch
from nescord_ops.storefile import CHECK_HINT
from nescord_ops.stores import Stores, join
from nescord_ops.volume import place, usage

Outcome = Literal["ok", "failed", "inconclusive"]
SCRATCH_BYTES = 1 << 20  # for what is not the copy itself


@dataclasses.dataclass(frozen=True, slots=True)
class Checked(Findings):
    """What `check` found: one check a backup, and one for what all generations share."""

    name = "backup"

    settings: Settings
    checks: tuple[Check, ...]
    standing: Standing | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Drill(Findings):
    """How a drill came out: `outcome` is ok, failed or inconclusive, and `reason` says why."""

    name = "drill"

    settings: Settings
    checks: tuple[Check, ...]
    id: str
    outcome: Outcome
    reason: str
    at: datetime


def witness(snapshot: Snapshot, settings: Settings, checks: Iterable[Check]) -> dict[str, Any]:
    """Given a snapshot and what was seen of it, return its evidence as JSON values.

    That is what a drill compares with, what a restore needs beyond the files (owners and modes),
    and how the snapshot was taken.
    """
    checks = tuple(checks)
    present = {"database": snapshot.database, "chroma": snapshot.chroma}
    originals = {"database": place(settings.database), "chroma": place(settings.chroma_dir)}
    versions = {"nescord-ops": __version__, "Python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["chromadb"] = metadata.version("chromadb")
    return {
        "stores": [name for name, path in present.items() if path],
        "damaged": [check.name for check in damage(checks, snapshot.problems)],
        "findings": {c.name: [c.status, c.summary] for c in checks if c.status is not Status.OK},
        **content(snapshot),
        "originals": {
            name: {"mode": stat.S_IMODE(seen.mode), "uid": seen.uid, "gid": seen.gid}
            for name, seen in originals.items()
        },
        "allocated_bytes": usage(snapshot.root).allocated_bytes,
        "versions": {**versions, "SQLite": sqlite3.sqlite_version},
        "expected": {name: getattr(settings, name) for name in _EXPECTED},
        "capture": {
            "attempts": snapshot.attempts,
            "seconds": round(snapshot.seconds, 3),
            "lock_seconds": round(snapshot.lock_seconds, 3),
        },
    }


_EXPECTED = ("collection", "distance", "dimension")


def content(snapshot: Snapshot) -> dict[str, Any]:
    """Return the rows of each table, and of each collection the count and a digest of its ids.

    The digest is the SHA-256 of the sorted ids, a line each. A store too damaged to tell is empty.
    Raise VolumeError if it is the disk that does not give it.
    """
    rows: dict[str, int | None] = {}
    collections: dict[str, dict[str, Any]] = {}
    with _damage_suppressed():
        if snapshot.database:
            with database.open_copy(snapshot.database) as notes:
                names = sorted(database.table_names(notes))
                rows = {name: database.rows(notes, name) for name in names}
    with _damage_suppressed():
        if snapshot.chroma:
            with database.open_copy(snapshot.chroma / chroma.DATABASE) as vectors:
                for collection in chroma.collections(vectors):
                    collections[collection.name] = _ids(vectors, collection)
    return {"rows": rows, "collections": collections}


@contextlib.contextmanager
def _damage_suppressed() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if database.of_the_machine(error):
            text = f"the copy could not be read: {error}"
            raise VolumeError(text, database.MACHINE_HINT) from error


def _ids(connection: sqlite3.Connection, collection: chroma.Collection) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    ids = "SELECT embedding_id FROM embeddings WHERE segment_id = ? ORDER BY embedding_id"
    for (identity,) in connection.execute(ids, (collection.metadata_segment,)):
        digest.update(f"{identity}\n".encode())
        count += 1
    return {"count": count, "sha256": digest.hexdigest()}


def check(
    settings: Settings,
    backup_id: str | None = None,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Read every byte of one backup, or of all, and keep the outcome with each generation.

    The bot's backups are laid out in scratch space and their databases and index files examined.
    Raise BackupError if there is no such backup.
    """
    at = (now or datetime.now(UTC)).isoformat()
    say = progress or (lambda _: None)
    known = inventory.listing(settings)
    chosen = known.backups if backup_id is None else (inventory.find(settings, backup_id),)
    ours = [backup for backup in chosen if backup.kind != BOT]
    checks = []
    if known.problem:
        checks.append((unknown if known.unread else fail)("check.store", known.problem, known.hint))
    if ours:
        checks += _check_ours(ours, backup_id, at, say)
    checks += (_check_bot(settings, backup, say) for backup in chosen if backup.kind == BOT)
    if not checks:
        hint = "nescord-ops backup create --drill"
        checks.append(unknown("check.store", f"no backup in {settings.backup_dir}", hint))
    return Checked(settings, tuple(checks), standing(settings))


def _check_ours(
    ours: list[Backup], backup_id: str | None, at: str, say: Progress
) -> Iterator[Check]:
    """Check generations; outcomes are not written into a store that is itself in pieces."""
    with store.open_store(ours[0].path) as opened:
        found = store.check(
            *(opened, backup_id), progress=lambda done, total: say(f"page {done:,} of {total:,}")
        )
    shared = [damage for damage in found if not damage.generation_id]
    if shared:
        problems = show.count(len(shared), "problem")
        text = f"{problems} with the store itself, the first: {shared[0].problem}"
        hint = "pull a copy from off site, or begin a new store: move this one away"
        yield fail("check.store", text, hint, value=len(shared), unit="problems")
    for backup in ours:
        harmed = [damage for damage in found if damage.generation_id == backup.id]
        reason = "; ".join(f"{d.path} {d.problem}".strip() for d in harmed[:3])
        if not backup.evidence:  # sealed, and yet not as this program writes it
            reason = reason or backup.fault
        if reason:
            hint = (
                "take a new one, which mends what it can; nescord-ops backup list names good ones"
            )
            yield fail(f"check.{backup.id}", reason, hint, value=len(harmed) or 1, unit="problems")
        else:
            yield ok(f"check.{backup.id}", f"all {show.size(backup.size_bytes)} are as stored")
        if not shared and backup.evidence:
            facts = {"at": at, "outcome": "failed" if harmed else "ok", "reason": reason}
            yield from keep(backup, {"checked": facts}, f"check.{backup.id}.kept")


def _check_bot(settings: Settings, backup: Backup, say: Progress) -> Check:
    """Look at a backup of the bot's as far as it goes."""
    name = f"check.{backup.id}"
    say(f"looking at {backup.id}")
    try:
        with scratch(inventory.room_bytes(backup) + SCRATCH_BYTES) as root:
            copy = inventory.materialise(settings, backup.id, root / "copy")
            seen = verify.examine(copy, settings)
    except BackupError as error:
        return fail(name, f"{error}", error.hint)
    except OpsError as error:
        return unknown(name, f"{error}", error.hint)
    if kept := unread(seen):
        return unknown(name, f"{kept.name}: {kept.summary}", kept.hint)
    bad = damage(seen, set(BOTH) - {*backup.stores})
    if bad:
        hint = "a copy of live files that was torn: use another backup"
        return fail(name, f"{bad[0].name}: {bad[0].summary}", hint)
    if backup.fault:
        return warn(name, f"sound, and {backup.fault}", "nescord-ops backup create takes both")
    return ok(name, "both stores are sound; a drill would prove it")


def drill(
    settings: Settings,
    backup_id: str,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Drill:
    """Restore a backup into scratch space and prove that it works; keep the outcome with it.

    ok: every byte, id and vector came back, both databases are sound, Chroma opens and searches,
    and no invariant is worse than when it was taken. failed: one of these is not so.
    inconclusive: something could not be tried, and nothing is proven. Writes scratch space and the
    outcome into the store. Raise BackupError if there is no such backup.
    """
    backup = inventory.find(settings, backup_id)
    now = now or datetime.now(UTC)
    say = progress or (lambda _: None)
    checks = [*_restored(settings, backup, say)]
    if checks[0].status is Status.FAIL:  # not restored: the disk may have failed
        checks = [*_restored(settings, backup, say)]
    bad = [c for status in (Status.FAIL, Status.UNKNOWN) for c in checks if c.status is status]
    outcome: Outcome = "ok"
    if bad:
        outcome = "failed" if bad[0].status is Status.FAIL else "inconclusive"
    reason = bad[0].summary if bad else ""
    if backup.kind != BOT:
        at = now.isoformat()
        facts: dict[str, Any] = {"drilled": {"at": at, "outcome": outcome, "reason": reason}}
        if outcome == "ok":  # every byte was read on the way
            facts |= {"proven_at": at, "checked": {"at": at, "outcome": "ok", "reason": ""}}
        elif outcome == "failed":
            facts["proven_at"] = None
        checks += keep(backup, facts, "drill.kept")
    return Drill(settings, tuple(checks), backup_id, outcome, reason, now)


def keep(backup: Backup, facts: dict[str, Any], name: str) -> Iterator[Check]:
    """Write an outcome beside a generation; one that cannot be kept is a warning."""
    try:
        with store.open_store(backup.path) as opened:
            store.note(opened, backup.id, facts)
    except store.StoreError as error:
        yield warn(name, f"the outcome could not be written down: {error}", error.hint)


def _restored(settings: Settings, backup: Backup, say: Progress) -> Iterator[Check]:
    """Restore into scratch space and look at everything. Damage fails; no room proves nothing."""
    try:
        with scratch(inventory.room_bytes(backup) + SCRATCH_BYTES) as root:
            copy = inventory.materialise(settings, backup.id, root / "copy", progress=say)
            text = f"{show.size(backup.size_bytes)} came back as they were stored"
            yield ok("drill.restore", text, value=backup.size_bytes, unit="bytes")
            say("looking at every id and vector, and opening Chroma")
            yield from prove(settings, backup, copy)
    except OpsError as error:
        damaged = isinstance(error, BackupError) or error.hint == CHECK_HINT
        yield (fail if damaged else unknown)("drill.restore", f"{error}", error.hint)
    except OSError as error:
        yield unknown("drill.restore", f"could not be tried: {error}", "free scratch space: TMPDIR")


def prove(settings: Settings, backup: Backup, copy: Snapshot) -> Iterator[Check]:
    """Given a backup laid out, compare it with its evidence and look at everything in it."""
    yield from _compared(backup, copy)
    yield from _examined(settings, backup, copy)


def _compared(backup: Backup, copy: Snapshot) -> Iterator[Check]:
    """Rows and ids against the evidence; the bot's own backups have none."""
    if backup.kind == BOT:
        return
    seen = content(copy)
    if _differences(backup, seen):  # the disk may have failed
        seen = content(copy)
    wrong = _differences(backup, seen)
    yield none_of(
        "drill.content",
        len(wrong),
        "differences",
        good=f"{show.count(sum(c['count'] for c in seen['collections'].values()), 'id')} and the "
        f"rows of {show.count(len(seen['rows']), 'table')} are those that were backed up",
        bad=f"differences to what was backed up: {'; '.join(wrong[:3])}",
        one=f"difference to what was backed up: {'; '.join(wrong)}",
        hint="use another backup, and take a new one",
        severity=Status.FAIL,
    )


def _differences(backup: Backup, seen: Mapping[str, Any]) -> list[str]:
    return [
        f"{part} {name}: {then[name]} when taken, {now.get(name)} now"
        for part, then, now in ((p, backup.evidence[p], seen[p]) for p in ("rows", "collections"))
        for name in then
        if then[name] != now.get(name)
    ]


def _examined(settings: Settings, backup: Backup, copy: Snapshot) -> Iterator[Check]:
    """Every invariant on the copy, against how it stood when the backup was taken.

    What was wrong then is a warning now: the backup is as good as the data was. A check of
    Chroma's client that could not be made proves nothing, whatever verify thinks of it.
    """
    expected: dict[str, Any] = backup.evidence.get("expected", {})
    settings = dataclasses.replace(
        settings, database=copy.root / DATABASE, chroma_dir=copy.root / "chromadb", **expected
    )
    before = {name: Status(seen[0]) for name, seen in backup.evidence.get("findings", {}).items()}
    if backup.kind != BOT:  # the bytes are those of then, so what the bot put in them was so too
        before = dict.fromkeys({*verify.DEEP} - DAMAGE - CLIENT, Status.FAIL) | before
    before |= {f"{name}.integrity": Status.FAIL for name in BOTH if name not in backup.stores}
    checks = [*_queue(copy, settings), *verify.examine(copy, settings, round_trip=True)]
    if copy.chroma and "chroma.roundtrip" not in {check.name for check in checks}:
        yield unknown(
            "chroma.roundtrip", "there was no collection to open", "see chroma.collection"
        )
    for check in checks:
        if check.name == "chroma.search" and "no record" in check.summary:
            yield ok(check.name, check.summary)
        elif not check.status.is_worse_than(before.get(check.name, Status.OK)):
            yield _as_it_was(check)
        else:
            yield dataclasses.replace(check, expected=False)


def _as_it_was(check: Check) -> Check:
    if check.status in (Status.OK, Status.WARN):
        return check
    return warn(check.name, f"as when it was taken: {check.summary}", check.hint)


def _queue(copy: Snapshot, settings: Settings) -> list[Check]:
    """Read every vector that waits in Chroma's queue; those in the index files have their check."""
    if not copy.chroma:
        return []
    with contextlib.suppress(sqlite3.DatabaseError), join(copy, settings) as stores:
        return [*_queued(stores)]
    return []  # examine said what is wrong


def _queued(stores: Stores) -> Iterator[Check]:
    import numpy

    mine = stores.collection
    if not mine or not mine.dimension:
        return
    rows = stores.connection.execute(  # one of any other length may not even be read
        "SELECT iif(length(vector) = 4 * ?, vector, NULL) FROM vec.embeddings_queue"
        " WHERE substr(topic, -36) = ? AND seq_id > ? AND operation IN (0, 2)",
        (mine.dimension, mine.id, mine.vector_seq or 0),
    )
    read = broken = 0
    for (vector,) in rows:
        read += 1
        right = isinstance(vector, bytes)
        broken += not (right and numpy.isfinite(numpy.frombuffer(vector, "<f4")).all())
    yield none_of(
        "chroma.queue",
        broken,
        "vectors",
        good=f"all vectors in the queue were read and are sound ({read:,})",
        bad=f"of {show.count(read, 'vector')} in the queue are not usable numbers",
        one=f"of {show.count(read, 'vector')} in the queue is no usable numbers",
        hint="use another backup, and take a new one",
        severity=Status.FAIL,
    )
