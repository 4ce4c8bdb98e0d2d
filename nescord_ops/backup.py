"""Backups of both stores at one moment: take, list, check, drill, prune, export and adopt them.

A generation in the store is the tree of a snapshot with its evidence. A capture that is torn is
never stored; data that is damaged on the volume is, marked as such and never counted as good: a
second capture that shows the same damage says that it is the data's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops import (
    freshness,
    inventory,
    keys,
    legacy,
    offsite,
    prices,
    proof,
    remote,
    restore,
    show,
    store,
    storefile,
    swap,
    verify,
    volume,
)
from nescord_ops.checks import Check, Findings, ok
from nescord_ops.doubt import damage, refuse_unread, undone
from nescord_ops.errors import BackupError, CaptureError, OpsError, VolumeError
from nescord_ops.evidence import quality
from nescord_ops.footprint import STORE
from nescord_ops.inventory import (
    ADOPTED,
    BOT,
    GENERATION,
    Backup,
    Backups,
    find,
    listing,
    materialise,
)
from nescord_ops.places import FREE_FAIL_BYTES
from nescord_ops.proof import Checked, Drill, check, drill, witness
from nescord_ops.restore import Restored
from nescord_ops.results import Result
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress, Snapshot, capture, scratch

__all__ = [
    "Backup",
    "BackupError",
    "Backups",
    "Checked",
    "Created",
    "Drill",
    "Pruned",
    "adopt",
    "check",
    "create",
    "drill",
    "export",
    "find",
    "listing",
    "materialise",
    "prune",
    "rehearse",
    "review",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Pruned(Result):
    """What a prune removed (or would, in a `dry_run`), what it kept, and what that saves.

    `usd_per_month` is what `freed_bytes` cost at the guide's price.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed_bytes: int
    usd_per_month: float
    dry_run: bool

    def __str__(self) -> str:
        return show.printable(self._told)

    @property
    def _told(self) -> str:
        done = "to remove" if self.dry_run else "removed"
        text = f"{show.count(len(self.removed), 'generation')} {done}, {len(self.kept)} kept"
        usd = show.dollars(self.usd_per_month)
        return f"{text}; {show.size(self.freed_bytes)} freed, {usd} a month"

    def _repr_html_(self) -> str:
        rows = (("Removed", ", ".join(self.removed)), ("Kept", ", ".join(self.kept)))
        return show.table(("", "Generations"), rows, caption=self._told)


@dataclasses.dataclass(frozen=True, slots=True)
class Created(Findings):
    """What `create` or `adopt` did. `seconds` are the capture's.

    `backup` is None in a dry run, and where the store could not be listed afterwards. `standing`
    is how the backups stand afterwards, None where that could not be looked at.
    """

    name = "backup"

    settings: Settings
    checks: tuple[Check, ...]
    backup: Backup | None
    seconds: float
    lock_seconds: float
    pruned: Pruned | None = None
    dry_run: bool = False
    standing: freshness.Standing | None = None


