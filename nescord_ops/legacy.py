"""The backups that the bot itself makes: two formats, both plain copies of live files.

1. `nescordbot_backup_YYYYMMDD_HHMMSS/` with `manifest.json`, `chromadb_data/`, `nescordbot.db`.
2. `backup_YYYYMMDD_HHMMSS_{manual,auto,pre_restore}.db` or `.db.zip`: SQLite only.

Source: NescordBot of September 2025 (`utils/backup.py`, `services/backup_manager.py`). A name and
its sizes say that a copy was made, not that it is any good. Backups are only read, as what may
come from anywhere: no link is followed, and no name in an archive becomes a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import database, volume
from nescord_ops.errors import BackupError, UnreadError, VolumeError
from nescord_ops.results import Result
from nescord_ops.settings import Settings
from nescord_ops.snapshot import DATABASE, Snapshot, copy_stores

CHROMA, MANIFEST = "chromadb_data", "manifest.json"
_DIRECTORY = re.compile(r"nescordbot_backup_(\d{8}_\d{6})")
_FILE = re.compile(r"backup_(\d{8}_\d{6})_(?:manual|auto|pre_restore)\.db(?:\.zip)?")
STAMP = "%Y%m%d_%H%M%S"
_RATIO = 200  # an archive packed tighter was made to do harm (text packs to a tenth)
_SMALL_BYTES = 64 << 20  # an archive that unpacks to less than this harms nobody
_DIRECTORY_BYTES = 2 << 20  # of an archive's directory: zipfile makes an object of each 50 bytes

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError)


@dataclasses.dataclass(frozen=True, slots=True)
class BotBackup(Result):
    """One backup of the bot's: which of the stores it holds, when it says it was taken (UTC)."""

    path: Path
    taken_at: datetime
    has_database: bool
    has_chroma: bool
    allocated_bytes: int


def backups(directory: Path) -> tuple[BotBackup, ...]:
    """Given the backup directory, return the bot's own backups, newest first; links are left out.

    A name with an impossible date is left out too. Raise OSError if the directory is unreadable.
    """
    if not directory.is_dir():
        return ()
    found = (recognise(entry) for entry in directory.iterdir())
    return tuple(sorted(filter(None, found), key=lambda backup: backup.taken_at, reverse=True))


def recognise(path: Path) -> BotBackup | None:
    """Given a path, return the backup of the bot's that lies there, or None."""
    kind = volume.place(path).kind
    pattern = {"directory": _DIRECTORY, "file": _FILE}.get(kind)
    match = pattern.fullmatch(path.name) if pattern else None
    if not match:
        return None
    try:
        taken = datetime.strptime(match[1], STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return BotBackup(
        path=path,
        taken_at=taken,
        has_database=kind == "file" or volume.place(path / DATABASE).kind == "file",
        has_chroma=volume.place(path / CHROMA / "chroma.sqlite3").kind == "file",
        allocated_bytes=volume.usage(path).allocated_bytes,
    )


def unpacked_bytes(backup: BotBackup) -> int:
    """Return the room that a copy of it takes. Raise BackupError for an archive that is no good."""
    if backup.path.suffix != ".zip":
        return backup.allocated_bytes
    with _member(backup.path) as (_, member):
        return member.file_size


def unpack(backup: BotBackup, settings: Settings, to: Path) -> Snapshot:
    """Copy a backup of the bot's into the empty directory `to`, in the layout of a snapshot.

    A store that it has not, or that is none, is left out with its reason. Raise BackupError, or
    CaptureError, if it changes meanwhile, if its archive is no good, or if nothing is left.
    """
    path = backup.path
    if path.suffix == ".zip":
        _unzip(path, to / DATABASE)
        problems = {"chroma": f"{path.name} holds no vectors"}
        return Snapshot(to, to / DATABASE, None, problems, backup.taken_at, 0.0, 0.0, 1)
    if volume.place(path / CHROMA).kind == "link":
        raise BackupError(f"{path / CHROMA} is a link", "the bot makes no such backup")
    file = path / DATABASE if path.is_dir() else path
    source = dataclasses.replace(settings, database=file, chroma_dir=path / CHROMA)
    copied = copy_stores(source, to)
    if copied.chroma is None:
        volume.remove_tree(to / "chromadb")
    if copied.database is None and copied.chroma is None:
        reasons = "; ".join(copied.problems.values())
        raise BackupError(f"{path} holds no store: {reasons}", "use another backup")
    return dataclasses.replace(copied, taken_at=backup.taken_at)


def _unzip(path: Path, target: Path) -> None:
    """Write the one database of an archive to `target`; zipfile stops at the size it declares."""
    with _member(path) as (archive, member):
        if volume.space(target).free_bytes < member.file_size:
            hint = "free some space there, or set TMPDIR to a directory with more"
            raise VolumeError(f"{path.name} unpacks to {member.file_size:,} bytes: no room", hint)
        with archive.open(member) as packed, open(target, "xb", opener=volume.private) as file:
            shutil.copyfileobj(packed, file, 1 << 20)


class _Packed(io.FileIO):
    """An archive of which nobody reads more than a little at once, whatever lengths it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = _DIRECTORY_BYTES
        if size > _DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size)


@contextlib.contextmanager
def _member(path: Path) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Open an archive and yield it with its one database.

    Raise BackupError if it is damaged, if it holds anything else, or if it was made to do harm.
    """
    try:
        with _Packed(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) != 1 or not members[0].filename.endswith(".db"):
                names = ", ".join(repr(member.filename) for member in members[:3])
                what = f"{len(members):,} members ({names}) where one database is meant"
                raise BackupError(f"{path.name} holds {what}", "use another backup")
            (member,) = members
            mode = member.external_attr >> 16
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                what = f"a member packed by method {member.compress_type}"  # its ratio has no bound
                raise BackupError(f"{path.name} holds {what}", "the bot makes no such archive")
            if "/" in member.filename or "\\" in member.filename or stat.S_ISLNK(mode):
                what = f"a member {member.filename!r} that leads elsewhere"
                raise BackupError(f"{path.name} holds {what}", "the bot makes no such archive")
            limit = max(_SMALL_BYTES, _RATIO * member.compress_size)
            if member.file_size > limit:
                what = f"{member.compress_size:,} bytes that unpack to {member.file_size:,}"
                raise BackupError(f"{path.name} holds {what}", "the bot makes no such archive")
            yield archive, member
    except (*_DAMAGED, OSError) as error:
        seen = error if isinstance(error, OSError) else error.__context__  # zipfile hides it
        if isinstance(seen, OSError) and seen.errno != errno.EINVAL:  # of a place it claims
            raise UnreadError(f"{path} was not unpacked: {seen}", database.MACHINE_HINT) from error
        raise BackupError(f"{path} cannot be unpacked: {error}", "use another backup") from error


def write_manifest(directory: Path, taken_at: datetime, settings: Settings) -> None:
    """Write the `manifest.json` that the bot's restore wants beside the data."""
    manifest = {
        "backup_id": directory.name,
        "timestamp": f"{taken_at.astimezone(UTC):{STAMP}}",
        "config": {
            "chromadb_persist_directory": str(settings.chroma_dir),
            "database_url": settings.database_url,
            "chromadb_collection_name": settings.collection,
        },
        "files": {"chromadb": CHROMA, "sqlite": DATABASE, "manifest": MANIFEST},
    }
    with open(directory / MANIFEST, "x", encoding="utf-8", opener=volume.private) as file:
        json.dump(manifest, file, indent=2)
