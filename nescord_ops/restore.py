"""Putting a backup back: over the live data, which is kept, or into an empty directory.

The backup is written beside the live data, verified, and swapped in by `swap`, which says what a
kill leaves. Nothing that is live is opened, and Chroma's client, which changes what it opens, works
on a copy that is thrown away.

A bot that starts in the milliseconds between the last look for it and the swap is not noticed:
what it then writes goes to the replaced data. Start it after the restore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shlex
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import client, doubt, inventory, places, show, store, swap, volume
from nescord_ops.checks import Check, Findings, Status, fail, ok, unknown, warn
from nescord_ops.errors import (
    BackupError,
    CaptureError,
    OpsError,
    SettingsError,
    StoreError,
    VolumeError,
)
from nescord_ops.inventory import Backup
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress, Snapshot, copy_file, copy_tree, scratch
from nescord_ops.storefile import sync
from nescord_ops.verify import examine

UNTOUCHED = "the live data is untouched"
MARGIN_BYTES = 16 << 20
_VARIABLES = {"database": "DATABASE_URL", "chroma": "CHROMADB_PERSIST_DIRECTORY"}


@dataclasses.dataclass(frozen=True, slots=True)
class Restored(Findings):
    """What was restored, or with `dry_run` would be: `steps` says it in words, in order.

    The checks are those of the copy, made before it was `placed`. `kept` are the directories with
    what was replaced, and `remove_command` removes them. `recovered` says what became of an
    earlier restore that was interrupted.
    """

    name = "restore"

    settings: Settings
    checks: tuple[Check, ...]
    backup_id: str
    taken_at: datetime
    placed: tuple[Path, ...]
    kept: tuple[Path, ...]
    remove_command: str
    steps: tuple[str, ...]
    size_bytes: int
    seconds: float
    recovered: str
    dry_run: bool

    @property
    def headline(self) -> show.Text:
        """What happened, in one sentence, and the verdict on the copy."""
        where = " and ".join(map(str, self.placed))
        what = f"{self.backup_id} of {show.moment(self.taken_at)}"
        if self.dry_run:
            return show.Text(f"Nothing was done. {what} can be restored to {where}.")
        size = f"{show.size(self.size_bytes)} in {self.seconds:.1f} s"
        text = f"Restored {what} to {where} ({size})."
        return show.Text(f"{text} {super(Restored, self).headline}")


def run(
    settings: Settings,
    backup_id: str,
    *,
    to: Path | None = None,
    only: str = "",
    dry_run: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Given a backup's id, put it in the place of the live data, or into the directory `to`.

    `only` one store, "database" or "chroma", is put back if it is named; the other stays as it is.
    Completes or undoes an interrupted restore first. Raise an OpsError, with the live data
    untouched, if a process has it open, if the backup is damaged or lacks a store, or if there is
    no room.
    """
    started = time.monotonic()
    if only and only not in swap.COPIES:
        raise SettingsError(f"{only!r} is no store", f"one of {', '.join(swap.COPIES)}")
    backup = inventory.find(settings, backup_id)
    everywhere = swap.live(settings) if to is None else _inside(to.absolute(), settings)
    chosen = _chosen(backup, everywhere, only, to)
    with contextlib.ExitStack() as stack:
        recovered = ""
        if to is None:
            stack.enter_context(swap.alone(settings, dry_run=dry_run))
            recovered = swap.recover(settings, dry_run=dry_run)
        with swap.telling(recovered):
            swaps = swap.plan(chosen, now or datetime.now(UTC))
            checks = [*_ready(settings, backup, swaps, to)]
            steps = tuple(_steps(backup, swaps))
            kept = tuple(dict.fromkeys(each.kept for each in swaps if each.replaced))
            size = inventory.room_bytes(backup)
            if dry_run and backup.status is Status.FAIL:
                text = f"{backup.id} {backup.fault}: it would be refused"
                checks.append(fail("restore.plan", text, "nescord-ops backup list"))
            elif dry_run:
                checks.append(ok("restore.plan", f"would {'; '.join(steps)}"))
            else:
                proofs, size = _perform(settings, backup, swaps, to, progress or (lambda _: None))
                checks += proofs
    remove = f"rm -r -- {shlex.join(map(str, kept))}" if kept else ""
    if recovered:
        hint = "nescord-ops verify, once the bot runs again"
        checks.append(warn("restore.interrupted", recovered, hint))
    if only == "chroma" and to is None:
        text = f"the notes stay; those since {show.moment(backup.taken_at)} have no vectors"
        hint = "nescord-ops clean unsynced --apply: the bot adds them again"
        checks.append(warn("restore.notes", text, hint))
    if kept and not dry_run:
        text = f"what was replaced lies in {' and '.join(map(str, kept))}"
        checks.append(ok("restore.kept", text, hint=f"when all is well: {remove}"))
    return Restored(
        settings=settings,
        checks=tuple(checks),
        backup_id=backup.id,
        taken_at=backup.taken_at,
        placed=tuple(chosen.values()),
        kept=kept,
        remove_command=remove,
        steps=steps,
        size_bytes=size,
        seconds=time.monotonic() - started,
        recovered=recovered,
        dry_run=dry_run,
    )


