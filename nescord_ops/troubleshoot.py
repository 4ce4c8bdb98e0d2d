"""What is wrong, why, and what to type: symptoms traced to causes by evidence.

The evidence is what verify sees, who has the database open, and what the logs say. A cause is
reported when something speaks for it: data in danger first, then by the weight of what speaks for
it. Nothing is repaired here: a fix is shown as commands for this very installation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nescord_ops import diagnosis, fixes, holders, logs, show, verify
from nescord_ops.causes import CAUSES, SYMPTOMS, Cause
from nescord_ops.checks import Check, Findings, Status, ok, unknown, warn
from nescord_ops.database import RIGHTS_HINT, beside
from nescord_ops.diagnosis import BAD, Diagnosis, weigh
from nescord_ops.errors import CaptureError, SettingsError
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Progress, capture

if TYPE_CHECKING:
    from nescord_ops.figures import Figure

LOGS_HINT = "railway logs > bot.txt, then: nescord-ops troubleshoot --logs bot.txt"
_SHOWN = 5  # of what speaks against a symptom


@dataclasses.dataclass(frozen=True, slots=True)
class Troubleshooting(Findings):
    """What troubleshoot found: `diagnoses`, most likely first, and the `log` that was read."""

    name = "troubleshoot"

    settings: Settings
    checks: tuple[Check, ...]
    symptom: str
    diagnoses: tuple[Diagnosis, ...]
    log: logs.Log

    def _plans(self) -> Iterator[tuple[Diagnosis, str]]:
        for number, each in enumerate(self.diagnoses):
            yield each, each.told(self.diagnoses[:number])

    @property
    def text(self) -> str:
        """Every diagnosis with its evidence and its fix, for a terminal."""
        return show.printable("\n\n".join(f"{each.says}\n{told}" for each, told in self._plans()))

    def plans(self) -> show.Html:
        """Every diagnosis with its evidence and its fix, for a notebook."""
        parts = [
            f"<h3>{show.badge(each.status)} {show.titled(each.says)}</h3>"
            f"<pre class='plan'>{show.titled(told)}</pre>"
            for each, told in self._plans()
        ]
        return show.Html("".join(parts) or "<p>Nothing to repair.</p>", self.text)

    def groups(self, rows: int = 20) -> show.Html:
        """Return what the logs say most often, known messages first."""
        ranked = sorted(self.log.groups, key=lambda group: not group.message)
        cells = (
            (
                g.level,
                g.count,
                show.moment(g.first_at),
                show.moment(g.last_at),
                g.message,
                g.example,
            )
            for g in ranked[:rows]
        )
        columns = ("Level", "Count", "First", "Last", "Known as", "Example")
        caption = f"{show.count(len(ranked), 'group')}; in none of them: {self.log.ungrouped:,}"
        return show.Html(show.table(columns, cells, caption=caption), caption)

    def timeline(self) -> Figure:
        """Return errors and warnings over time."""
        from nescord_ops import figures

        return figures.errors(self.log)


def symptoms() -> show.Html:
    """Return what may be wrong, as an operator sees it."""
    return show.Html(show.table(("Symptom", "What is seen"), SYMPTOMS.items()))


def run(
    settings: Settings,
    *,
    symptom: str = "",
    files: Sequence[Path] = (),
    depth: str = "full",
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Troubleshooting:
    """Given a symptom (default: all), return the causes that the evidence supports.

    Reads `files`, by default the bot's log and its rotated ones. Writes what verify writes, to the
    volume and to scratch space. Raise SettingsError for an unknown symptom or depth.
    """
    if symptom and symptom not in SYMPTOMS:
        hint = f"one of {', '.join(SYMPTOMS)}"
        raise SettingsError(f"no symptom is called {symptom!r}", hint)
    say = progress or (lambda _: None)
    say("reading the logs")
    log = logs.read(files or logs.rotated(settings.log_file))
    checks = [*_seen(settings, depth, now, say), *_of_logs(log, bool(files)), _holders(settings)]
    names = fixes.names(settings)
    wanted = [cause for cause in CAUSES if symptom in ("", *cause.symptoms)]
    found = (weigh(cause, checks, names, log) for cause in wanted)
    ranked = diagnosis.ranked(found)
    shown = tuple(_conclusions(ranked, wanted, symptom, checks))
    return Troubleshooting(settings, shown, symptom, tuple(ranked), log)


def _seen(settings: Settings, depth: str, now: datetime | None, say: Progress) -> Iterator[Check]:
    """What verify sees, but for the test document, which needs Chroma and says no more."""
    unreached = (verify.OUTLOOK, *verify.DEEP)
    quick = verify.run(settings, depth="quick" if depth == "full" else depth, now=now)
    yield from (c for c in quick.checks if depth == "quick" or c.name not in unreached)
    if depth == "quick":
        return
    try:
        with capture(settings, say) as snapshot:
            say("looking at the copy")
            yield from verify.examine(snapshot, settings)
    except CaptureError as error:
        yield unknown("capture.moment", f"{error}", error.hint)


def _of_logs(log: logs.Log, named: bool) -> Iterator[Check]:
    """Whether logs were read, and whether the bot starts again and again."""
    for problem in log.problems:
        yield unknown("logs.read", problem, LOGS_HINT, expected=not (named or log.files))
    if log.files:
        zone = "; stamps without a time zone are taken as UTC" if log.without_zone else ""
        span = "none with a time"
        if log.first_at:
            span = f"from {show.moment(log.first_at)} to {show.moment(log.last_at)}"
        yield ok(
            "logs.read",
            f"{show.count(log.lines, 'line')}, {span}{zone}",
            value=log.lines,
            unit="lines",
        )
    if log.loops:
        last = log.loops[-1]
        span = f"{show.moment(last.first_at)} and {show.moment(last.last_at)}"
        loops = show.count(len(log.loops), "crash loop")
        text = f"{loops}, the last of {last.starts} starts between {span}"
        yield warn("logs.loops", text, "see the errors behind each start", value=len(log.loops))
    elif log.files:
        starts = show.count(log.starts, "time")
        text = f"the bot started {starts}, never again and again within minutes"
        yield ok("logs.loops", text, value=log.starts, unit="starts")


def _holders(settings: Settings) -> Check:
    """Who has the database open: the bot alone may."""
    name = "bot.holders"
    seen = holders.scan(beside(settings.database, suffix) for suffix in ("", "-wal", "-shm"))
    count = len(seen.holders)
    text = "; ".join(map(str, seen.holders)) or "no process has the database open"
    if count > 1:
        return warn(name, text, "one of them may be the bot; end the others", value=count)
    if seen.unseen or not seen.complete:
        known = ", ".join(map(str, seen.holders)) or "nobody was seen with the database open"
        why = f"{', '.join(seen.unseen[:_SHOWN]) or 'other processes'} cannot be looked into"
        return unknown(name, f"{known}, but {why}", RIGHTS_HINT, expected=True)
    return ok(name, text, value=count, unit="processes")


def _conclusions(
    ranked: Sequence[Diagnosis],
    wanted: Sequence[Cause],
    symptom: str,
    checks: Sequence[Check],
) -> Iterator[Check]:
    """The causes as checks, what was looked at, and what no cause explains.

    A cause that only stronger ones' evidence speaks for is another explanation, and no check.
    """
    for number, each in enumerate(ranked):
        stronger = {line for other in ranked[:number] for line in other.evidence}
        if stronger.issuperset(each.evidence):
            continue
        hint = next((c for c in each.commands if not c.startswith("#")), each.commands[0])
        text = f"{each.says} ({each.evidence[0]})"
        yield Check(f"cause.{each.name}", each.status, text, hint, each.score, "points")
    made = [c for c in checks if c.status is not Status.UNKNOWN]
    yield ok(
        "looked.checks", f"made {show.count(len(made), 'check')}", value=len(made), unit="checks"
    )
    if not ranked:
        what = f"{SYMPTOMS[symptom]!r}" if symptom else "any trouble that is known here"
        names = {sign.check for cause in wanted for sign in cause.signs}
        contrary = [c.summary for c in made if c.status is Status.OK and c.name in names]
        against = "; ".join(contrary[:_SHOWN]) or "nothing"
        against = against if symptom else "every check"
        yield ok("cause.none", f"nothing speaks for {what}; against it: {against}")
    explained = {sign.check for cause in CAUSES for sign in cause.signs}
    told = set()
    for check in checks:
        bad = check.status in BAD and check.name not in explained
        unseen = check.status is Status.UNKNOWN and check.summary not in told
        if bad or unseen or check.name == "logs.read":
            told.add(check.summary)
            yield check
