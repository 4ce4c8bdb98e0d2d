"""Checks are data: what was looked at, what was seen, and the one thing to do next.

Judging and raising are separate. A capability returns a `Findings` with every check in it; only
`raise_for_status()` raises. What was not looked at is `unknown`, never ok.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescord_ops import __version__, show
from nescord_ops.errors import ChecksFailed
from nescord_ops.results import Result

if TYPE_CHECKING:
    import pandas

    from nescord_ops.settings import Settings

SCHEMA_VERSION = 1
MIME = "application/vnd.nescord-ops.findings+json"
RESTORE_PROVEN = "restore the newest proven backup"  # in hints; verify adds the command


class Status(enum.StrEnum):
    """What a check, a notebook or a whole run came to."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"

    @property
    def exit_code(self) -> int:
        """0 healthy (warnings allowed), 1 a check failed, 2 could not check."""
        return {"ok": 0, "warn": 0, "fail": 1, "unknown": 2}[self.value]

    def is_worse_than(self, other: Status) -> bool:
        """Whether it stands before the other in WORST_FIRST."""
        return WORST_FIRST.index(self) < WORST_FIRST.index(other)


WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK)


@dataclasses.dataclass(frozen=True, slots=True)
class Check(Result):
    """One thing that was looked at.

    `value` and `limit` are in `unit`; bytes are integers. `expected` marks an `unknown` that is
    normal where the tool runs (no volume mount on a laptop): listed, and no stain on the verdict.
    Strings may come from the volume: control characters and bytes that are not text are made
    visible here, once.
    """

    name: str
    status: Status
    summary: str
    hint: str = ""
    value: int | float | str | None = None
    unit: str = ""
    limit: int | float | str | None = None
    expected: bool = False

    def __post_init__(self) -> None:
        for field in ("name", "summary", "hint", "value", "limit"):
            seen = getattr(self, field)
            if isinstance(seen, str):
                object.__setattr__(self, field, show.Text(seen))
        if self.expected and self.status is not Status.UNKNOWN:
            raise ValueError(f"{self.name}: only an unknown can be expected")


def ok(name: str, summary: str, **details: Any) -> Check:
    """Return a check that looked and found nothing wrong."""
    return Check(name, Status.OK, summary, **details)


def warn(name: str, summary: str, hint: str, **details: Any) -> Check:
    """Return a check that found something to see to, with no data in danger yet."""
    return Check(name, Status.WARN, summary, hint, **details)


def fail(name: str, summary: str, hint: str, **details: Any) -> Check:
    """Return a check that found data lost, damaged or about to be."""
    return Check(name, Status.FAIL, summary, hint, **details)


def unknown(name: str, summary: str, hint: str = "", **details: Any) -> Check:
    """Return a check that could not look."""
    return Check(name, Status.UNKNOWN, summary, hint, **details)


def none_of(
    name: str,
    count: int,
    unit: str,
    *,
    good: str,
    bad: str,
    hint: str,
    one: str = "",
    severity: Status = Status.WARN,
) -> Check:
    """Return a check of something that must not occur: ok at 0, else `severity`.

    `bad` continues the sentence after the count, `one` after a count of one.
    """
    if count:
        summary = f"{count:,} {one if one and count == 1 else bad}"
        return Check(name, severity, summary, hint, value=count, unit=unit, limit=0)
    return Check(name, Status.OK, good, value=0, unit=unit, limit=0)


