"""Backups that survive the volume: pushed to any fsspec URL, checked there, and pulled back.

The container encrypts to a recipient and cannot read what it pushed: `check` needs no key to see
that the bytes are those that were pushed, and with the identity restores them into scratch space.
A place belongs to one volume: what a push finds half written there, it removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops import copies, inventory, keys, prices, proof, remote, show, store, stream, swap
from nescord_ops import volume as volumes
from nescord_ops.checks import Check, Findings, Status, fail, ok, warn
from nescord_ops.copies import Copy, Source
from nescord_ops.errors import BackupError, OffsiteError, VolumeError
from nescord_ops.footprint import STORE
from nescord_ops.inventory import ADOPTED, BOT, PULLED, Backup
from nescord_ops.remote import Remote
from nescord_ops.results import Listing
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress
from nescord_ops.storefile import sync
from nescord_ops.stream import OTHER_HINT, DamagedError, Record

__all__ = ["Copy", "Done", "OffsiteError", "check", "listing", "prune", "pull", "push"]

_DRILLED = "a drill failed: "  # begins a fault that only another drill can find gone


@dataclasses.dataclass(frozen=True, slots=True)
class Done(Findings):
    """What a push, check, pull or prune did, the copies that it was about, and how long it took."""

    name = "offsite"

    settings: Settings
    checks: tuple[Check, ...]
    copies: tuple[Copy, ...]
    seconds: float


def listing(settings: Settings, url: str = "") -> tuple[Copy, ...]:
    """Return every copy at `url` (default: of the settings), newest first.

    Raise OffsiteError if the place cannot be read.
    """
    return Listing(copies.every(remote.connect(url or settings.offsite_url)))


def push(
    settings: Settings,
    backup_id: str,
    *,
    url: str = "",
    plain: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Done:
    """Write a generation of the store to `url`, encrypted unless `plain`; keep that in the store.

    Nothing is laid out on disk. One that is complete there is left as it is. Raise an OpsError,
    with nothing visible there, if there is no such generation, if it is damaged, if there is no
    recipient, or if the place fails.
    """
    started = time.monotonic()
    say = progress or (lambda _: None)
    recipients = None if plain else keys.recipients(settings.age_recipient)
    place = remote.connect(url or settings.offsite_url)
    backup = inventory.find(settings, backup_id)
    if backup.kind == BOT:
        hint = f"nescord-ops backup adopt {backup_id}"
        raise BackupError(f"{backup_id} is one of the bot's own", hint)
    with _alone(settings):
        say(f"looking at {place.url}")
        there = remote.names(place, create=True)
        copy = copies.look(place, backup_id, there)
        if copy and copy.record and copy.taken_at != backup.taken_at:
            text = f"another backup of the id {backup_id} is at {place.url}"
            raise OffsiteError(text, "use a place of its own for each volume")
        if copy and not copy.fault and not _replaced(backup, place, copy):
            text = f"{backup_id} is complete at {place.url}: nothing was done"
        else:
            copies.sweep(place, there)
            copy = _send(place, backup, recipients, now or datetime.now(UTC), say)
            text = f"{backup_id} is at {place.url}: {copy.summary}"
    checks = [ok("offsite.push", text, value=copy.stream_bytes, unit="bytes")]
    checks += _worth_less(settings, place, copy, backup)
    checks += _keep(backup, place, copy)
    return Done(settings, tuple(checks), (copy,), time.monotonic() - started)


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Keep other pushes of this store away: they would take a running one for left over."""
    handle = os.open(settings.backup_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OffsiteError("another push is at work", "wait for it, then run this again") from None
    finally:
        os.close(handle)


def _send(
    place: Remote, backup: Backup, recipients: Sequence[Any] | None, now: datetime, say: Progress
) -> Copy:
    """Push the stream, see that all of it arrived, and write the JSON, which makes it a copy."""
    copy = Copy(backup.id, None, encrypted=recipients is not None, pushed_at=now.astimezone(UTC))
    with (
        store.open_store(backup.path) as opened,
        remote.upload(place, copy.name, backup.size_bytes) as taking,
    ):

        def give(data: bytes) -> None:
            taking.write(data)
            say(f"pushing {backup.id}: {show.size(taking.bytes)}")

        record = stream.pack(opened, backup, give, recipients)
        copies.remove(place, backup.id)  # one that is no good, now that ours is known to be whole
    arrived = remote.names(place).get(copy.name)
    if arrived != taking.bytes:
        text = f"{place.url} has {arrived} bytes of {copy.name}, and {taking.bytes} were pushed"
        raise OffsiteError(text, "run it again; see that the place has room")
    copy = dataclasses.replace(
        copy, record=record, stream_bytes=taking.bytes, sha256=taking.digest.hexdigest()
    )
    copies.write(place, copy)
    return copy


def _worth_less(settings: Settings, place: Remote, copy: Copy, backup: Backup) -> Iterator[Check]:
    """What makes a copy worth less than it seems."""
    if not copy.encrypted:
        hint = "remove it, and push it without --plain"
        yield warn("offsite.sealed", "it is not encrypted: whoever reads the place reads it", hint)
    if backup.fault:
        yield warn("offsite.sound", f"the backup itself {backup.fault}", "push a good one too")
    mount = settings.volume_mount and place.local and volumes.mount_of(Path(place.root))
    if mount and mount == volumes.mount_of(settings.database):
        text = f"{place.url} is on the volume that it is to survive"
        yield warn("offsite.place", text, "set NESCORD_OPS_OFFSITE_URL to a place elsewhere")


def _keep(backup: Backup, place: Remote, copy: Copy) -> Iterator[Check]:
    """Write what is known of a copy beside its generation, where verify finds it."""
    facts = {**copy.facts, "url": place.url}
    if _replaced(backup, place, copy) and copy.fault:
        facts["sha256"] = backup.evidence["offsite"]["sha256"]
    return proof.keep(backup, {"offsite": facts}, "offsite.kept")


def _replaced(backup: Backup | None, place: Remote, copy: Copy) -> bool:
    """Whether a copy is not the one that was pushed from here, as its generation tells."""
    pushed = (backup and backup.evidence.get("offsite")) or {}
    return pushed.get("url") == place.url and pushed.get("sha256") != copy.sha256


def _forget(settings: Settings, place: Remote, identities: Collection[str]) -> Iterator[Check]:
    """Write beside generations that their copies at a place are gone."""
    for backup in inventory.listing(settings).generations:
        pushed = backup.evidence.get("offsite") or {}
        if backup.id in identities and pushed.get("url") == place.url:
            yield from proof.keep(backup, {"offsite": None}, "offsite.kept")


def check(
    settings: Settings,
    backup_id: str,
    *,
    identity: Path | None = None,
    url: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Done:
    """Read a copy back, all of it, and compare it with its JSON and with what was pushed.

    With the `identity` file, also drill it: restore it into scratch space and look at everything.
    The outcome is kept with the copy and with the generation in the store, if that can be read, as
    a copy is wanted most when the store is lost. Raise an OpsError if there is no such copy, if the
    place fails, or if it is not encrypted to this identity.
    """
    started = time.monotonic()
    at = now or datetime.now(UTC)
    secrets = keys.identities(identity) if identity else None
    place = remote.connect(url or settings.offsite_url)
    ours = inventory.listing(settings)
    known = next((backup for backup in ours.generations if backup.id == backup_id), None)
    copy = copies.find(place, backup_id)
    if copy is None:
        list(_forget(settings, place, {backup_id}))  # not written down, it is as it was before
        raise copies.absent(place, backup_id)
    checks = [*_looked(settings, place, copy, secrets, known, progress or (lambda _: None))]
    bad = [c for status in (Status.FAIL, Status.UNKNOWN) for c in checks if c.status is status]
    fault = copy.fault if bad else ""
    if bad and bad[0].status is Status.FAIL:
        told = "" if bad[0].name == "offsite.stream" else _DRILLED
        fault = f"{told}{bad[0].summary}"
    proven = None if fault else copy.proven_at
    if (secrets or not copy.encrypted) and not bad:
        proven = at
    copy = dataclasses.replace(copy, checked_at=at, proven_at=proven, fault=fault)
    if copy.record:
        try:
            copies.write(place, copy)
        except OffsiteError as error:
            text = f"the outcome could not be written beside the copy: {error}"
            checks.append(warn("offsite.noted", text, error.hint))
    if known:
        checks += _keep(known, place, copy)
    elif ours.problem:
        text = f"whether it is what was pushed is not compared: {ours.problem}"
        checks.append(warn("offsite.compared", text, ours.hint))
    return Done(settings, tuple(checks), (copy,), time.monotonic() - started)


def _looked(
    settings: Settings,
    place: Remote,
    copy: Copy,
    secrets: Sequence[Any] | None,
    known: Backup | None,
    say: Progress,
) -> Iterator[Check]:
    """Read a copy to its end, into scratch space if it can be read there, and compare."""
    readable = bool(secrets) or not copy.encrypted
    try:
        if not copy.record:
            raise DamagedError(copy.fault, OTHER_HINT)
        if _replaced(known, place, copy):
            raise DamagedError("its JSON is not the one that was pushed: altered", OTHER_HINT)
        source = Source(place, copy, say)
        if readable:
            with copies.laid_out(source, secrets) as tree:
                say("looking at every id and vector, and opening Chroma")
                backup = _as_backup(settings, copy.record)
                yield from proof.prove(settings, backup, inventory.laid_out(backup, tree, 0.0))
        source.finish()
    except DamagedError as error:
        yield fail("offsite.stream", f"{error}", error.hint)
    else:
        if copy.fault.startswith(_DRILLED) and not readable:
            hint = "drill it again, with --identity FILE; or push it again"
            yield fail("offsite.stream", copy.fault, f"{hint}: nescord-ops offsite push {copy.id}")
            return
        text = f"all {show.size(copy.stream_bytes)} are as they were pushed"
        yield ok("offsite.stream", text, value=copy.stream_bytes, unit="bytes")


def _as_backup(settings: Settings, record: Record) -> Backup:
    """What a copy would be in the store."""
    facts = (record.taken_at, tuple(record.evidence["stores"]), record.size_bytes, None, "")
    return Backup(record.id, PULLED, *facts, record.evidence, settings.backup_dir / STORE)


def pull(
    settings: Settings,
    backup_id: str,
    *,
    identity: Path | None = None,
    to: Path | None = None,
    url: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Done:
    """Fetch a copy, verify it, and add it to the store with its evidence, or write it to `to`.

    It is laid out in scratch space first (TMPDIR, or beside `to`). Raise an OpsError, with nothing
    added, if there is no such copy, the id is in the store, the identity does not fit, anything in
    it is not as recorded, or there is no room.
    """
    started = time.monotonic()
    target = to and to.absolute()
    if target and os.path.lexists(target):
        raise VolumeError(f"{target} is there already", "name a new directory")
    if target is None:
        ours = inventory.listing(settings)
        if ours.problem:
            raise BackupError(ours.problem, ours.hint)
        if any(backup.id == backup_id for backup in ours.generations):
            hint = f"nescord-ops restore {backup_id}, or pull it with --to DIR"
            raise BackupError(f"{backup_id} is in the store already", hint)
    secrets = keys.identities(identity) if identity else None
    place = remote.connect(url or settings.offsite_url)
    copy = copies.find(place, backup_id)
    if copy is None:
        raise copies.absent(place, backup_id)
    if copy.record is None:
        raise OffsiteError(copy.fault, OTHER_HINT)
    if copy.encrypted and not secrets:
        hint = "name the file with the identity: --identity FILE"
        raise OffsiteError(f"{backup_id} is encrypted, and no identity was named", hint)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    source = Source(place, copy, progress or (lambda _: None))
    with copies.laid_out(source, secrets, target and target.parent) as tree:
        if target:
            for path, _ in volumes.walk(tree):
                swap.sync_entry(path)
            tree.rename(target)
            sync(target.parent)
        else:
            with store.open_store(settings.backup_dir / STORE, create=True) as opened:
                read = dataclasses.replace(copy, checked_at=now or datetime.now(UTC))
                evidence = _evidence(copy.record, {**read.facts, "url": place.url})
                store.add(opened, backup_id, tree, evidence, taken_at=copy.taken_at)
    hint = "" if target else f"to put it in place of the live data: nescord-ops restore {backup_id}"
    text = f"{backup_id} of {show.moment(copy.taken_at)} is in {target or settings.backup_dir}"
    done = ok("offsite.pull", text, hint=hint, value=copy.record.size_bytes, unit="bytes")
    return Done(settings, (done,), (copy,), time.monotonic() - started)


def _evidence(record: Record, offsite: dict[str, Any]) -> dict[str, Any]:
    """What holds of a pulled generation: all that was known when it was pushed but its proofs."""
    kept = {key: value for key, value in record.evidence.items() if key != "proven_at"}
    for key in ("checked", "drilled"):
        if (kept.get(key) or {}).get("outcome") != "failed":
            kept.pop(key, None)
    kind = ADOPTED if kept.get("kind") == ADOPTED else PULLED
    return {**kept, "kind": kind, "keep": None, "drill": False, "offsite": offsite}


def prune(
    settings: Settings,
    keep: int,
    *,
    url: str = "",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Done:
    """Remove the copies that are older than the newest `keep` good ones, the JSON of each first.

    While fewer than `keep` are good nothing is removed, and the newest proven one never is. Raise
    OffsiteError if `keep` is less than 1 or the place fails.
    """
    started = time.monotonic()
    if keep < 1:
        raise OffsiteError(f"keep is {keep}: at least one copy stays", "use --keep 1 or more")
    say = progress or (lambda _: None)
    place = remote.connect(url or settings.offsite_url)
    found = copies.every(place)
    good = [copy for copy in found if not copy.fault]
    last = found.index(good[keep - 1]) + 1 if len(good) >= keep else len(found)
    proven = next((copy for copy in good if copy.proven_at), None)
    removed = [copy for copy in found[last:] if copy is not proven]
    for copy in () if dry_run else reversed(removed):
        say(f"removing {copy.id}")
        copies.remove(place, copy.id)
    freed = sum(copy.stream_bytes for copy in removed)
    done = "would be removed" if dry_run else "removed"
    text = f"{show.count(len(removed), 'copy', 'copies')} {done}, {len(found) - len(removed)} kept"
    usd = show.dollars(prices.BUCKET_PRICE.usd(freed))
    text += f"; {show.size(freed)} freed, {usd} a month in a bucket"
    checks = [ok("offsite.prune", text, value=freed, unit="bytes")]
    if not dry_run:
        checks += _forget(settings, place, {copy.id for copy in removed})
    return Done(settings, tuple(checks), tuple(removed), time.monotonic() - started)