def _inside(to: Path, settings: Settings) -> dict[str, Path]:
    """The places in a directory of its own; raise VolumeError unless it is absent or empty."""
    if volume.place(to).kind not in ("missing", "directory") or (to.exists() and any(to.iterdir())):
        raise VolumeError(f"{to} is there already, and not an empty directory", "name a new one")
    if Path(os.path.realpath(to)).is_relative_to(os.path.realpath(settings.chroma_dir)):
        raise VolumeError(f"{to} is in Chroma's directory", "name a directory elsewhere")
    return {name: to / copy for name, copy in swap.COPIES.items()}


def _chosen(
    backup: Backup, everywhere: Mapping[str, Path], only: str, to: Path | None
) -> dict[str, Path]:
    """The places that the backup fills; raise BackupError if it would leave a live store behind."""
    wanted = (only,) if only else tuple(everywhere)
    chosen = {name: everywhere[name] for name in wanted if name in backup.stores}
    if only == "chroma" and not chosen:
        raise BackupError(f"{backup.id} holds no vectors", inventory.LIST_HINT)
    if only != "chroma" and "database" not in backup.stores and (to is None or not chosen):
        hint = f"another backup, or what there is of it: nescord-ops restore {backup.id} --to DIR"
        raise BackupError(f"{backup.id} is not good: {backup.fault}", hint)
    if to is None and len(chosen) < len(wanted):
        raise BackupError(
            f"{backup.id} holds no vectors; with its notes and the vectors of now, search would "
            "find deleted notes and miss others",
            "a backup of both stores; or, for the notes alone, nescord-ops restore "
            f"{backup.id} --only database, and then nescord-ops verify",
        )
    return chosen


def _steps(backup: Backup, swaps: Sequence[swap.Swap]) -> Iterator[str]:
    yield f"write {backup.id} beside its place, verify and sync it"
    for each in swaps:
        for path in each.replaced.values():
            yield f"move {path} to {each.kept}"
        yield f"put the {each.name} of the backup at {each.live}"


def _ready(
    settings: Settings, backup: Backup, swaps: Sequence[swap.Swap], to: Path | None
) -> Iterator[Check]:
    """Raise VolumeError if the places will not do, there is no room, or they are in use."""
    for each in swaps:
        refuse_place(settings, each)
    needed = inventory.room_bytes(backup)
    needed += needed // 20 + MARGIN_BYTES
    refuse_full(swaps[0].live.parent, needed)
    if to is None:
        yield places.url(settings)
        yield swap.unheld(swaps)


def refuse_full(directory: Path, needed: int) -> None:
    """Raise VolumeError unless the file system of a directory has `needed` bytes free."""
    free = volume.space(directory).free_bytes
    if free < needed:
        raise VolumeError(
            f"{directory} has {show.size(free)} free, and the copy takes {show.size(needed)} "
            f"beside what is there; {UNTOUCHED}",
            "free some space (what was replaced is in replaced_…), or restore with --to elsewhere",
        )


