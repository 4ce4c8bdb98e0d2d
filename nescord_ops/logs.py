"""The bot's logs: what went wrong, how often, since when, and how often the bot started.

One pass over files of any size in constant memory. Lines of the bot at INFO and DEBUG, nearly all
of a log, are passed over a run at a time and counted; only the others are taken apart. What is kept
of a line is masked first: no token, key, address or mention leaves this module.

Sources: NescordBot of September 2025 (`logger.py`: format, colours, rotation as `bot.log.1`;
`main.py`: what it says when it starts), Railway's CLI (`src/util/logs.rs`).
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import stat
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from nescord_ops.errors import VolumeError
from nescord_ops.logline import (
    BETWEEN,
    LEVELS,
    SHOWN_CHARS,
    TRACEBACK,
    Line,
    moment,
    remembered,
    utc,
)

BLOCK_BYTES, LINE_BYTES, TEXT_BYTES = 1 << 20, 64 << 10, 4096
GROUPS, HOURS, LOOPS = 1000, 20_000, 100
LOOP_STARTS, LOOP_SPAN = 3, timedelta(minutes=10)
_SAME_START = timedelta(seconds=5)  # the bot prints that it starts, and logs it
_MARKS = (b"Starting NescordBot", b"Received SIGTERM")  # count although they are INFO only
_LOUD = ("WARNING", "ERROR", "CRITICAL")
_RANKS = (*_LOUD, "INFO", "DEBUG", "none")
_CALM = rb"(?:\x1b\[[0-9;]*m)?((....-..-.. ..):..:..) \| (INFO|DEBUG) "
_CALM_TEXT, _CALM_LINE = re.compile(_CALM), re.compile(rb"\n" + _CALM)
_UNUSUAL = re.compile(rb"\n(?!" + _CALM + rb")")
_DEBUG_LINE = re.compile(rb"\n" + _CALM.replace(b"INFO|", b""))


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
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
class Hour:
    """How many records an hour has, and how many of them are warnings and errors."""

    at: datetime
    records: int
    warnings: int
    errors: int


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """A crash loop: `starts` of the bot, each within minutes of the one before."""

    first_at: datetime
    last_at: datetime
    starts: int


@dataclasses.dataclass(frozen=True, slots=True)
class Log:
    """What the files say. Sums are over all of them; `problems` says what could not be read.

    `levels` counts records, `none` those without a level; `hours` are in order. Of the `groups`,
    most frequent first, at most GROUPS are kept, and `ungrouped` records are in none of them.
    `cut_lines` were longer than LINE_BYTES. `without_zone` says that stamps without a time zone
    were taken as UTC.
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
    reader = _Reader()
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
    return reader.result(tuple(files), tuple(problems))


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


@dataclasses.dataclass(slots=True)
class _Record:
    """A record that waits for its traceback; the first of a group goes on to count the others."""

    level: str
    at: bytes
    text: str
    fingerprint: str
    message: str
    count: int = 0
    last: bytes = b""


