"""Swapping live stores for copies beside them, so that a kill at any moment loses nothing.

1. each copy lies complete and synced in a hidden directory beside its store;
2. a note of intent, synced too, says so: from here on the swap only goes forward;
3. by rename, what is live goes to `replaced_…/`, and the copies go to its place;
4. the note is removed.

Killed before 2, the live data is as it was, and `recover` removes what was written. Killed later,
`recover` goes on: a copy that still lies in its hidden directory is a store that is not swapped
yet, which is all that there is to remember. A bot that starts in between finds a store missing,
or one old and one new; what it then writes goes to `replaced_…/` too, and is never overwritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import database, holders, show, volume
from nescord_ops.checks import Check, ok, warn
from nescord_ops.errors import OpsError, VolumeError
from nescord_ops.settings import Settings
from nescord_ops.snapshot import DATABASE
from nescord_ops.storefile import sync

HIDDEN = ".nescord-ops-restore-"
_LOCK_SECONDS, _NOTE_BYTES = 1.0, 1 << 16
INTENT = ".nescord-ops-restore.json"
STOP_HINT = "stop the bot (on Railway: start command `sleep infinity`, redeploy), and run it again"
# In the order they are swapped: a directory is likelier to refuse a rename than a file.
COPIES = {"chroma": "chromadb", "database": DATABASE}
_BESIDE = ("-journal", "-wal", "-shm", "")  # the database last: then all of its files are moved
_STAMP = re.compile(r"\d{8}_\d{6}(?:_\d+)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Swap:
    """One store's way: its copy from `staged` to `live`, what was there to the directory `kept`."""

    name: str
    live: Path
    staged: Path
    kept: Path

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of the store's files end in, in the order they are moved."""
        return _BESIDE if self.name == "database" else ("",)

    @property
    def replaced(self) -> dict[str, Path]:
        """Everything that is live now and belongs to the store, by suffix."""
        files = {suffix: database.beside(self.live, suffix) for suffix in self.suffixes}
        return {suffix: path for suffix, path in files.items() if os.path.lexists(path)}


def live(settings: Settings) -> dict[str, Path]:
    """Return the places of the stores by name, with no link on the way to them.

    So one directory that two ways lead to is one.
    """
    places = {"chroma": settings.chroma_dir, "database": settings.database}
    return {name: Path(os.path.realpath(p.parent), p.name) for name, p in places.items()}


def plan(places: Mapping[str, Path], now: datetime) -> list[Swap]:
    """Given the places of stores, return their swaps, under names that nothing has yet."""
    first = f"{now.astimezone(UTC):%Y%m%d_%H%M%S}"
    for number in itertools.count(1):
        swaps = _swaps(places, first if number == 1 else f"{first}_{number}")
        if not any(os.path.lexists(swap.kept) for swap in swaps):
            break
    return swaps


def _swaps(places: Mapping[str, Path], stamp: str) -> list[Swap]:
    return [
        Swap(
            name=name,
            live=places[name],
            staged=places[name].parent / f"{HIDDEN}{stamp}" / copy,
            kept=places[name].parent / f"replaced_{stamp}",
        )
        for name, copy in COPIES.items()
        if name in places
    ]