def refuse_place(settings: Settings, each: swap.Swap) -> None:
    """Raise VolumeError if a store's place is not where a copy can be put by rename."""
    path, seen = each.live, volume.place(each.live)
    expected = "file" if each.name == "database" else "directory"
    variable = _VARIABLES[each.name]
    if seen.kind == "link":
        hint = f"set {variable} to where it leads: {os.path.realpath(path)}"
        raise VolumeError(f"{path} is a link, and renaming would replace the link", hint)
    if seen.kind not in (expected, "missing"):
        raise VolumeError(f"{path} is no {expected} but {seen.kind}", f"check {variable}")
    mount = volume.mount_of(path)
    if mount and seen.kind != "missing" and mount.path == path.resolve():
        hint = "restore with --to DIR, and copy that into it with the bot stopped"
        raise VolumeError(f"{path} is a mount point, which cannot be renamed", hint)
    if mount and mount.read_only:
        hint = "remount it, or restore with --to a directory elsewhere"
        raise VolumeError(f"{path} is on a read-only file system, {mount.path}", hint)
    for inner in (settings.database, settings.backup_dir):
        ways = (inner, Path(os.path.realpath(inner)))  # a link may lead into it
        if each.name == "chroma" and any(way.is_relative_to(path) for way in ways):
            hint = "move it out of there: Chroma's directory is replaced as a whole"
            raise VolumeError(f"{inner} is in Chroma's directory", hint)


def _perform(
    settings: Settings, backup: Backup, swaps: Sequence[swap.Swap], to: Path | None, say: Progress
) -> tuple[list[Check], int]:
    """Stage, verify and swap; return the checks of the copy and its bytes.

    Raise an OpsError, with everything that was written removed, if anything fails before the swap.
    """
    made = None if to is None or to.exists() else to
    note = None if to else settings.database.parent / swap.INTENT
    try:
        if made:
            volume.private_directory(made)
        _stage(settings, backup, swaps, say)
        say("verifying the copy")
        checks = _proofs(settings, backup, swaps)
        size = sum(volume.usage(each.staged).apparent_bytes for each in swaps)
        say("swapping")  # which may raise: not once the swap is declared
        if to is None:
            _refuse_unproven(settings, backup, checks)
            swap.unheld(swaps)
            swap.declare(settings, swaps, f"restore of {backup.id}")
    except BaseException as error:
        swap.abandon(swaps, note)
        if made:
            with contextlib.suppress(OSError):
                made.rmdir()
        if isinstance(error, OSError):
            text = f"{error.filename or swaps[0].staged}: {error.strerror}; {UNTOUCHED}"
            raise VolumeError(text, "see that the volume takes writes and has room") from error
        raise
    swap.finish(swaps, note)
    return checks, size


def _stage(settings: Settings, backup: Backup, swaps: Sequence[swap.Swap], say: Progress) -> None:
    """Write the backup beside the first store, move the other's copy beside its own; sync both."""
    try:
        home = volume.private_directory(swaps[0].staged.parent)
        taken = inventory.materialise(settings, backup.id, home, progress=say)
    except StoreError as error:
        raise _damaged(settings, backup, error) from error
    for each in swaps:
        source = taken.database if each.name == "database" else taken.chroma
        if source is None:
            raise BackupError(f"{backup.id}: {taken.problems[each.name]}", inventory.LIST_HINT)
        if source != each.staged:
            _carry(source, each.staged)
        _settle(each, backup.evidence.get("originals", {}).get(each.name))