def verdict(checks: Iterable[Check]) -> Status:
    """Given checks, return the worst: fail, then unexpected unknown, then warn.

    No check at all, or nothing but expected unknowns, is `unknown`: nothing was looked at.
    """
    return worst(check.status for check in checks if not check.expected)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of several verdicts; none at all is unknown."""
    return min(statuses, key=WORST_FIRST.index, default=Status.UNKNOWN)


def headline(checks: Iterable[Check], name: str = "") -> show.Text:
    """Given checks and the capability's name, return the verdict in one sentence, then the counts.

    Only what was looked at as far as it can be looked at here is called good: an expected unknown
    with a hint could have been looked at. Expected unknowns are *not checked*, others *could not
    be checked*. For `unknown` the first reason follows.
    """
    checks = tuple(checks)
    status = verdict(checks)
    count = Counter((check.status, check.expected) for check in checks)
    warnings = count[Status.WARN, False]
    parts = (
        (count[Status.FAIL, False], "failed"),
        (count[Status.UNKNOWN, False], "could not be checked"),
        (warnings, "warning" if warnings == 1 else "warnings"),
        (count[Status.UNKNOWN, True], "not checked"),
        (count[Status.OK, False], "ok"),
    )
    said = ", ".join(f"{number} {word}" for number, word in parts if number)
    opening = f"{_opening(checks, name, status)}{_notes_whole(checks, name, status)}"
    sentence = f"{opening} {said or 'No checks were made'}."
    reasons = [c.summary for c in checks if c.status is Status.UNKNOWN and not c.expected]
    if status is Status.UNKNOWN and reasons:
        sentence += f" {reasons[0]}"
    if (
        name == "verify"
        and not status.exit_code
        and _volume_unseen({check.name: check for check in checks})
    ):
        sentence += " This is not Railway: whether a deploy keeps the data is not checked."
    return show.Text(sentence)


# The answer to each capability's question: ok, warn, fail, unknown.
_ANSWERS = {
    "": ("Healthy.", "Healthy, with warnings.", "Not safe.", "Could not check."),
    "verify": (
        "Your data is safe.",
        "Your data is safe, with warnings.",
        "Your data is not safe.",
        "Whether your data is safe could not be checked.",
    ),
    "capacity": (
        "There is room.",
        "There is room, with warnings.",
        "The volume is not in order.",
        "Whether there is room could not be checked.",
    ),
    "cost": (
        "The volume costs {}.",
        "The volume costs {}, with warnings.",
        "There is nothing to pay for.",
        "What the volume costs could not be checked.",
    ),
    "backup": (
        "The backups are sound.",
        "The backups are sound, with warnings.",
        "The backups are not in order.",
        "Whether the data can be restored could not be checked.",
    ),
    "troubleshoot": (
        "No known trouble was found.",
        "A cause was found; no data is in danger.",
        "A cause was found, and data is in danger.",
        "Whether there is trouble could not be checked.",
    ),
    "deploy": (
        "The deployment keeps the data.",
        "The deployment keeps the data, with warnings.",
        "The deployment loses data or does not work.",
        "Whether the deployment keeps the data could not be checked.",
    ),
}
# More than the verdict says: (capability, check, its status): the sentence.
_TELLING = {
    ("capacity", "capacity.free", Status.FAIL): "The volume is full.",
    ("capacity", "capacity.forecast", Status.FAIL): "The volume will be full within two weeks.",
    ("backup", "drill.restore", Status.OK): "The data can be restored: a drill has proven it.",
    ("troubleshoot", "logs.loops", Status.WARN): "The bot starts again and again.",
}


ABSENT = r"No such file|is missing$"  # of a store, in what its checks saw
NOTHING_TO_DO = "nothing to do"  # how the hint of a warning begins that asks for nothing
# Of failed checks, the gravest first: what begins so, what it saw, what the data's danger is.
_DANGERS = (
    ("access.database", "", "the database is not where the bot looks for it"),
    ("database.integrity database.file", "", "the database is damaged"),
    ("database.", "", "the database is not the bot's, or not whole"),
    ("chroma.integrity chroma.file", ABSENT, "Chroma's store is not where the bot looks for it"),
    ("chroma.integrity chroma.file", "", "Chroma's own database is damaged, or not Chroma's"),
    ("chroma.collection chroma.dimension chroma.distance", "", "search does not work with it"),
    ("chroma.index", "is gone", "the vectors are gone"),
    ("chroma.", "", "vectors are lost or damaged"),
    ("stores.", "", "vectors are lost"),
    ("access.chroma", ABSENT, "Chroma's store is not where the bot looks for it"),
    ("access.chroma access.volume", "", "the bot cannot write to it"),
    ("location.swap", "", "a restore was interrupted, and the stores may be of two moments"),
    ("location.volume location.database location.chroma", "",
     "it lies where a deploy may delete it"),
    ("location.", "", "DATABASE_URL leads the bot to the wrong file"),
    ("access.space", "", "the volume is full"),
    ("backups.", "", "it has no good and recent backup"),
)  # fmt: skip


def _danger(checks: Iterable[Check]) -> str:
    """What kind of danger the data is in, in a few words; empty where no failed check says."""
    failed = [check for check in checks if check.status is Status.FAIL]
    for beginnings, seen, said in _DANGERS:
        names = tuple(beginnings.split())
        if any(c.name.startswith(names) and re.search(seen, c.summary) for c in failed):
            return said
    return ""


def _notes_whole(checks: Iterable[Check], name: str, status: Status) -> str:
    """Whether the notes are there and whole although something fails, where that was seen."""
    if name != "verify" or status is not Status.FAIL:
        return ""
    found = {check.name: check.status for check in checks}
    bad = [n for n, seen in found.items() if n.startswith("database.") and seen is Status.FAIL]
    whole = found.get("database.integrity") is Status.OK and not bad
    if found.get("database.integrity") is Status.FAIL:
        return " Some notes may be damaged."
    return " The notes themselves are whole." if whole else ""


def _opening(checks: Iterable[Check], name: str, status: Status) -> str:
    """The verdict of a capability in one sentence."""
    seen = {check.name: check for check in checks}
    if any(check.expected and check.hint for check in seen.values()):
        if status is Status.OK:
            return "Nothing wrong in what was looked at."
        if status is Status.WARN:
            return "Warnings in what was looked at."
    for (capability, check, wanted), sentence in _TELLING.items():
        found = seen.get(check) if capability == name and status is wanted else None
        if found and found.status is wanted:
            return sentence
    answers = _ANSWERS.get(name, _ANSWERS[""])
    sentence = answers[(Status.OK, Status.WARN, Status.FAIL, Status.UNKNOWN).index(status)]
    if name == "cost":
        bill = seen.get("cost.now")
        paid = bill.value if bill and isinstance(bill.value, int | float) else None
        sentence = sentence.format(f"{show.dollars(paid)} a month")
    if name == "verify" and status.exit_code == 0 and _volume_unseen(seen):
        sentence = sentence.replace("safe", "safe on this machine")
    danger = _danger(seen.values()) if name == "verify" and status is Status.FAIL else ""
    return f"{sentence[:-1]}: {danger}." if danger else sentence


def _volume_unseen(seen: Mapping[str, Check]) -> bool:
    """Whether it is not known if the data lies on a volume, and so survives a deploy."""
    return "location.volume" in seen and seen["location.volume"].expected


class Findings:
    """What a capability found. Subclasses are frozen dataclasses with `settings` and `checks`.

    `name` is the capability's word. Everything but `settings` and `checks` is the JSON's `data`.
    """

    __slots__ = ()
    name: str = ""
    settings: Settings
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of the checks."""
        return verdict(self.checks)

    @property
    def headline(self) -> show.Text:
        """The verdict in one sentence."""
        return headline(self.checks, self.name)

    @property
    def data(self) -> dict[str, Any]:
        """Every field but the settings and the checks, as plain JSON values (bytes, UTC)."""
        fields = (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return {
            name: plain(getattr(self, name))
            for name in fields
            if name not in ("settings", "checks")
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of the report contract."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "status": self.status.value,
            "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "tool_version": __version__,
            "settings": self.settings.to_dict(),
            "checks": [plain(check) for check in self.checks],
            "data": self.data,
        }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a check: name, status, summary, hint, value, unit, limit, expected."""
        import pandas

        return pandas.DataFrame([plain(check) for check in self.checks])

    def about(self, *groups: str) -> show.Html:
        """Return the table of the checks whose names begin with one of `groups`."""
        chosen = [check for check in self.checks if check.name.split(".")[0] in groups]
        return show.Html(show.checks_table(headline(chosen), verdict(chosen), chosen))

    def raise_for_status(self) -> None:
        """Raise ChecksFailed if the verdict is `fail` or `unknown`; its hint is the first hint."""
        if not self.status.exit_code:
            return
        worst = [c for c in self.checks if c.status is self.status and not c.expected]
        hint = next((check.hint for check in worst if check.hint), "")
        names = ", ".join(check.name for check in worst)
        raise ChecksFailed(f"{self.headline} ({names})", hint, self.status.exit_code)

    def __str__(self) -> str:
        seen = [c for c in self.checks if c.status is not Status.OK and not c.expected]
        lines = (self.headline, *(f"{c.status:8} {c.name}: {c.summary}" for c in seen))
        return show.printable("\n".join(lines))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The table for the notebook, the findings for the runner, text for everything else."""
        return {
            "text/plain": str(self),
            "text/html": show.checks_table(self.headline, self.status, self.checks),
            MIME: self.to_dict() | {"checks": [_exactly(check) for check in self.checks]},
        }


def _exactly(check: Check) -> dict[str, Any]:
    """A check as JSON values, its sentences with the exact values of their amounts."""
    return {**plain(check), "summary": f"{check.summary}", "hint": f"{check.hint}"}


def plain(value: Any) -> Any:
    """Given any result, return it as JSON values: paths as text, times as ISO 8601 UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, Path | str):
        return show.printable(str(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(item) for item in value]
    return value
