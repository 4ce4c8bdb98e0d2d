"""The bot's logs: what went wrong, how often, since when, and how often the bot started.

Files of any size are read once and in constant memory, whatever is in them. What is kept of a line
is masked first: no token, key, address or mention leaves this module.

Sources: NescordBot of September 2025 (`logger.py`: format, colours, rotation as `bot.log.1`;
`main.py`: what it says when it starts), Railway's CLI (`src/util/logs.rs`).
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO

from nescord_ops.errors import VolumeError
from nescord_ops.logline import SHOWN_CHARS, moment
from nescord_ops.logpass import LINE_BYTES, RANKS, Loop, Reader, Record
from nescord_ops.results import Result

BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Group(Result):
    """Records that say the same: `example` is the first of them, masked.

    `message` names the row of `causes.MESSAGES` that it is, or is empty. Times are UTC, None where
    no line had one.
    """

    fingerprint: str
    level: str
    count: int
    first_at: datetime | None
    last_at: datetime | None
    example: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Hour(Result):
    """How many records an hour has, and how many of them are warnings and errors."""

    at: datetime
    records: int
    warnings: int
    errors: int


@dataclasses.dataclass(frozen=True, slots=True)
class Log(Result):
    """What the files say. Sums are over all of them; `problems` says what could not be read.

    `levels` counts records, `none` those without a level. Only so many `hours`, in order, and
    `groups`, most frequent first, are kept; `ungrouped` records are in none of these. `cut_lines`
    were longer than LINE_BYTES. `without_zone` says that stamps without a time zone were taken as
    UTC.
    """

    files: tuple[Path, ...]
    problems: tuple[str, ...]
    bytes_read: int
    lines: int
    cut_lines: int
    first_at: datetime | None
    last_at: datetime | None
    without_zone: bool
    levels: Mapping[str, int]
    hours: tuple[Hour, ...]
    starts: int
    loops: tuple[Loop, ...]
    groups: tuple[Group, ...]
    ungrouped: int


def read(paths: Iterable[Path]) -> Log:
    """Given log files, oldest first, return what they say; plain or gzip, live or rotated.

    Reads only. A file that is missing, no regular file, or broken off is a `problem`, and what
    could be read of it counts.
    """
    reader = Reader()
    files, problems = [], []
    for path in paths:
        try:
            with _open(path) as file:
                for block in _blocks(file):
                    reader.block(block)
            files.append(path)
        except VolumeError as error:
            problems.append(str(error))
        except (OSError, EOFError, zlib.error) as error:
            files.append(path)
            problems.append(f"{path} breaks off: {getattr(error, 'strerror', None) or error}")
        reader.flush()
    return _result(reader, tuple(files), tuple(problems))


def rotated(path: Path) -> tuple[Path, ...]:
    """Given the bot's log, return it behind its rotated predecessors, oldest first."""

    def number(older: Path) -> int:
        digits = re.search(r"\d+", older.name.removeprefix(path.name))
        return int(digits[0]) if digits else 0

    try:
        siblings = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")]
    except OSError:
        siblings = []
    return (*sorted(siblings, key=lambda p: (-number(p), p.name)), path)


def _open(path: Path) -> IO[bytes]:
    """Open a regular file, unpacked if it is gzip; raise VolumeError for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise VolumeError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise VolumeError(f"{path} is no regular file")
    file = open(handle, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.open(file) if packed else file  # type: ignore[return-value]


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield blocks of whole lines, each line behind its line feed; of long ones the start."""
    rest = b"\n"
    while chunk := file.read(BLOCK_BYTES):
        end = chunk.rfind(b"\n")
        if end < 0:
            rest += chunk[: max(0, LINE_BYTES + 2 - len(rest))]
        else:
            yield rest + chunk[:end]
            rest = chunk[end : end + LINE_BYTES + 2]
    if rest != b"\n":
        yield rest


def _result(seen: Reader, files: tuple[Path, ...], problems: tuple[str, ...]) -> Log:
    ranked = sorted(seen.groups.values(), key=lambda record: -record.count)
    hours = {moment(hour + b":00:00"): counts for hour, counts in sorted(seen.hours.items())}
    return Log(
        files=files,
        problems=problems,
        bytes_read=seen.bytes,
        lines=seen.lines,
        cut_lines=seen.cut,
        first_at=moment(seen.first),
        last_at=moment(seen.last),
        without_zone=seen.zoneless,
        levels={level: seen.levels[level] for level in RANKS if seen.levels[level]},
        hours=tuple(Hour(at, *counts) for at, counts in hours.items() if at),
        starts=seen.starts,
        loops=tuple(seen.loops),
        groups=tuple(map(_group, ranked)),
        ungrouped=seen.ungrouped,
    )


def _group(record: Record) -> Group:
    times = moment(record.at), moment(record.last)
    shown = (text[:SHOWN_CHARS] for text in (record.text, record.message))
    said = record.fingerprint[:SHOWN_CHARS], record.level, record.count
    return Group(*said, *times, *shown)
