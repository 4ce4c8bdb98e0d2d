"""What an operator sees first: three numbers, and what to do next with a command to copy.

Everything is read from a report's JSON document, so a number whose fact is not there shows as not
looked at, never as good. `checks.headline` says the verdict.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nescord_ops import show
from nescord_ops.checks import Check, Status

UNSEEN = "not looked at"
FRESH_DAYS = 7  # a proven backup or a copy off site that is older is worth a look


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """One of the three: what it is, its text, the exact value, a remark, and how good it is.

    `at` is the time that an age is the age of.
    """

    label: str
    text: str = UNSEEN
    exact: str = ""
    note: str = ""
    status: Status = Status.UNKNOWN
    at: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    """A document, with its checks by name, the time it was made, and since when a check fails."""

    data: Mapping[str, Any]
    checks: Mapping[str, Check]
    now: datetime
    unseen: int = 0
    began: datetime | None = None

    def value(self, name: str) -> int | float | None:
        """The number that a check saw; None if it was not made, or not looked at."""
        check = self.checks.get(name)
        seen = check.value if check and check.status is not Status.UNKNOWN else None
        return seen if isinstance(seen, int | float) and not isinstance(seen, bool) else None

    def status(self, name: str) -> Status:
        """What a check came to; unknown if it was not made."""
        return self.checks[name].status if name in self.checks else Status.UNKNOWN

    def number(self, name: str) -> int | float | None:
        """A number of the document's data."""
        seen = self.data.get(name)
        return seen if isinstance(seen, int | float) and not isinstance(seen, bool) else None


def numbers(
    name: str,
    data: Mapping[str, Any],
    checks: Sequence[Check],
    now: datetime,
    unseen: int = 0,
    began: datetime | None = None,
) -> tuple[Number, ...]:
    """Given a document's name, data and checks, and when it was made, return its three numbers.

    `unseen` checks failed when they were last looked at, and were not looked at again; what fails
    now `began` to then, if that is known.
    """
    facts = _Facts(data, {check.name: check for check in checks}, now, unseen, began)
    return tuple(number(facts) for number in _NUMBERS.get(name, _ANY))


def _count(number: int, of: str, *, bad: Status) -> tuple[str, str, str, Status]:
    return f"{number:,}", "", of, bad if number else Status.OK


def _failed(facts: _Facts) -> Number:
    """Failed checks, of those that were made."""
    statuses = [check.status for check in facts.checks.values() if not check.expected]
    made = [status for status in statuses if status is not Status.UNKNOWN]
    if not made:
        return Number("checks failed")
    blind = len(statuses) - len(made)
    note = f"of {len(made):,} made"
    if blind:
        note += f"; {blind:,} could not be made"
    if facts.unseen:
        note += f"; {facts.unseen:,} that failed not looked at again"
    failed = made.count(Status.FAIL)
    status = Status.FAIL if failed else Status.UNKNOWN if blind or facts.unseen else Status.OK
    return Number(
        "check failed" if failed == 1 else "checks failed", f"{failed:,}", "", note, status
    )


def _warnings(facts: _Facts) -> Number:
    made = [check.status for check in facts.checks.values() if check.status is not Status.UNKNOWN]
    if not made:
        return Number("warnings")
    found = made.count(Status.WARN)
    return Number("warning" if found == 1 else "warnings", *_count(found, "", bad=Status.WARN))


def _unlooked(facts: _Facts) -> Number:
    unknown = [check for check in facts.checks.values() if check.status is Status.UNKNOWN]
    blind = sum(not check.expected for check in unknown)
    note = f"{blind:,} of them unexpected" if blind else "as is normal here" if unknown else ""
    return Number("not checked", *_count(len(unknown), note, bad=Status.UNKNOWN))


def _copy(label: str, key: str) -> Callable[[_Facts], Number]:
    """How old the newest backup of a kind is; `key` is its field of `Standing`."""

    def number(facts: _Facts) -> Number:
        standing = facts.data.get("standing")
        if not isinstance(standing, Mapping):
            return Number(label)
        taken = moment(standing.get(key))
        if taken is None:
            lacking = key == "proven_taken_at" and facts.status("backups.age") is Status.FAIL
            status = Status.FAIL if lacking else Status.WARN
            return Number(label, "none", note=_kept(standing, key), status=status)
        old = max(0.0, (facts.now - taken).total_seconds())
        status = Status.WARN if old > FRESH_DAYS * 86_400 else Status.OK
        note = _beside_failure(taken, facts) if key == "proven_taken_at" else ""
        return Number(label, show.age(old), taken.isoformat(), note, status, taken)

    return number


