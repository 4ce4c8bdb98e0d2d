"""Which cause explains what was seen, and the fix for it: verify and troubleshoot ask alike."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nescord_ops import fixes, show
from nescord_ops.causes import CAUSES, Cause
from nescord_ops.checks import WORST_FIRST, Check, Status
from nescord_ops.errors import OpsError
from nescord_ops.results import Result
from nescord_ops.settings import Settings

if TYPE_CHECKING:
    from nescord_ops.logs import Log

BAD = (Status.FAIL, Status.WARN)
# Chroma at work on a copy: what it says follows from what is wrong with the files.
_FOLLOWS = ("chroma.roundtrip", "chroma.search")


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis(Result):
    """A cause that something speaks for: `score` is the weight of the `evidence`.

    `against` is what was looked at and speaks against it. `plan` says what the fix does; its
    `commands` are lines of a shell script, those with `#` for a person, and `confirm` is the
    command that shows whether it has helped.
    """

    name: str
    symptoms: tuple[str, ...]
    says: str
    status: Status
    score: int
    evidence: tuple[str, ...]
    against: tuple[str, ...]
    plan: str
    commands: tuple[str, ...]
    confirm: str

    def told(self, before: Sequence[Diagnosis] = ()) -> str:
        """The evidence, the fix and what confirms it, a line each; a fix told before is not."""
        parts = (("Because", self.evidence), ("Against it", self.against))
        said = [f"  {word}: {line}" for word, lines in parts for line in lines]
        if self.commands in [other.commands for other in before]:
            return "\n".join([*said, "  Fix: the same"])
        commands = [f"    {line}" for line in self.commands]
        return "\n".join(
            [
                *said,
                f"  Fix: {self.plan}".rstrip(),
                *commands,
                "  To confirm:",
                f"    {self.confirm}",
            ]
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Fix(Result):
    """What to type against failed checks that have one cause: `says` names it, in a sentence.

    `plan` says what the fix does. `commands` are lines of a shell script, those with `#` for a
    person.
    """

    says: str
    plan: str
    checks: tuple[str, ...]
    commands: tuple[str, ...]


def weigh(
    cause: Cause, checks: Sequence[Check], names: dict[str, str], log: Log | None = None
) -> Diagnosis:
    """Weigh everything that speaks for a cause, and for its contrary.

    `names` fill in its fix, as `fixes.names` returns them.
    """
    score, evidence, against, worst = 0, [], [], [Status.OK]
    for sign in cause.signs:
        for check in checks:
            if check.name != sign.check:
                continue
            line = f"{check.name}: {check.summary}"
            if check.status in BAD and re.search(sign.text, check.summary):
                score += sign.weight
                evidence.append(line)
                worst.append(check.status)
            elif check.status is Status.OK:
                against.append(line)
    groups = log.groups if log else ()
    said = [group for group in groups if group.message in cause.messages]
    for group in said:
        score += cause.messages[group.message]
        last = f"last {show.moment(group.last_at)}" if group.last_at else "without a time"
        times = f"{show.count(group.count, 'time')}, {last}"
        evidence.append(f"log, {times}: {group.example}")
        worst.append(Status.WARN)
    if cause.messages and log and log.files and not said:
        against.append(f"{show.count(log.lines, 'line')} of logs: nothing of it")
    return Diagnosis(
        *(cause.name, cause.symptoms, cause.says, min(worst, key=WORST_FIRST.index), score),
        *(tuple(evidence), tuple(dict.fromkeys(against))),
        *(fixes.plan(cause.fix, names), fixes.script(cause.fix, names)),
        f"{names['tool']} verify",
    )


def ranked(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Return those that something speaks for: data in danger first, then the most likely.

    What is wrong with the data comes before what is wrong with its backups: a backup of damaged
    data is not good, so a new one helps only behind the repair.
    """
    supported = [each for each in found if each.score]

    def rank(each: Diagnosis) -> tuple[int, bool, int]:
        return WORST_FIRST.index(each.status), each.symptoms == ("backup",), -each.score

    ordered = sorted(supported, key=rank)
    if not ordered or ordered[0].status is not Status.FAIL or ordered[0].symptoms == ("backup",):
        return ordered
    return [
        dataclasses.replace(each, commands=("# when the data is repaired:", *each.commands))
        if each.symptoms == ("backup",)
        else each
        for each in ordered
    ]


def fixes_of(checks: Sequence[Check], settings: Settings) -> tuple[Fix, ...]:
    """Given checks, return the fixes of the causes that explain those that failed.

    A failed check stands with the first cause that it speaks for; one without a cause in none.
    """
    open_ = {check.name for check in checks if check.status is Status.FAIL}
    if not open_:
        return ()
    made: list[Fix] = []
    with contextlib.suppress(OpsError, OSError):
        names = fixes.names(settings)
        for each in ranked(weigh(cause, checks, names) for cause in CAUSES):
            told = dict.fromkeys(line.partition(": ")[0] for line in each.evidence)
            if each.status is not Status.FAIL or not open_ & told.keys():
                continue
            if any(name.startswith("chroma.") for name in told):
                told |= dict.fromkeys(_FOLLOWS)
            seen = tuple(name for name in told if name in open_)
            made.append(Fix(each.says, each.plan, seen, each.commands))
            open_ -= told.keys()
    return tuple(made)
