"""Checks are data: what was looked at, what was seen, and the one thing to do next.

Judging and raising are separate. A capability returns a `Findings` with every check in it; only
`raise_for_status()` raises. What was not looked at is `unknown`, never ok.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescord_ops import __version__, show
from nescord_ops.errors import ChecksFailed

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


@dataclasses.dataclass(frozen=True, slots=True)
class Check(show.Result):
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
                object.__setattr__(self, field, show.printable(seen))
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
    severity: Status = Status.WARN,
) -> Check:
    """Return a check of something that must not occur: ok at 0, else `severity`.

    `bad` continues the sentence after the count.
    """
    if count:
        summary = f"{count:,} {bad}"
        return Check(name, severity, summary, hint, value=count, unit=unit, limit=0)
    return Check(name, Status.OK, good, value=0, unit=unit, limit=0)


def verdict(checks: Iterable[Check]) -> Status:
    """Given checks, return the worst: fail, then unexpected unknown, then warn.

    No check at all, or nothing but expected unknowns, is `unknown`: nothing was looked at.
    """
    seen = {check.status for check in checks if not check.expected}
    order = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK)
    return next((status for status in order if status in seen), Status.UNKNOWN)


def headline(checks: Iterable[Check]) -> str:
    """Given checks, return the verdict in one sentence, then the counts.

    Only what was looked at as far as it can be looked at here is called healthy: an expected
    unknown with a hint could have been looked at. For `unknown` the first reason follows.
    """
    checks = tuple(checks)
    partial = any(check.expected and check.hint for check in checks)
    opening = {
        Status.OK: "Nothing wrong in what was looked at." if partial else "Healthy.",
        Status.WARN: "Warnings in what was looked at." if partial else "Healthy, with warnings.",
        Status.FAIL: "Not safe.",
        Status.UNKNOWN: "Could not check.",
    }[verdict(checks)]
    count = Counter(check.status for check in checks)
    words = {
        Status.FAIL: "failed",
        Status.UNKNOWN: "not checked",
        Status.WARN: "warning" if count[Status.WARN] == 1 else "warnings",
        Status.OK: "ok",
    }
    parts = [f"{count[status]} {word}" for status, word in words.items() if count[status]]
    sentence = f"{opening} {', '.join(parts) or 'No checks were made'}."
    reasons = [c.summary for c in checks if c.status is Status.UNKNOWN and not c.expected]
    if verdict(checks) is Status.UNKNOWN and reasons:
        sentence += f" {reasons[0]}"
    return sentence


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
    def headline(self) -> str:
        """The verdict in one sentence."""
        return headline(self.checks)

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
            MIME: self.to_dict(),
        }


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