def _beside_failure(taken: datetime, facts: _Facts) -> str:
    """Whether a proven backup is from before what fails now; a later one is whole by itself."""
    if all(check.status is not Status.FAIL for check in facts.checks.values()):
        return ""
    if facts.began:
        when = "before the failure" if taken < facts.began else "since the failure began"
        return f"taken {when}; a drill restored it whole"
    return "a drill restored it whole"


def _kept(standing: Mapping[str, Any], key: str) -> str:
    """How many backups there are, where the number is that none of them is of a kind."""
    good = standing.get("good")
    if not isinstance(good, int):
        return ""
    text = f"{show.count(good, 'good backup')} here" if good else "no good backup here"
    return f"{text}, not restored yet to prove it" if good and key == "proven_taken_at" else text


def _days(check: str) -> Callable[[_Facts], Number]:
    """Days until the volume is full, as a check forecasts them."""

    def number(facts: _Facts) -> Number:
        days = facts.value(check)
        if days is None:
            seen = facts.checks.get(check)
            return Number("days until full", note=seen.summary if seen else "")
        text = f"{days:,.0f}" if days <= 3650 else "3,650+"
        note = facts.checks[check].summary
        return Number("days until full", text, f"{days:,} days", note, facts.status(check))

    return number


def _free(facts: _Facts) -> Number:
    free, size = facts.number("free_bytes"), facts.number("size_bytes")
    if free is None:
        return Number("free", note="the volume's size is not known")
    note = f"of {show.size(size)}" if size else ""
    status = facts.status("capacity.free")
    return Number("free", show.size(free), f"{free:,} bytes", note, status)


def _reclaimable(facts: _Facts) -> Number:
    size, label = facts.number("reclaimable_bytes"), "could be given back"
    if size is None:
        return Number(label)
    note = f"of {show.size(facts.number('used_bytes'))} used"
    status = facts.status("capacity.reclaimable")
    return Number(label, show.size(size), f"{size:,} bytes", note, status)


def _bill(facts: _Facts) -> Number:
    usd, listed = facts.value("cost.now"), facts.number("list_usd_per_month")
    if usd is None:
        return Number("a month now")
    note = f"{show.dollars(listed)} at list price" if listed is not None else ""
    return Number("a month now", show.dollars(usd), f"{usd} USD", note, facts.status("cost.now"))


def _later(facts: _Facts) -> Number:
    usd, label = facts.value("cost.projection"), "a month in a year"
    if usd is None:
        return Number(label, note=str(facts.data.get("growth_unknown") or ""))
    months = facts.data.get("projection") or [{}]
    low, high = months[-1].get("low_usd"), months[-1].get("high_usd")
    note = "" if low is None else f"between {show.dollars(low)} and {show.dollars(high)}"
    return Number(label, show.dollars(usd), f"{usd} USD", note, facts.status("cost.plan"))


def _saving(facts: _Facts) -> Number:
    usd, label = facts.value("cost.reclaimable"), "could be saved a month"
    if usd is None:
        return Number(label)
    note = f"for {show.size(facts.number('reclaimable_bytes'))}"
    return Number(label, show.dollars(usd), f"{usd} USD", note, Status.OK)


def _good(facts: _Facts) -> Number:
    standing = facts.data.get("standing")
    if not isinstance(standing, Mapping):
        return Number("good backups")
    good, kept = standing["good"], standing["kept"]
    label = "good backup" if good == 1 else "good backups"
    status = Status.OK if good else Status.FAIL
    return Number(label, f"{good:,}", "", f"of {show.count(kept, 'generation')}", status)


def _causes(facts: _Facts) -> Number:
    if "diagnoses" not in facts.data:
        return Number("causes found")
    found = [check for name, check in facts.checks.items() if name.startswith("cause.")]
    found = [check for check in found if check.name != "cause.none"]
    grave = any(check.status is Status.FAIL for check in found)
    label = "cause found" if len(found) == 1 else "causes found"
    note = "data is in danger" if grave else ""
    return Number(label, *_count(len(found), note, bad=Status.FAIL if grave else Status.WARN))


def _log(label: str, count: Callable[[Mapping[str, Any]], int]) -> Callable[[_Facts], Number]:
    """A count of what the logs say; not looked at where no log was read."""

    def number(facts: _Facts) -> Number:
        log = facts.data.get("log")
        if not isinstance(log, Mapping) or not log.get("files"):
            return Number(label, note="no log was read")
        last = moment(log.get("last_at"))
        note = f"in the logs until {show.moment(last)}" if last else "in the logs"
        return Number(label, *_count(count(log), note, bad=Status.WARN))

    return number


def _errors(log: Mapping[str, Any]) -> int:
    return sum(hour["errors"] for hour in log["hours"])


