"""The backups that the bot itself makes: two formats, both plain copies of live files.

1. `nescordbot_backup_YYYYMMDD_HHMMSS/` with `manifest.json`, `chromadb_data/`, `nescordbot.db`.
2. `backup_YYYYMMDD_HHMMSS_{manual,auto,pre_restore}.db` or `.db.zip`: SQLite only.

Source: NescordBot of September 2025 (`backup_manager.py`, `utils/backup.py`). Nothing is opened
here: a name and its sizes say that a copy was made, not that it is any good.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import volume

_DIRECTORY = re.compile(r"nescordbot_backup_(\d{8}_\d{6})")
_FILE = re.compile(r"backup_(\d{8}_\d{6})_(?:manual|auto|pre_restore)\.db(?:\.zip)?")


@dataclasses.dataclass(frozen=True, slots=True)
class BotBackup:
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
    found = sorted(_find(directory), key=lambda backup: backup.taken_at, reverse=True)
    return tuple(found)


def _find(directory: Path) -> Iterator[BotBackup]:
    for entry in directory.iterdir():
        kind = volume.place(entry).kind
        match = (_DIRECTORY if kind == "directory" else _FILE).fullmatch(entry.name)
        if not match or kind not in ("directory", "file"):
            continue
        try:
            taken = datetime.strptime(match[1], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            continue
        yield BotBackup(
            path=entry,
            taken_at=taken,
            has_database=kind == "file" or (entry / "nescordbot.db").is_file(),
            has_chroma=(entry / "chromadb_data" / "chroma.sqlite3").is_file(),
            allocated_bytes=volume.usage(entry).allocated_bytes,
        )