def _carry(source: Path, target: Path) -> None:
    """Move a verified file, if need be to another file system, where it is read again."""
    target.parent.mkdir(mode=0o700)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        refuse_full(target.parent, source.stat().st_size + MARGIN_BYTES)
        copy_file(source, target)
        if _digest(source) != _digest(target):
            text = f"{target} is not what was written to it; {UNTOUCHED}"
            raise VolumeError(text, "check the disk") from None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _settle(each: swap.Swap, original: Mapping[str, int] | None) -> None:
    """Give a copy the owner and mode of the original, else of what is there, and sync it.

    Where nothing is, the owner is that of the directory around it. Files in Chroma's directory
    take its mode without the execute bits. Only root can give files away.
    """
    there, around = volume.place(each.live), volume.place(each.live.parent)
    mode, uid, gid = 0o644 if each.name == "database" else 0o755, around.uid, around.gid
    if original:
        mode, uid, gid = original["mode"], original["uid"], original["gid"]
    elif there.kind != "missing":
        mode, uid, gid = there.mode, there.uid, there.gid
    for path, seen in volume.walk(each.staged):
        assert seen
        if os.geteuid() == 0 and (seen.st_uid, seen.st_gid) != (uid, gid):
            os.chown(path, uid, gid, follow_symlinks=False)
        path.chmod(mode & 0o777 | 0o700 if stat.S_ISDIR(seen.st_mode) else mode & 0o666 | 0o600)
        swap.sync_entry(path)
    sync(each.staged.parent)


def _damaged(settings: Settings, backup: Backup, error: StoreError) -> OpsError:
    """The refusal of a damaged generation: all its damaged files, and the newest that is whole."""
    with contextlib.suppress(OpsError):
        with store.open_store(backup.path) as opened:
            harm = store.check(opened, backup.id)
        if harm:
            names = ", ".join(sorted({found.path or found.problem for found in harm}))
            text = f"{backup.id} is damaged: {show.printable(names)}; {UNTOUCHED}"
            return BackupError(text, _better(settings, backup))
    return StoreError(f"{error}; {UNTOUCHED}", error.hint)


def _better(settings: Settings, backup: Backup) -> str:
    """The command that restores the newest good backup but this, every byte of it read again."""
    for other in inventory.listing(settings).backups:
        if other.good and other.id != backup.id:
            with store.open_store(other.path) as opened:
                if not any(d.generation_id == other.id for d in store.check(opened, other.id)):
                    return f"nescord-ops restore {other.id} (the newest other that is whole)"
    return "nescord-ops backup list: no other backup is known to be good"


def _proofs(settings: Settings, backup: Backup, swaps: Sequence[swap.Swap]) -> list[Check]:
    """Examine the copies; Chroma's client works on a copy of its own, thrown away afterwards."""
    staged = {each.name: each.staged for each in swaps}
    notes, vectors = staged.get("database"), staged.get("chroma")
    here = dataclasses.replace(
        settings, database=notes or settings.database, chroma_dir=vectors or settings.chroma_dir
    )
    root = swaps[0].staged.parent
    copy = Snapshot(root, notes, vectors, {}, backup.taken_at, 0.0, 0.0, 1)
    needed = volume.usage(vectors).allocated_bytes + MARGIN_BYTES if vectors else 0
    try:
        with scratch(needed) as room:
            if vectors:
                copy_tree(vectors, room / "chromadb")
                copy = dataclasses.replace(copy, chroma=room / "chromadb")
            found = examine(copy, here, round_trip=True)
    except CaptureError as error:
        text = f"not opened with Chroma: {error}"
        skipped = unknown("chroma.roundtrip", text, error.hint, expected=True)
        found = (*examine(copy, here), skipped)
    return [c for c in found if c.name.split(".")[0] in {*staged, "stores"}]


def _refuse_unproven(settings: Settings, backup: Backup, checks: Sequence[Check]) -> None:
    """Raise BackupError for a copy that is damaged, or that Chroma cannot work with.

    Raise VolumeError for one that could not be looked at, or that only a newer Chroma can open.
    Other failed checks tell how the data was when it was backed up, and are shown.
    """
    newer = (check for check in checks if check.summary.startswith(client.NEWER))
    if kept := doubt.unread(checks) or next(newer, None):
        hint = f"{kept.hint}; or restore with --to DIR"
        text = f"{backup.id} could not be verified ({kept.name}: {kept.summary}); {UNTOUCHED}"
        raise VolumeError(text, hint)
    refused = [c for c in checks if c.name == "chroma.roundtrip" and c.status is Status.FAIL]
    bad = [*doubt.damage(checks), *refused]
    if bad:
        text = f"{backup.id} is damaged ({bad[0].name}: {bad[0].summary}); {UNTOUCHED}"
        raise BackupError(text, _better(settings, backup))