def _lock(handle: int) -> None:
    """Lock a directory; one that was killed may leave a child that holds it for a moment more."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextlib.contextmanager
def alone(settings: Settings, *, dry_run: bool = False) -> Iterator[None]:
    """Keep other restores and clean-ups out, by a lock on the directories of the stores."""
    with contextlib.ExitStack() as locks:
        parents = {path.parent for path in live(settings).values()}
        if dry_run:  # two that are missing may lie in one that exists
            parents = {volume.existing(parent) for parent in parents}
        for parent in sorted(parents):
            try:
                if not dry_run:
                    parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
                locks.callback(os.close, handle)
                _lock(handle)
            except BlockingIOError as error:
                raise VolumeError(
                    f"another restore or clean-up is at work in {parent}", "wait for its end"
                ) from error
            except OSError as error:
                hint = "see that the volume is mounted and takes writes"
                raise VolumeError(f"{parent}: {error.strerror}", hint) from error
        yield


def unheld(swaps: Sequence[Swap]) -> Check:
    """Return a check that nobody has the stores open; raise VolumeError, naming who, if one has."""
    seen = holders.scan(path for swap in swaps for path in swap.replaced.values())
    if seen.holders:
        raise VolumeError("; ".join(map(str, seen.holders)), STOP_HINT)
    if seen.complete and not seen.unseen:
        return ok("restore.holders", "no process has the live data open")
    text = "there is no /proc here"
    if seen.unseen:
        text = f"{', '.join(seen.unseen[:5])} cannot be looked into"
    hint = "be sure that the bot is stopped"
    return warn("restore.holders", f"nobody was seen with the live data open, but {text}", hint)


def declare(settings: Settings, swaps: Sequence[Swap], purpose: str) -> None:
    """Write the note of intent, whole or not at all. Raise OSError, with none left, if it fails.

    `purpose` says what the swap is, as `restore of ID`.
    """
    note, hidden = settings.database.parent / INTENT, swaps[0].staged.parent.name
    home = volume.private_directory(note.parent / hidden)
    draft = home / "intent"
    document = {
        "purpose": purpose,
        "stamp": hidden.removeprefix(HIDDEN),
        "places": {swap.name: str(swap.live) for swap in swaps},
    }
    with open(draft, "x", encoding="ascii", opener=volume.private) as file:
        json.dump(document, file)
    sync_entry(draft)
    try:
        draft.rename(note)
        sync(note.parent)
    except BaseException:
        note.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):  # unless the copy of the database lies there
            home.rmdir()


def finish(swaps: Sequence[Swap], note: Path | None) -> None:
    """Swap every store that is not swapped yet, and clean up.

    Raise VolumeError if a rename is refused: all is as it was if it was the first one, else
    `recover` goes on from there.
    """
    try:
        for swap in swaps:
            try:
                _exchange(swap)
            except OSError:  # a fault may pass, and half a swap is of no use to anybody
                _exchange(swap)
        lost = [str(swap.live) for swap in swaps if not os.path.lexists(swap.live)]
        if lost:
            text = f"{lost[0]} is gone, and so is the copy that was to replace it"
            raise VolumeError(text, f"remove {note}, and restore a backup")
        _close(swaps, note)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}"
        if all(swap.staged.exists() and not swap.kept.exists() for swap in swaps):
            abandon(swaps, note)
            if not (note and os.path.lexists(note)):
                raise VolumeError(f"{text}; the live data is untouched", STOP_HINT) from error
        hint = "keep the bot stopped, and run the same command again: it goes on from here"
        raise VolumeError(f"the swap stopped half way: {text}", hint) from error
    except KeyboardInterrupt:  # it comes too late: half a swap is of no use to anybody
        finish(swaps, note)


def _close(swaps: Iterable[Swap], note: Path | None) -> None:
    _clear(swaps)
    if note:
        note.unlink()
        sync(note.parent)


def abandon(swaps: Iterable[Swap], note: Path | None) -> None:
    """Give a swap up of which nothing is done: the note first, for it vouches for the copies.

    What cannot be removed now is left to `recover`.
    """
    with contextlib.suppress(OSError):
        if note and os.path.lexists(note):
            note.unlink()
            sync(note.parent)
        _clear(swaps)


def _clear(swaps: Iterable[Swap]) -> None:
    """Remove the hidden directories."""
    for staging in {swap.staged.parent for swap in swaps}:
        volume.remove_tree(staging)


def _exchange(swap: Swap) -> None:
    """Move what is live into `kept` and the copy into its place, unless that was done before."""
    if not swap.staged.exists():
        return
    volume.private_directory(swap.kept)
    try:
        name = _free_name(swap)
        handle = os.open(swap.kept, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for suffix, path in swap.replaced.items():
                os.rename(path, f"{name}{suffix}", dst_dir_fd=handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        sync(swap.live.parent)
        swap.staged.rename(swap.live)
        sync(swap.live.parent)
    finally:
        with contextlib.suppress(OSError):  # unless nothing was moved into it
            swap.kept.rmdir()


def _free_name(swap: Swap) -> str:
    """The name under which to keep a store, beside what was kept of it before.

    A kept `-wal` without its database is a move that was interrupted: it is completed, unless a
    bot has since made another one.
    """
    for number in itertools.count(1):
        name = swap.live.name if number == 1 else f"{swap.live.name}.{number}"
        kept = (swap.kept / f"{name}{suffix}" for suffix in (*swap.replaced, ""))
        if not any(os.path.lexists(path) for path in kept):
            break
    return name


def recover(settings: Settings, *, dry_run: bool = False) -> str:
    """Complete or undo a swap that was interrupted; return what was found, or nothing.

    The caller is `alone`. Raise VolumeError if a process has the live data open, or if the swap
    was of other places than the settings' own.
    """
    places, note, text = live(settings), settings.database.parent / INTENT, ""
    if os.path.lexists(note):
        swaps, purpose = _noted(note, places)
        kept = " and ".join(dict.fromkeys(str(swap.kept) for swap in swaps))
        done = "would be" if dry_run else "was"
        text = f"an interrupted {purpose} {done} completed; replaced data: {kept}"
        if not dry_run:
            unheld(swaps)
            finish(swaps, note)
    for parent in {path.parent for path in places.values()}:
        for left in parent.glob(f"{HIDDEN}*"):
            text = (
                text or "an interrupted restore or clean-up was undone: the live data is as before"
            )
            if not dry_run:
                volume.remove_tree(left)
    return text


def refuse_unfinished(settings: Settings) -> None:
    """Raise VolumeError between the stores' swaps, when they may be of two moments."""
    note = settings.database.parent / INTENT
    if os.path.lexists(note):
        text = f"a restore or clean-up is at work, or was interrupted: {note}"
        hint = "wait for its end; if it was killed, stop the bot and run the same command again"
        raise VolumeError(text, hint)


@contextlib.contextmanager
def telling(recovered: str) -> Iterator[None]:
    """Let an error that comes after a recovery begin with what that was."""
    try:
        yield
    except OpsError as error:
        if recovered:
            error.message = show.Text(f"{recovered}. Then: {error}")
        raise


def _noted(note: Path, places: Mapping[str, Path]) -> tuple[list[Swap], str]:
    """Read a note of intent; raise VolumeError if it is none, or speaks of other places."""
    try:
        with open(note, "rb", opener=_plainly) as file:
            said = json.loads(file.read(_NOTE_BYTES))
        meant, purpose = dict(said["places"]), show.printable(said["purpose"])
        if not _STAMP.fullmatch(said["stamp"]):
            raise ValueError("no time")
        if not meant or not meant.keys() <= places.keys():
            raise ValueError("no such store")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VolumeError(f"{note} is no note of a swap: {error}", "remove it") from error
    if any(str(places.get(name)) != path for name, path in meant.items()):
        where = show.printable(" and ".join(map(str, meant.values())))
        text = f"a {purpose} to {where} was interrupted, and the settings differ now"
        raise VolumeError(text, "run the same command again with the settings of then")
    return _swaps({name: places[name] for name in meant}, said["stamp"]), purpose


def _plainly(path: str, flags: int) -> int:
    """Open a file, but follow no link and wait for no pipe that was put in its place."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def sync_entry(path: Path) -> None:
    """Make a file, or the entries of a directory, last (fsync(2)); a link is refused."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
