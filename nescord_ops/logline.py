"""One line of a log: when, how grave, what it says; with every secret masked before it is kept.

Understood are the lines of the bot's file and of its standard output (with colours), Python's and
discord.py's own, plain `ERROR: …`, and those that `railway logs` prints. Sources: NescordBot of
September 2025 (`logger.py`), Railway's CLI (`src/util/logs.rs`).
"""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime

from nescord_ops import show
from nescord_ops.causes import MESSAGES

SHOWN_CHARS, CACHED = 300, 4000
_ID = re.compile(rb"(?<![0-9A-Za-z])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_DIGITS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
LEVELS = {
    **{"DBUG": "DEBUG", "WARN": "WARNING", "CRIT": "CRITICAL", "FATAL": "CRITICAL"},
    **dict.fromkeys(("ERR", "ERRO"), "ERROR"),
}
_HEAD = re.compile(
    r"(?:\[?(?P<stamp>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)"
    r"(?:[.,]\d+)?(?P<zone>Z|[+-]\d\d:?\d\d)?\]?[ |]*)?"
    r"(?:\[?(?P<level>DEBUG|DBUG|INFO|WARN(?:ING)?|ERR(?:OR?)?|CRIT(?:ICAL)?|FATAL)\b *\]?[ |:]+)?"
    r"(?:[\w.]+ +\| (?:[\w<>]+:\d+ \| )?)?(?P<text>.*)",
    re.DOTALL,
)
TRACEBACK = "Traceback (most recent call last)"
BETWEEN = (TRACEBACK, "During handling of the above", "The above exception was")
# What the text must hold for a mask to be tried, the mask, and what stands in its place.
_MASKS = (
    (("/webhooks/",), re.compile(r"(?i)discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\S+"), "secret"),
    (("://",), re.compile(r"(?<=://)[^/\s@]++(?=@)"), "secret"),
    (("",), re.compile(r"(?i)\bbearer\s+[^\s\"']{3,}"), "secret"),
    (("<",), re.compile(r"<(?:@[!&]?|#)\d+>"), "mention"),
    (("@",), re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]+\.[\w.-]+"), "address"),
    (
        (".", "sk-", "AIza", "gh", "AGE-"),
        re.compile(
            r"(?<![\w-])(?:mfa\.)?[\w-]{20,}+\.[\w-]{5,}+\.[\w-]{20,}+|\b(?:sk-[\w-]{16,}"
            r"|AIza[\w-]{20,}|gh[a-z]_\w{20,}|github_pat_\w{20,}|AGE-SECRET-KEY-\w+)"
        ),
        "secret",
    ),
)
_NAME = re.compile(r"(?<![\w-])[\w-]++\\*[\"']?\s*[:=]\s*")  # quotes may be escaped, as in JSON
_VALUE = re.compile(r"(?i:(?:bearer|basic|bot)\s+)?\\*(?:\"[^\"]*\"|'[^']*'|[\"']?[^\s\"']{3,})")
_SECRET_NAME = re.compile(
    r"(?i)token|secret|passw|pwd|credential|api[_-]?key|(?:access|private)[_-]?key|authoriz|cookie"
)
_VARIABLE = re.compile(
    r"(?P<id>(?<![0-9A-Za-z])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})"
    r"|(?P<text>(?<!\w)(?:'[^']{1,200}'|\"[^\"]{1,200}\"))"
    r"|(?P<path>(?<![\w<])(?:/[\w.@?=&%+~-]+){2,}/?)"
    r"|(?P<hex>(?<![0-9A-Za-z])(?:0x[0-9a-f]+|(?=[0-9a-f]*[0-9])[0-9a-f]{8,})(?![0-9A-Za-z]))"
    r"|(?P<n>\d+(?:\.\d+)?)"
)
_KNOWN = [
    re.compile("|".join(f"(?P<{m.name}>{m.pattern})" for m in MESSAGES if m.general is general))
    for general in (False, True)
]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A line taken apart. `head`: it begins a record; `stamp_at` is where its stamp stands in it.

    `utc` is the stamp of a line with a zone of its own.
    """

    head: bool
    level: str
    text: str
    fingerprint: str
    message: str
    stamp_at: int
    utc: bytes


def mask(text: str) -> str:
    """Given text from a log, return it printable, with every secret, address and mention masked."""
    text = show.printable(text)
    for needed, pattern, kind in _MASKS:
        if any(part in text for part in needed):
            text = pattern.sub(f"[{kind}]", text)
    parts, at = [], 0
    for name in _NAME.finditer(text):  # not in one pattern: a value may be the next name
        value = _VALUE.match(text, name.end()) if _SECRET_NAME.search(name[0]) else None
        if value and name.start() >= at:
            parts += [text[at : name.end()], "[secret]"]
            at = value.end()
    return "".join([*parts, text[at:]])


def fingerprint(text: str) -> str:
    """Given masked text, return it with ids, numbers, paths and quoted strings made alike."""
    return _VARIABLE.sub(lambda match: f"<{match.lastgroup}>", text)


def remembered(raw: bytes, cache: dict[int, Line]) -> Line:
    """Take a line apart, unless one that differs in digits and ids only is in the cache.

    The key is a hash, so that no secret is kept.
    """
    bare = _ID.sub(b"", raw) if raw.count(b"-") >= 4 else raw
    key = hash(bare.translate(_DIGITS))
    line = cache.get(key)
    if line is None:
        line = parse(raw)
        if len(cache) >= CACHED:
            cache.clear()
        if not line.utc:
            cache[key] = line
    return line


def parse(raw: bytes) -> Line:
    """Take one line apart. NUL bytes go first: they would keep a secret from being recognised."""
    text = mask(raw.replace(b"\0", b"").decode(errors="replace").rstrip())
    head = _HEAD.match(text)
    assert head
    stamp, zone, level, text = head["stamp"], head["zone"], head["level"] or "", head["text"]
    known = _KNOWN[0].search(text) or _KNOWN[1].search(text)
    return Line(
        head=bool(stamp or level),
        level=LEVELS.get(level, level),
        text=text[: 2 * SHOWN_CHARS],
        fingerprint=fingerprint(text[: 2 * SHOWN_CHARS]),
        message=known.lastgroup or "" if known else "",
        stamp_at=raw.find(stamp.encode()) if stamp else -1,
        utc=utc(stamp + zone) if stamp and zone else b"",
    )


def utc(text: str) -> bytes:
    """Given an ISO 8601 stamp with a zone, return it in UTC to the second, or nothing."""
    if text.endswith("Z"):
        return text[:19].replace("T", " ").encode(errors="replace")
    try:
        when = datetime.fromisoformat(text)
        return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}".encode() if when.tzinfo else b""
    except (ValueError, OverflowError):
        return b""


def moment(stamp: bytes) -> datetime | None:
    """Given a stamp in UTC, return the time, or None if it is none."""
    try:
        return datetime.strptime(stamp.decode(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