def create(
    settings: Settings,
    *,
    keep: int | None = None,
    drill: bool = False,
    push: bool = False,
    dry_run: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Created:
    """Capture both stores while the bot runs, and store them as one generation.

    Then drill it, push it off site, and keep only the newest `keep` good generations, if asked.
    Writes scratch space and the store; a `dry_run` the former only. Raise OffsiteError, before
    anything is done, if there is no place or recipient to push to, CaptureError if a store is
    missing or will not hold still, VolumeError without room, StoreError if the store cannot be
    written: nothing is stored then, and nothing is lost.
    """
    _check_keep(keep)
    say = progress or (lambda _: None)
    if push:
        keys.recipients(settings.age_recipient)
        remote.connect(settings.offsite_url)
    with contextlib.ExitStack() as stack:
        copy, seen = _captured(settings, stack, say)
        text = "both stores were copied at one moment; Chroma's writers waited at the most "
        captured = ok("backup.capture", f"{text}{copy.lock_seconds * 1000:,.0f} ms")
        facts = {"kind": GENERATION, "keep": keep, "drill": drill}
        facts |= witness(copy, settings, seen)
        made, stored = _stored(settings, copy, facts, now or copy.taken_at, dry_run, say)
    checks = [captured, *stored]
    pruned = None
    after: Any = (
        (drill, "drill.restore", "drilled", "backup drill", proof.drill),
        (push, "offsite.push", "pushed", "offsite push", offsite.push),
    )
    for wanted, name, done, command, work in after:
        try:
            if made and wanted:
                checks += work(settings, made, now=now, progress=say).checks
        except (OpsError, OSError) as error:
            text = f"the backup was taken, and not {done}"
            checks.append(undone(name, text, error, f"nescord-ops {command} {made}"))
    if keep and dry_run:
        checks.append(ok("backup.prune", f"then the newest {keep} good generations would be kept"))
    elif keep:
        try:
            pruned = prune(settings, keep, progress=say)
            checks.append(ok("backup.prune", str(pruned)))
        except (OpsError, OSError) as error:
            text, how = "the backup was taken, none was removed", f"backup prune --keep {keep}"
            checks.append(undone("backup.prune", text, error, f"nescord-ops {how}"))
    backup = _listed(settings, made, checks)
    took, standing = (copy.seconds, copy.lock_seconds), freshness.standing(settings)
    return Created(settings, tuple(checks), backup, *took, pruned, dry_run, standing)


def _listed(settings: Settings, made: str, checks: list[Check]) -> Backup | None:
    """Return the backup that was made, if any; add a check if the store does not list it now."""
    try:
        return find(settings, made) if made else None
    except (OpsError, OSError) as error:
        text = f"{made} was stored, and cannot be looked up"
        checks.append(undone("backup.listed", text, error, "nescord-ops backup list"))
    return None


def _check_keep(keep: int | None) -> None:
    if keep is not None and keep < 1:
        raise BackupError(f"keep is {keep}: at least one generation stays", "use --keep 1 or more")


def _captured(
    settings: Settings, stack: contextlib.ExitStack, say: Progress
) -> tuple[Snapshot, tuple[Check, ...]]:
    """Capture both stores, again if the copy is damaged; return it with what was seen of it.

    Damage that two copies show alike is the data's own. Raise CaptureError if they differ, and
    VolumeError while the stores are being swapped: they may be of two moments.
    """
    damages: list[tuple[str, ...]] = []
    for _ in range(2):
        stack.close()  # the copy before, if there is one
        swap.refuse_unfinished(settings)
        copy = stack.enter_context(capture(settings, say))
        swap.refuse_unfinished(settings)
        if copy.problems:
            reason = "; ".join(copy.problems.values())
            hint = "nescord-ops verify says where the bot writes; nothing was stored"
            raise CaptureError(f"only half of the data could be copied: {reason}", hint)
        say("looking at the copy")
        seen = refuse_unread(verify.glance(copy, settings))
        found = tuple(check.name for check in damage(seen))
        if not found or found in damages:
            return copy, seen
        damages.append(found)
    text = f"two copies are damaged, each in another way: {', '.join({*damages[0], *damages[1]})}"
    raise CaptureError(text, "run it again, or with the bot stopped; nothing was stored")


def _stored(
    settings: Settings,
    copy: Snapshot,
    evidence: dict[str, Any],
    taken_at: datetime,
    dry_run: bool,
    say: Progress,
) -> tuple[str, list[Check]]:
    """Store a snapshot and return its id, or nothing in a dry run, with what is to be said."""
    path = settings.backup_dir / STORE
    known = listing(settings)
    if known.problem:
        raise BackupError(known.problem, known.hint)
    _need_room(settings, known, evidence["allocated_bytes"])
    sound = quality(evidence)
    if dry_run:
        size = show.size(evidence["allocated_bytes"])
        text = f"at the most {size} would go into {path}: nothing was written"
        return "", [sound, ok("backup.stored", text)]
    with store.open_store(path, create=True) as opened:
        taken = {backup.id for backup in known.backups}
        made = _add(opened, taken, copy, evidence, taken_at, say)
    text = f"{made.id} holds {show.size(made.size_bytes)}; the store grew by "
    text += f"{show.size(made.added_bytes)}"
    return made.id, [sound, ok("backup.stored", text, value=made.added_bytes, unit="bytes")]


def _add(
    opened: store.Store,
    taken: set[str],
    copy: Snapshot,
    evidence: dict[str, Any],
    taken_at: datetime,
    say: Progress,
) -> store.Generation:
    """Add a generation under the first free id of its second: another backup may be quicker."""
    base = f"nescordbot_backup_{taken_at.astimezone(UTC):{legacy.STAMP}}"
    ids = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    free = next(name for name in ids if name not in taken)

    def report(done: int, total: int) -> None:
        say(f"storing {show.size(done)} of {show.size(total)}")

    try:
        return store.add(opened, free, copy.root, evidence, taken_at=taken_at, progress=report)
    except store.StoreError:
        if free not in {generation.id for generation in store.generations(opened)}:
            raise
    return _add(opened, taken | {free}, copy, evidence, taken_at, say)


def _need_room(settings: Settings, known: Backups, size: int) -> None:
    """Raise VolumeError unless the backup fits and the bot can go on writing.

    A first backup may take as much as the data; a later one what has changed, a tenth as a rule.
    """
    needed = FREE_FAIL_BYTES + (size // 10 if known.generations else size)
    free = volume.space(settings.backup_dir).free_bytes
    if free < needed:
        text = f"{settings.backup_dir} has {free:,} bytes free, and {needed:,} may be needed"
        raise VolumeError(text, "nescord-ops backup prune --keep 2, or grow the volume")


def prune(
    settings: Settings, keep: int, *, dry_run: bool = False, progress: Progress | None = None
) -> Pruned:
    """Remove the generations that are older than the newest `keep` good ones.

    Every byte is checked first: what is damaged is not counted, and while fewer than `keep` are
    good nothing is removed. The bot's own backups are not touched. Raise BackupError, with nothing
    removed, if `keep` is less than 1, or if the store is damaged or cannot be read.
    """
    _check_keep(keep)
    path = settings.backup_dir / STORE
    known = listing(settings)
    if known.problem:
        raise BackupError(known.problem, known.hint)
    ours = known.generations
    if not os.path.lexists(path):
        return Pruned((), (), 0, 0.0, dry_run)
    say = progress or (lambda _: None)
    with store.open_store(path) as opened:
        say("checking what is to be kept")
        found = {damage.generation_id: damage for damage in store.check(opened)}
        if "" in found:
            text = f"{path} is damaged, and nothing was removed: {found[''].problem}"
            raise BackupError(text, storefile.CHECK_HINT)
        good = [backup for backup in known.good if backup.id not in found]
        last = ours.index(good[keep - 1]) + 1 if len(good) >= keep else len(ours)
        # a good one may turn out not to restore: the newest that did is never removed
        proven = next((backup for backup in good if backup.proven_at), None)
        removed = tuple(backup.id for backup in ours[last:] if backup is not proven)
        say(f"removing {show.count(len(removed), 'generation')}")
        freed = store.remove(opened, removed, dry_run=dry_run)
    kept = tuple(backup.id for backup in ours if backup.id not in removed)
    return Pruned(removed, kept, freed, prices.GUIDE_PRICE.usd(freed), dry_run)


def export(
    settings: Settings,
    backup_id: str,
    directory: Path,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a backup below `directory` in the bot's own format, and return its directory.

    The bot's restore accepts it once it lies in `/app/data/backups`. Written beside and renamed: it
    is whole or absent. Raise BackupError if it is there already, VolumeError without room.
    """
    backup = find(settings, backup_id)
    stamped = f"nescordbot_backup_{backup.taken_at:{legacy.STAMP}}"
    target = directory.absolute() / (stamped if backup.kind == BOT else backup.id)
    if os.path.lexists(target):
        raise BackupError(f"{target} is there already", "name another directory")
    if dry_run:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(inventory.room_bytes(backup) + proof.SCRATCH_BYTES, target.parent) as root:
            tree = root / target.name
            copy = materialise(settings, backup_id, tree, progress=progress)
            if copy.chroma:
                copy.chroma.rename(tree / legacy.CHROMA)
            legacy.write_manifest(tree, backup.taken_at, settings)
            for path, _ in volume.walk(tree):
                swap.sync_entry(path)
            tree.rename(target)
        storefile.sync(target.parent)
    except OSError as error:
        raise VolumeError(f"{target} cannot be written: {error.strerror}") from error
    return target


def adopt(
    settings: Settings,
    path: Path,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Created:
    """Take one of the bot's backups into the store, as a generation of kind `adopted`.

    `path` is its directory, `.db` or `.db.zip`, or a name in the backup directory; it stays where
    it is. One without vectors, or without its database, is marked and never counted as good.
    Raise BackupError if it is none of the bot's, or if nothing in it can be read.
    """
    place = path if os.path.lexists(path) else settings.backup_dir / path.name
    bot = legacy.recognise(place.absolute())
    if bot is None:
        hint = "the bot names them nescordbot_backup_DATE_TIME/ or backup_DATE_TIME_manual.db[.zip]"
        raise BackupError(f"{path} is no backup of the bot's", hint)
    say = progress or (lambda _: None)
    with scratch(legacy.unpacked_bytes(bot) + proof.SCRATCH_BYTES) as root:
        copy = inventory.unpack(bot, settings, root / "copy")
        facts = witness(copy, settings, refuse_unread(verify.examine(copy, settings)))
        facts |= {"kind": ADOPTED, "source": bot.path.name, "originals": {}}
        made, checks = _stored(settings, copy, facts, copy.taken_at, dry_run, say)
    backup = _listed(settings, made, checks)
    return Created(settings, tuple(checks), backup, copy.seconds, 0.0, dry_run=dry_run)


def rehearse(settings: Settings, backup_id: str, progress: Progress | None = None) -> Restored:
    """Restore a backup into scratch space as it would be restored, and remove it again."""
    needed = inventory.room_bytes(find(settings, backup_id))
    with scratch(needed + proof.SCRATCH_BYTES) as root:
        return restore.run(settings, backup_id, to=root / "restored", progress=progress)


def review(settings: Settings, now: datetime | None = None) -> Checked:
    """Return what verify says of the backups, by itself; reads only."""
    checks = tuple(freshness.health(settings, now or datetime.now(UTC)))
    return Checked(settings, checks, freshness.standing(settings))
