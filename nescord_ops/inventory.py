"""Every backup there is, ours and the bot's: what is known of each, and how to lay one out.

Ours are generations in the store, each with its evidence; the bot's are files and directories
beside it. A backup is *good* if it is ours, holds both stores, and nothing speaks against it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescord_ops import chroma, database, doubt, legacy, show, store, volume
from nescord_ops.checks import Status, plain
from nescord_ops.errors import BackupError, StoreError, UnreadError, VolumeError
from nescord_ops.evidence import BOTH, ID, is_sound
from nescord_ops.footprint import STORE
from nescord_ops.prices import GUIDE_PRICE
from nescord_ops.results import Result
from nescord_ops.settings import Settings
from nescord_ops.snapshot import DATABASE, Progress, Snapshot
from nescord_ops.storefile import BUSY_SECONDS, CHECK_HINT

if TYPE_CHECKING:
    import pandas

GENERATION, ADOPTED, PULLED, BOT = "generation", "adopted", "pulled", "bot"
LIST_HINT = "nescord-ops backup list"
_PATIENCE_SECONDS = 5.0  # of verify, with a backup that is being taken
_WRITING_SECONDS = 3600.0  # a journal older than this was left by a kill


@dataclasses.dataclass(frozen=True, slots=True)
class Backup(Result):
    """One backup: `kind` is generation, adopted (the bot's, taken into the store), pulled (from
    off site) or bot.

    `size_bytes` is what it holds, `added_bytes` what the store grew by for it (None for the
    bot's). `fault` says why it is not good; `evidence` is what was written down about it.
    """

    id: str
    kind: str
    taken_at: datetime
    stores: tuple[str, ...]
    size_bytes: int
    added_bytes: int | None
    fault: str
    evidence: Mapping[str, Any] = dataclasses.field(repr=False)
    path: Path = dataclasses.field(repr=False)

    @property
    def good(self) -> bool:
        """Whether it is ours, of both stores, and nothing is known against it."""
        return self.kind != BOT and not self.fault

    @property
    def whole(self) -> bool:
        """Whether it is ours, and nothing is known against what it holds, be it one store."""
        return self.kind != BOT and self.fault in ("", _missing(self.stores))

    @property
    def proven_at(self) -> datetime | None:
        """When a drill last restored it; None if never, or if a later one failed."""
        return _moment(self.evidence.get("proven_at"))

    @property
    def status(self) -> Status:
        """ok if proven, warn if good or of one store, fail if damaged, unknown if the bot's."""
        if self.kind == BOT:
            return Status.UNKNOWN
        if self.fault and self.stores in (BOTH, ()):
            return Status.FAIL
        return Status.OK if self.proven_at and not self.fault else Status.WARN

    @property
    def known(self) -> str:
        """What is known of it, in a few words."""
        if self.fault:
            return self.fault
        if self.kind == BOT:
            return "a copy of live files, not proven"
        if self.proven_at:
            return f"proven by a drill on {show.moment(self.proven_at)}"
        checked, drilled = (self.evidence.get(key) for key in ("checked", "drilled"))
        if drilled:
            return f"the drill of {show.moment(_moment(drilled['at']))} was inconclusive"
        when = f"checked on {show.moment(_moment(checked['at']))}, " if checked else ""
        return f"{when}never drilled"

    @property
    def summary(self) -> str:
        """The whole backup in one line."""
        held = (
            f"{self.kind}, {show.moment(self.taken_at)}, {' and '.join(self.stores) or 'nothing'}"
        )
        return f"{held}, {show.size(self.size_bytes)}: {self.known}"

    def to_dict(self) -> dict[str, Any]:
        """Return what a person wants to know of it, as JSON values."""
        checked, drilled = (self.evidence.get(key) or {} for key in ("checked", "drilled"))
        return {
            **{name: plain(getattr(self, name)) for name in ("id", "kind", "taken_at", "stores")},
            **{name: getattr(self, name) for name in ("size_bytes", "added_bytes", "good")},
            "fault": plain(self.fault),
            "checked_at": checked.get("at"),
            "checked": checked.get("outcome", "never"),
            "drilled_at": drilled.get("at"),
            "drilled": drilled.get("outcome", "never"),
            "offsite_at": (self.evidence.get("offsite") or {}).get("pushed_at"),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Backups(Result):
    """All backups, newest first. `problem` says why the store could not be read, if it could not.

    `store_bytes` is what the store takes on its file system, however many generations share it.
    `unread`: it is the machine that kept us from reading it, or a backup at work (`busy`).
    """

    backups: tuple[Backup, ...]
    store_bytes: int
    problem: str = ""
    hint: str = ""
    busy: bool = False
    unread: bool = False

    @property
    def generations(self) -> tuple[Backup, ...]:
        """Those in the store."""
        return tuple(backup for backup in self.backups if backup.kind != BOT)

    @property
    def good(self) -> tuple[Backup, ...]:
        """The good ones. An adopted or pulled one, maybe of another volume, counts in need only."""
        good = [backup for backup in self.backups if backup.good]
        return tuple([backup for backup in good if backup.kind == GENERATION] or good)

    @property
    def newest_good(self) -> Backup | None:
        """The one to restore, if there is one."""
        return next(iter(self.good), None)

    @property
    def newest_proven(self) -> Backup | None:
        """The newest good one that a drill has restored."""
        return next((backup for backup in self.good if backup.proven_at), None)

    @property
    def plain_bytes(self) -> int:
        """What the generations would take as plain copies."""
        return sum(backup.size_bytes for backup in self.generations)

    def costs(self) -> show.Html:
        """What the generations cost here, beside plain copies of the same, at the guide's price."""
        rows = [
            (
                *(words, len(self.generations), show.amount(size, "bytes")),
                show.amount(GUIDE_PRICE.usd(size), "USD"),
            )
            for words, size in (
                ("In the store, each page once", self.store_bytes),
                ("As plain copies", self.plain_bytes),
            )
        ]
        return show.Html(show.table(("Kept", "Generations", "Bytes", "US dollars a month"), rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the list as JSON values."""
        rows = [backup.to_dict() for backup in self.backups]
        return {"store_bytes": self.store_bytes, "problem": plain(self.problem), "backups": rows}

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a backup, the fields of `Backup.to_dict`."""
        import pandas

        return pandas.DataFrame([backup.to_dict() for backup in self.backups])

    def _repr_html_(self) -> str:
        columns = ("Backup", "Kind", "Taken", "Holds", "Size", "Grew the store by", "What is known")
        rows = [
            (
                backup.id,
                backup.kind,
                show.moment(backup.taken_at),
                " and ".join(backup.stores),
                show.amount(backup.size_bytes, "bytes"),
                "" if backup.added_bytes is None else show.amount(backup.added_bytes, "bytes"),
                backup.known,
            )
            for backup in self.backups
        ]
        text = self.problem or f"The store takes {show.size(self.store_bytes)}."
        return show.table(columns, rows, caption=text, css="backups")


def listing(settings: Settings, *, looking: bool = False) -> Backups:
    """Return every generation and every backup of the bot's, newest first.

    A store that cannot be read is a `problem`, and the rest is listed all the same. Who is only
    `looking` does not open a store that a killed backup left half written, since opening mends it.
    Raise BackupError if the directory cannot be read.
    """
    path = settings.backup_dir / STORE
    try:
        found = [_of_bot(backup) for backup in bots(settings)]
    except OSError as error:
        text = f"{error.filename} cannot be read: {error.strerror}"
        raise BackupError(text, "run it as the bot's user or root") from error
    if not os.path.lexists(path):
        return Backups(_newest_first(found), 0)
    size = volume.usage(path).allocated_bytes
    journal, writing = next(volume.walk(database.beside(path, "-journal")))
    if looking and writing:
        recent = time.time() - writing.st_mtime < _WRITING_SECONDS
        text = "a backup is being written" if recent else "a backup was killed while it was written"
        return Backups(_newest_first(found), size, f"{text}: {journal}", LIST_HINT, recent, recent)
    patience = _PATIENCE_SECONDS if looking else BUSY_SECONDS

    def read() -> list[Backup]:
        with store.open_store(path, busy_seconds=patience) as opened:
            return [_of_store(path, generation) for generation in store.generations(opened)]

    try:
        ours = doubt.read_twice(read)
    except StoreError as error:
        cause = error.__cause__
        busy = getattr(cause, "sqlite_errorname", "").startswith("SQLITE_BUSY")
        lost = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        unread = busy or lost or database.of_the_machine(cause)
        return Backups(_newest_first(found), size, str(error), error.hint, busy, unread)
    return Backups(_newest_first([*found, *ours]), size)


def bots(settings: Settings) -> Iterator[legacy.BotBackup]:
    """Yield the bot's own backups, in our directory and in the bot's. Raise OSError if unreadable.

    The bot keeps them beside its database whatever our setting is.
    """
    for directory in dict.fromkeys((settings.backup_dir, settings.database.parent / "backups")):
        yield from legacy.backups(directory)


def _newest_first(backups: Iterable[Backup]) -> tuple[Backup, ...]:
    """Sort by time, where a later capture is never older than an earlier one: clocks go back."""
    dated, latest = [], datetime.fromtimestamp(0, UTC)
    for backup in backups:
        if backup.kind == GENERATION:
            latest = max(latest, backup.taken_at)
        dated.append((latest if backup.kind == GENERATION else backup.taken_at, backup))
    order = sorted(range(len(dated)), key=lambda at: (dated[at][0], at), reverse=True)
    return tuple(dated[at][1] for at in order)


def _of_bot(backup: legacy.BotBackup) -> Backup:
    held = zip(BOTH, (backup.has_database, backup.has_chroma), strict=True)
    stores = tuple(name for name, there in held if there)
    size = volume.usage(backup.path).apparent_bytes
    facts = (backup.path.name, BOT, backup.taken_at, stores, size, None, _missing(stores))
    return Backup(*facts, {}, backup.path)


def _of_store(path: Path, generation: store.Generation) -> Backup:
    sound = generation.intact and re.fullmatch(ID, generation.id) is not None
    sound = sound and is_sound(generation.evidence)
    evidence = generation.evidence if sound else {}
    stores = tuple(evidence.get("stores", ()))
    return Backup(
        id=generation.id,
        kind=evidence.get("kind", GENERATION),
        taken_at=generation.taken_at,
        stores=stores,
        size_bytes=generation.size_bytes,
        added_bytes=generation.added_bytes,
        fault=_fault(evidence, stores) if sound else "its record is damaged",
        evidence=evidence,
        path=path,
    )


def _fault(evidence: Mapping[str, Any], stores: tuple[str, ...]) -> str:
    """Why a generation does not count as good: the gravest reason."""
    for key, word in (("checked", "check"), ("drilled", "drill")):
        tried = evidence.get(key) or {}
        if tried.get("outcome") == "failed":
            return f"failed its {word} on {show.moment(_moment(tried['at']))}: {tried['reason']}"
    if evidence.get("damaged"):
        return f"the data was damaged when it was taken: {', '.join(evidence['damaged'])}"
    return _missing(stores)


def _missing(stores: tuple[str, ...]) -> str:
    names = {"database": "no notes (the database is missing)", "chroma": "no vectors"}
    missing = [text for name, text in names.items() if name not in stores]
    return f"holds {' and '.join(missing)}" if missing else ""


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def find(settings: Settings, backup_id: str) -> Backup:
    """Given an id, return its backup: a generation before a backup of the bot's of that name.

    Raise BackupError if there is none, or if it is no id but a path; UnreadError if it is the
    machine that does not say.
    """
    if not backup_id or "/" in backup_id or "\0" in backup_id or backup_id in (".", ".."):
        raise BackupError(f"{backup_id!r} is no id of a backup", LIST_HINT)
    found = listing(settings)
    chosen = [backup for backup in found.backups if backup.id == backup_id]
    if chosen:
        return min(chosen, key=lambda backup: backup.kind == BOT)
    if found.problem:
        raise (UnreadError if found.unread else BackupError)(found.problem, found.hint)
    raise BackupError(f"there is no backup {backup_id!r} in {settings.backup_dir}", LIST_HINT)


def room_bytes(backup: Backup) -> int:
    """Given a backup, return the room that it takes laid out. Raise BackupError for no archive."""
    if backup.kind == BOT:
        return legacy.unpacked_bytes(_bot_backup(backup))
    return int(backup.evidence.get("allocated_bytes", backup.size_bytes))


def materialise(
    settings: Settings, backup_id: str, to: Path, *, progress: Progress | None = None
) -> Snapshot:
    """Write any backup into the directory `to`, absent or empty, in the layout of a snapshot.

    `nescordbot.db` and `chromadb/` come out, as far as the backup has them; the reason for one
    that is missing stands in `problems`. A generation is verified on its way, every byte. Raise an
    OpsError, with nothing left behind, if there is no such backup, if it is damaged (the message
    names the file), if `to` is not empty, or if there is no room.
    """
    backup = find(settings, backup_id)
    started = time.monotonic()
    needed = room_bytes(backup)
    if volume.space(to).free_bytes < needed:
        text = f"{backup_id} takes {show.size(needed)}, and {to} has no room for it"
        raise VolumeError(text, "free some space there, or name another directory")
    if backup.kind == BOT:
        return unpack(_bot_backup(backup), settings, to)
    if not backup.evidence:
        raise BackupError(f"the record of {backup_id} is damaged", CHECK_HINT)
    with store.open_store(backup.path) as opened:
        say = progress or (lambda _: None)
        store.extract(
            *(opened, backup_id, to),
            progress=lambda done, total: say(f"writing {show.size(done)} of {show.size(total)}"),
        )
    return laid_out(backup, to, time.monotonic() - started)


def laid_out(backup: Backup, root: Path, seconds: float) -> Snapshot:
    """Given a backup and the directory where it lies laid out, return that as a snapshot."""
    parts = {"database": root / DATABASE, "chroma": root / "chromadb" / chroma.DATABASE}
    problems = {name: f"{backup.id} has no {name}" for name in parts if not parts[name].is_file()}
    return Snapshot(
        root=root,
        database=None if "database" in problems else parts["database"],
        chroma=None if "chroma" in problems else parts["chroma"].parent,
        problems=problems,
        taken_at=backup.taken_at,
        seconds=seconds,
        lock_seconds=0.0,
        attempts=1,
    )


def unpack(bot: legacy.BotBackup, settings: Settings, to: Path) -> Snapshot:
    """Lay a backup of the bot's out in `to`, absent or empty, or leave `to` as it was."""
    made = not to.exists()
    if not made and (not to.is_dir() or any(to.iterdir())):
        raise BackupError(f"{to} is there already, and not an empty directory", "name a new one")
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return legacy.unpack(bot, settings, to)
    except BaseException:
        volume.clear(to)
        if made:
            to.rmdir()
        raise


def _bot_backup(backup: Backup) -> legacy.BotBackup:
    found = legacy.recognise(backup.path)
    if found is None:
        raise BackupError(f"{backup.path} is gone, or no backup any more", LIST_HINT)
    return found