class _Reader:
    """The state of one pass: counts, groups, and the record that may still get a traceback."""

    def __init__(self) -> None:
        self.bytes = self.lines = self.cut = self.starts = self.ungrouped = 0
        self.levels: Counter[str] = Counter()
        self.hours: dict[bytes, list[int]] = {}
        self.groups: dict[str, _Record] = {}
        self.cache: dict[int, Line] = {}
        self.first = self.last = self.now = b""
        self.zoneless = self.trace = self.raised = False
        self.pending: _Record | None = None
        self.recent: deque[datetime] = deque(maxlen=LOOP_STARTS)
        self.loops: deque[Loop] = deque(maxlen=LOOPS)

    def block(self, block: bytes) -> None:
        """Take in whole lines, each behind its line feed."""
        self.bytes += len(block)
        marks = deque(sorted(_marked(block)))
        at = 0
        while at < len(block):
            found = _UNUSUAL.search(block, at)
            start = min(found.start() if found else len(block), marks[0] if marks else len(block))
            if start > at:
                self._calm(block, at, start)
            if start == len(block):
                return
            if marks and marks[0] == start:
                marks.popleft()
            at = block.find(b"\n", start + 1)
            at = len(block) if at < 0 else at
            self.lines += 1
            self.cut += at - start - 1 > LINE_BYTES
            self._line(block[start + 1 : min(at, start + 1 + LINE_BYTES)])

    def _calm(self, block: bytes, at: int, end: int) -> None:
        """Count a run of lines at INFO and DEBUG; between two lines of one hour all are of it."""
        self.flush()
        first = _CALM_LINE.match(block, at)
        last = _CALM_LINE.match(block, block.rfind(b"\n", at, end))
        assert first
        assert last
        count = block.count(b"\n", at, end)
        debug = len(_DEBUG_LINE.findall(block, at, end)) if b"| DEBUG " in block[at:end] else 0
        self.lines += count
        self.levels["INFO"] += count - debug
        self.levels["DEBUG"] += debug
        self.zoneless = True
        hours = {first[2]: count}
        if first[2] != last[2]:
            hours = Counter(hour for _, hour, _ in _CALM_LINE.findall(block, at, end))
        for hour, number in hours.items():
            self._count(hour, number)
        self._clock(first[1])
        self._clock(last[1])

    def _count(self, hour: bytes, records: int, level: str = "") -> None:
        """Count records of an hour, if it is one, and not one more than are kept."""
        counts = self.hours.get(hour)
        if counts is None:
            if len(self.hours) >= HOURS or not moment(hour + b":00:00"):
                return
            counts = self.hours[hour] = [0, 0, 0]
        counts[0] += records
        counts[1] += level == "WARNING"
        counts[2] += level in ("ERROR", "CRITICAL")

    def _clock(self, stamp: bytes) -> None:
        """Set the time of what follows, if it is one."""
        if stamp[:13] in self.hours:
            self.now = stamp
            self.first, self.last = min(self.first or stamp, stamp), max(self.last, stamp)

    def _line(self, raw: bytes) -> None:
        """Take in a line that is not calm; one of Railway's JSON holds text with time and level."""
        if raw[:1] == b"{":
            try:
                document = json.loads(raw)
                message, when = str(document["message"]), str(document.get("timestamp"))
            except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
                pass
            else:
                level = str(document.get("severity") or document.get("level")).upper()
                for text in message.encode(errors="replace").splitlines():
                    calm = _CALM_TEXT.match(text)
                    if calm and not any(mark in text for mark in _MARKS):
                        self.flush()
                        self._begin(utc(when), calm[3].decode())
                    else:
                        self._text(text, utc(when), level)
                return
        self._text(raw)

    def _text(self, raw: bytes, stamp: bytes = b"", level: str = "") -> None:
        """Take in a line of text; stamp and level are Railway's, for what has none of its own."""
        if self.trace and (not raw or raw[:1].isspace()):
            return  # a frame of a traceback
        line = remembered(raw[:TEXT_BYTES], self.cache)
        if not line.head and (self.trace or line.text.startswith(BETWEEN)):
            self._traceback(line, stamp)
            return
        if not (line.head or line.message or stamp):
            return  # more text of the record before
        self.flush()
        if line.stamp_at >= 0 and not stamp:
            stamp = raw[line.stamp_at : line.stamp_at + 19].replace(b"T", b" ")
            self.zoneless = self.zoneless or not line.utc
        level = line.level or LEVELS.get(level, level)
        level = level if level in _RANKS else "none"
        self._begin(line.utc or stamp, level)
        self.trace = TRACEBACK in line.text
        if line.message == "started":
            self._started()
        if level in _LOUD or line.message:
            self.pending = _Record(level, self.now, line.text, line.fingerprint, line.message)

    def _begin(self, stamp: bytes, level: str) -> None:
        """Count a record."""
        self.levels[level] += 1
        if stamp:
            self._count(stamp[:13], 1, level)
            self._clock(stamp)

    def _traceback(self, line: Line, stamp: bytes) -> None:
        """Give the record before its traceback: what counts is the line of the exception."""
        chained, self.trace = self.trace, line.text.startswith(BETWEEN)
        if self.raised and line.text.startswith(TRACEBACK) and not chained:
            self.flush()
            self.trace = True
        if not self.pending:
            self._begin(stamp or self.now, "ERROR")
            self.pending = _Record("ERROR", self.now, line.text, line.fingerprint, line.message)
        elif not self.trace:
            self.raised = True
            if len(self.pending.text) < SHOWN_CHARS:
                self.pending.text += f" \N{LEFTWARDS ARROW} {line.text}"
            self.pending.fingerprint = line.fingerprint
            self.pending.message = self.pending.message or line.message

    def flush(self) -> None:
        """Put the record before into its group."""
        record, self.pending, self.trace, self.raised = self.pending, None, False, False
        if not record:
            return
        key = record.message or record.fingerprint
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= GROUPS and not record.message:
                self.ungrouped += 1
                return
            group = self.groups[key] = record
        group.count += 1
        group.last = max(group.last, record.at)
        group.at = min(group.at or record.at, record.at or group.at)

    def _started(self) -> None:
        """Count a start of the bot, and see whether it is one of many within minutes."""
        now = moment(self.now)
        if now is None or (self.recent and abs(now - self.recent[-1]) <= _SAME_START):
            self.starts += now is None
            return
        self.starts += 1
        self.recent.append(now)
        began = self.recent[0]
        if len(self.recent) < LOOP_STARTS or not timedelta(0) <= now - began <= LOOP_SPAN:
            return
        if self.loops and began <= self.loops[-1].last_at:
            began, starts = self.loops[-1].first_at, self.loops.pop().starts + 1
        else:
            starts = LOOP_STARTS
        self.loops.append(Loop(began, now, starts))

    def result(self, files: tuple[Path, ...], problems: tuple[str, ...]) -> Log:
        """Return what was counted."""
        ranked = sorted(self.groups.values(), key=lambda record: -record.count)
        hours = {moment(hour + b":00:00"): counts for hour, counts in sorted(self.hours.items())}
        return Log(
            files=files,
            problems=problems,
            bytes_read=self.bytes,
            lines=self.lines,
            cut_lines=self.cut,
            first_at=moment(self.first),
            last_at=moment(self.last),
            without_zone=self.zoneless,
            levels={level: self.levels[level] for level in _RANKS if self.levels[level]},
            hours=tuple(Hour(at, *counts) for at, counts in hours.items() if at),
            starts=self.starts,
            loops=tuple(self.loops),
            groups=tuple(map(_group, ranked)),
            ungrouped=self.ungrouped,
        )


def _group(record: _Record) -> Group:
    times = moment(record.at), moment(record.last)
    shown = (text[:SHOWN_CHARS] for text in (record.text, record.message))
    said = record.fingerprint[:SHOWN_CHARS], record.level, record.count
    return Group(*said, *times, *shown)


def _marked(block: bytes) -> Iterator[int]:
    """The beginnings of the lines that count although they are no more than INFO."""
    for mark in _MARKS:
        at = block.find(mark)
        while at >= 0:
            yield block.rfind(b"\n", 0, at)
            end = block.find(b"\n", at)
            at = block.find(mark, end) if end >= 0 else -1
