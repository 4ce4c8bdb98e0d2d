"""One pass over the lines of a log: counts by level and hour, groups, starts and crash loops.

Lines of the bot at INFO and DEBUG, nearly all of a log, and a message that repeats itself are
passed over a run at a time; only the others are taken apart.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, timedelta

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
from nescord_ops.results import Result

LINE_BYTES, TEXT_BYTES = 64 << 10, 4096
GROUPS, HOURS, LOOPS = 1000, 10_000, 100
ALIKE, ALIKE_BYTES = 8, 1000  # so many lines in a row say the same: a pattern is made for them
LOOP_STARTS, LOOP_SPAN = 3, timedelta(minutes=10)
_SAME_START = timedelta(seconds=5)  # the bot prints that it starts, and logs it
_MARKS = (b"Starting NescordBot", b"Received SIGTERM")  # count although they are INFO only
_LOUD = ("WARNING", "ERROR", "CRITICAL")
RANKS = (*_LOUD, "INFO", "DEBUG", "none")
_CALM = rb"(?:\x1b\[[0-9;]*m)?((....-..-.. ..):..:..) \| (INFO|DEBUG) "
_CALM_TEXT = re.compile(_CALM)
_UNUSUAL = re.compile(rb"\n(?!" + _CALM + rb")")
_DEBUG_LINE = re.compile(rb"\n" + _CALM.replace(b"INFO|", b""))
_STAMPED = re.compile(rb"\n(?:\x1b\[[0-9;]*m)?((....-..-.. ..):..:..)")
_ANY_ID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_VARYING = re.compile(rb"(" + _ANY_ID + rb"|[0-9]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Loop(Result):
    """A crash loop: `starts` of the bot, each within minutes of the one before."""

    first_at: datetime
    last_at: datetime
    starts: int


@dataclasses.dataclass(slots=True)
class Record:
    """A record that waits for its traceback; the first of a group goes on to count the others."""

    level: str
    at: bytes
    text: str
    fingerprint: str
    message: str
    count: int = 0
    last: bytes = b""


class Reader:
    """The state of one pass: counts, groups, and the record that may still get a traceback."""

    def __init__(self) -> None:
        self.bytes = self.lines = self.cut = self.starts = self.ungrouped = 0
        self.levels: Counter[str] = Counter()
        self.hours: dict[bytes, list[int]] = {}
        self.groups: dict[str, Record] = {}
        self.cache: dict[int, Line] = {}
        self.first = self.last = self.now = b""
        self.zoneless = self.trace = self.raised = False
        self.pending: Record | None = None
        self.line: Line | None = None
        self.again = 0  # how often the line came in a row
        self.alike: re.Pattern[bytes] | None = None
        self.recent: deque[datetime] = deque(maxlen=LOOP_STARTS)
        self.loops: deque[Loop] = deque(maxlen=LOOPS)

    def block(self, block: bytes) -> None:
        """Take in whole lines, each behind its line feed."""
        self.bytes += len(block)
        marks = deque(sorted(_marked(block)))
        at = 0
        while at < len(block):
            while marks and marks[0] < at:
                marks.popleft()
            found = _UNUSUAL.search(block, at)
            start = min(found.start() if found else len(block), marks[0] if marks else len(block))
            if start > at:
                self._calm(block, at, start)
            if start == len(block):
                return
            at = block.find(b"\n", start + 1)
            at = len(block) if at < 0 else at
            self.lines += 1
            self.cut += at - start - 1 > LINE_BYTES
            self._line(block[start + 1 : min(at, start + 1 + LINE_BYTES)])
            at = self._alike(block, at)

    def _calm(self, block: bytes, at: int, end: int) -> None:
        """Count a run of lines at INFO and DEBUG."""
        self.flush()
        some = block.find(b"| DEBUG ", at, end) >= 0
        debug = len(_DEBUG_LINE.findall(block, at, end)) if some else 0
        self._run(block, at, end, "INFO")
        self.levels["INFO"] -= debug
        self.levels["DEBUG"] += debug
        self.zoneless = True

    def _alike(self, block: bytes, at: int) -> int:
        """Count lines that say what the one before says, but for the last; return its place."""
        found = self.alike.match(block, at) if self.alike and self.pending else None
        end = block.rfind(b"\n", at, found.end()) if found else at
        if end > at and self.line:
            group = self.flush()
            count = self._run(block, at, end, self.line.level)
            if group:
                group.count += count
                group.last = max(group.last, self.now)
            self.ungrouped += 0 if group else count
        return end

    def _run(self, block: bytes, at: int, end: int, level: str) -> int:
        """Count a run of lines of one level; between two lines of one hour all are of it."""
        first = _STAMPED.match(block, at)
        last = _STAMPED.match(block, block.rfind(b"\n", at, end))
        assert first
        assert last
        count = block.count(b"\n", at, end)
        self.lines += count
        self.levels[level] += count
        hours = {first[2]: count}
        if first[2] != last[2]:
            hours = Counter(hour for _, hour in _STAMPED.findall(block, at, end))
        for hour, number in hours.items():
            self._count(hour, number, level)
        self._clock(first[1])
        self._clock(last[1])
        return count

    def _count(self, hour: bytes, records: int, level: str) -> None:
        """Count records of an hour, if it is one, and not one more than are kept."""
        counts = self.hours.get(hour)
        if counts is None:
            if len(self.hours) >= HOURS or not moment(hour + b":00:00"):
                return
            counts = self.hours[hour] = [0, 0, 0]
        counts[0] += records
        counts[1] += records * (level == "WARNING")
        counts[2] += records * (level in ("ERROR", "CRITICAL"))

    def _clock(self, stamp: bytes) -> None:
        """Set the time of what follows, if it is one."""
        if stamp[:13] in self.hours or (len(self.hours) >= HOURS and moment(stamp)):
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
        self.again = self.again + 1 if line is self.line else 0
        self.line = line
        if self.again <= ALIKE:
            self.alike = _like(raw) if self.again == ALIKE and line.level in _LOUD else None
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
        level = level if level in RANKS else "none"
        self._begin(line.utc or stamp, level)
        self.trace = TRACEBACK in line.text
        if line.message == "started":
            self._started()
        if level in _LOUD or line.message:
            self.pending = Record(level, self.now, line.text, line.fingerprint, line.message)

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
            self.pending = Record("ERROR", self.now, line.text, line.fingerprint, line.message)
        elif not self.trace:
            self.raised = True
            if len(self.pending.text) < SHOWN_CHARS:
                self.pending.text += f" \N{LEFTWARDS ARROW} {line.text}"
            self.pending.fingerprint = line.fingerprint
            self.pending.message = self.pending.message or line.message

    def flush(self) -> Record | None:
        """Put the record before into its group, and return the group."""
        record, self.pending, self.trace, self.raised = self.pending, None, False, False
        if not record:
            return None
        key = record.message or record.fingerprint
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= GROUPS and not record.message:
                self.ungrouped += 1
                return None
            group = self.groups[key] = record
        group.count += 1
        group.last = max(group.last, record.at)
        group.at = min(group.at or record.at, record.at or group.at)
        return group

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


def _marked(block: bytes) -> Iterator[int]:
    """The beginnings of the lines that count although they are no more than INFO."""
    for mark in _MARKS:
        at = block.find(mark)
        while at >= 0:
            yield block.rfind(b"\n", 0, at)
            end = block.find(b"\n", at)
            at = block.find(mark, end) if end >= 0 else -1


def _like(raw: bytes) -> re.Pattern[bytes] | None:
    """Given a line with its stamp, return what matches a run of lines that say the same."""
    stamped = _STAMPED.match(b"\n" + raw)
    if not stamped or len(raw) > ALIKE_BYTES:
        return None
    parts = _VARYING.split(raw[stamped.end() - 1 :])
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = (_ANY_ID if b"-" in part else b"[0-9]++" for part in parts[1::2])
    return re.compile(b"(?:%s%s(?=\n|\\Z))++" % (_STAMPED.pattern, b"".join(parts)))