def _files(facts: _Facts) -> Number:
    files = facts.data.get("files")
    if not files:
        return Number("files read", note="no file of a deployment is here")
    lines = sum(files.values())
    return Number("file read" if len(files) == 1 else "files read", f"{len(files):,}", "",
                  show.count(lines, "line"), Status.OK)  # fmt: skip


def _sunset(facts: _Facts) -> Number:
    days, label = facts.value("config.sunset"), "days railway.json is read"
    if days is None:
        return Number(label, note="no railway.json is here")
    note = facts.checks["config.sunset"].summary
    return Number(label, f"{max(0, days):,}", "", note, facts.status("config.sunset"))


def moment(text: object) -> datetime | None:
    """A time as the documents write it; None for anything else."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None
    except (ValueError, OverflowError):
        return None


_PROVEN_LABEL, _OFFSITE_LABEL = "newest proven backup", "newest copy off site"
_PROVEN = _copy(_PROVEN_LABEL, "proven_taken_at")
_ANY: tuple[Callable[[_Facts], Number], ...] = (_failed, _warnings, _unlooked)
_NUMBERS: dict[str, tuple[Callable[[_Facts], Number], ...]] = {
    "verify": (_failed, _PROVEN, _days("access.forecast")),
    "capacity": (_free, _days("capacity.forecast"), _reclaimable),
    "cost": (_bill, _later, _saving),
    "backup": (_good, _PROVEN, _copy(_OFFSITE_LABEL, "offsite_taken_at")),
    "troubleshoot": (
        _causes,
        _log("errors", _errors),
        _log("crash loops", lambda log: len(log["loops"])),
    ),
    "deploy": (_failed, _files, _sunset),
}

# What to type when nothing is wrong: a remark and a command.
_NIGHTLY = "backup create --keep 5 --drill"
_NEXT = {
    "verify": (
        "To keep it so, every night: a backup, proven, and the five newest kept.",
        _NIGHTLY,
    ),
    "capacity": ("What could be given back; this writes nothing:", "clean"),
    "cost": ("What fills the volume that is paid for:", "capacity"),
    "backup": ("Every night: take one, prove it, and keep the five newest.", _NIGHTLY),
    "troubleshoot": (
        "Still in trouble? Give it the platform's log, from railway logs > bot.txt:",
        "troubleshoot --logs bot.txt",
    ),
    "deploy": ("Look again before the next deploy:", "deploy"),
}


def later(name: str, three: Sequence[Number], tool: str) -> tuple[str, str, str]:
    """Given a page that names nothing to repair, return a word, a remark and a command.

    A number that is not good is named first: nothing failed, and yet there is something to do.
    """
    remark, words = _NEXT.get(name, ("", ""))
    command = f"{tool} {words}" if words else ""
    lacking = {number.label for number in three if number.status in (Status.WARN, Status.FAIL)}
    if _PROVEN_LABEL in lacking:
        return "Nothing urgent.", "Take a backup and prove that it restores:", f"{tool} {_NIGHTLY}"
    if _OFFSITE_LABEL in lacking:
        remark = "All backups lie where the data lies. For copies elsewhere, on your own machine:"
        return "Nothing urgent.", remark, "nescord-ops offsite keygen nescord-ops.key"
    return "Nothing urgent." if lacking else "Nothing now.", remark, command


_PATH = r"/[\w./@:+-]+(?=[\s;,()]|$)"  # one that needs no quotes, or the command is not shown
_WORD = rf"--[\w-]+|nescordbot_backup_\w+|{_PATH}|[\w-]+\.txt|\d+|DIR|ID|REPO|PATH"
_VERBS = (
    r"verify|capacity|cost|deploy|troubleshoot|report|clean|segments|pages|queue|deletions|residue"
    r"|sync|items|backups|strays|stale|unsynced|backup|create|list|check|drill|prune|export|adopt|restore"
    r"|offsite|push|pull|keygen|full|quick|demo"
)
_OURS = re.compile(rf"nescord-ops(?: (?:{_WORD}|{_VERBS})(?![\w-]))+")
_CUT = re.compile(r" (?:push|pull|drill|adopt|export|restore|--keep|--logs|--only|--to)$")
_THEIRS = re.compile(
    rf"(?:chmod|chown) \d+ {_PATH}|git rm --cached \.env|pip install [\w-]+"
    r"|railway (?:logs|ssh|config migrate)(?: --?[\w-]+(?: ts)?)*"
)


def command(hint: str, tool: str) -> str:
    """Given a hint, return the first command in it, `nescord-ops` called as `tool`; or nothing.

    One without what it is about does not run, and is none.
    """
    ours, theirs = _OURS.search(hint), _THEIRS.search(hint)
    if ours and not _CUT.search(ours[0]):
        return tool + ours[0].rstrip(".").removeprefix("nescord-ops")
    return theirs[0] if theirs else ""
