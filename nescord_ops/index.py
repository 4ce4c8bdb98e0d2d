"""The index: the newest run large, the older ones as a calendar, the numbers as lines.

Each volume has a section of its own, and the samples have one without trends: a sample is made anew
for every run. The parts (`newest`, `months`, `listing`, `trends`) are shown by `run_parts.html.j2`
and serve any page about runs. What `links` does not name is shown without a link: a run whose pages
were removed still has its verdict.
"""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nescord_ops import checks, compare, history, render, show, spark, todo
from nescord_ops.checks import Status
from nescord_ops.history import RunRow

TREND_DAYS = 400
MONTHS_OPEN, MONTHS = 3, 48  # of a calendar: unfolded, and at the most
RUNS_LISTED = 1500
VOLUMES = 12  # with a section of their own
_SAID = {"fail": "failed", "unknown": "could not be checked", "warn": "warnings", "ok": ""}
# What is drawn: label, unit, notebook and key in the history (none: its failed checks).
TRENDS = (
    ("Size on the volume", "bytes", "capacity", "used_bytes"),
    ("Cost a month", "USD", "cost", "usd_per_month"),
    ("Failing checks", "", "verify", ""),
    ("Newest backup's age", "days", "verify", "backups.age"),
)


def page(runs: Sequence[RunRow], links: Mapping[str, str], reports_dir: Path) -> str:
    """Given the runs, newest first, and stamp to link of those that are kept, return the index.

    The newest kept run of each volume is shown large, the worst volume first, then the samples.
    Links are relative to `reports_dir`, whose history has the trends.
    """
    groups: dict[tuple[bool, str], list[RunRow]] = {}
    for run in runs:
        groups.setdefault((run.demo, "" if run.demo else run.volume), []).append(run)
    groups = {key: rows for key, rows in groups.items() if any(r.stamp in links for r in rows)}
    rank = checks.WORST_FIRST.index
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], rank(shown(item[1][0]))))
    sections = [
        section(f"v{number}", rows, links, reports_dir)
        for number, (_, rows) in enumerate(ordered[:VOLUMES], 1)
    ]
    others = [
        {"volume": rows[0].volume, "runs": listing(rows, links, "")}
        for _, rows in ordered[VOLUMES:]
    ]
    now = max((run.generated_at for run in runs), default=datetime.now(UTC))
    return show.dated(render.filled("runs.html.j2", sections=sections, others=others), now)


def run_page(run: RunRow) -> str:
    """Given a run, return the page that stands in its directory and leads to its notebooks."""
    return show.dated(render.filled("run.html.j2", run=newest(run, "")), run.generated_at)


def section(
    anchor: str, runs: Sequence[RunRow], links: Mapping[str, str], reports_dir: Path
) -> dict[str, Any]:
    """Given the runs of one volume, newest first, return all that the index shows of it."""
    kept = [run for run in runs if run.stamp in links]
    first = kept[0]
    title = "Samples" if first.demo else first.volume or "Runs that name no volume"
    return {
        "anchor": anchor,
        "title": title,
        "is_path": not first.demo and bool(first.volume),
        "newest": newest(first, f"{quote(first.stamp)}/", runs, links),
        "trends": [] if first.demo else trends(reports_dir, first.volume, first.generated_at),
        "months": months(runs, links, anchor),
        "open": MONTHS_OPEN,
        "listing": listing(kept, links, anchor),
        "count": len(kept),
        "left_out": max(0, len(kept) - RUNS_LISTED),
    }


def newest(
    run: RunRow, prefix: str, runs: Sequence[RunRow] = (), links: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Given a run, return its verdict in a sentence, its notebooks, and what changed.

    `prefix` leads to its directory. If it is not healthy and `runs` (newest first) are given, it
    is also said when the same notebooks were healthy last.
    """
    status, unseen = shown(run), {each.name for each in run.pages if _unseen(each)}
    worst = [each for each in run.pages if each.status == run.status or each.name in unseen]
    word = worst[0].headline.partition(". ")[0] if worst else "Could not check"
    names = f"{_SAID[status]}: {', '.join(each.name for each in worst)}"
    if unseen and not Status(run.status).exit_code:
        worst = [each for each in run.pages if each.name in unseen]
        word, names = todo.NOT_AGAIN, ", ".join(sorted(unseen))
    healthy = _healthy_before(run, runs) if status.exit_code else None
    return {
        "status": status.value,
        "symbol": show.SYMBOLS[status],
        "word": word.rstrip("."),
        "names": names if worst and _SAID[status] else "",
        "iso": run.generated_at.isoformat(),
        "time": show.moment(run.generated_at),
        "demo": run.demo,
        "volume": run.volume,
        "since": _since(worst, run.generated_at) if status.exit_code else "",
        "first": {"name": worst[0].name, "html": f"{prefix}{quote(worst[0].name)}.html"}
        if worst and status is not Status.OK
        else None,
        "changed": compare.line((each.name, each.previous, each.changed) for each in run.pages),
        "bad": bool(status.exit_code),
        "searched": bool(runs),
        "healthy": show.moment(healthy.generated_at) if healthy else "",
        "healthy_link": (links or {}).get(healthy.stamp, "") if healthy else "",
        "pages": [
            {
                "badge": show.Markup(show.badge("unknown" if _unseen(each) else each.status)),
                "name": each.name,
                "headline": each.headline,
                "html": prefix + quote(f"{each.name}.html"),
                "json": prefix + quote(f"{each.name}.json"),
            }
            for each in run.pages
        ],
    }


def shown(run: RunRow) -> Status:
    """A run's status; where what failed was not looked at again, the good it saw is unknown."""
    status = Status(run.status)
    if status.exit_code or not any(map(_unseen, run.pages)):
        return status
    return Status.UNKNOWN


def _unseen(page: history.PageRow) -> bool:
    """Whether a page saw nothing wrong, and did not look at what failed."""
    return page.standing and not Status(page.status).exit_code


def _since(pages: Iterable[history.PageRow], now: datetime) -> str:
    """Since when the pages' failures stand, in words; empty where the history does not say."""
    began = todo.since(*(each.since for each in pages))
    if not began:
        return ""
    return "First seen now" if began == show.moment(now) else f"Failing since {began}"


def _healthy_before(run: RunRow, runs: Sequence[RunRow]) -> RunRow | None:
    """The newest run before it in which the notebooks that are not healthy now all were.

    A failure that was merely not looked at is none the less there.
    """
    bad = {p.name for p in run.pages if Status(p.status).exit_code or p.standing}
    for other in runs:
        good = {p.name for p in other.pages if not (Status(p.status).exit_code or p.standing)}
        if bad and bad <= good and other.generated_at < run.generated_at:
            return other
    return None


def months(runs: Iterable[RunRow], links: Mapping[str, str], anchor: str) -> list[dict[str, Any]]:
    """Given runs, return the months that have any, newest first, as weeks of days.

    A day shows its worst status, and leads to its run, or to its runs in the listing; what lies
    outside the month, or after the last run, is None.
    """
    days: dict[date, list[RunRow]] = {}
    for run in runs:
        days.setdefault(run.generated_at.astimezone(UTC).date(), []).append(run)
    last = max(days, default=date.min)
    wanted = sorted({(day.year, day.month) for day in days}, reverse=True)[:MONTHS]
    return [
        {
            "title": f"{calendar.month_name[month]} {year}",
            "weeks": [
                [
                    _day(day, days.get(day, []), links, anchor)
                    if day.month == month and day <= last
                    else None
                    for day in week
                ]
                for week in calendar.Calendar().monthdatescalendar(year, month)
            ],
        }
        for year, month in wanted
    ]


def _day(
    day: date, runs: Sequence[RunRow], links: Mapping[str, str], anchor: str
) -> dict[str, Any]:
    if not runs:
        return {"number": day.day, "status": ""}
    kept = [run for run in runs if run.stamp in links]
    status = checks.worst(map(shown, runs))
    single = links[kept[0].stamp] if kept else ""
    count = len(runs)
    return {
        "number": day.day,
        "status": status.value,
        "symbol": show.SYMBOLS[status],
        "words": status.value if count == 1 else f"{status.value}, {count} runs",
        "count": count if count > 1 else 0,
        "href": f"#{anchor}-{day}" if len(kept) > 1 else single,
    }


def listing(runs: Sequence[RunRow], links: Mapping[str, str], anchor: str) -> list[dict[str, Any]]:
    """Given runs, newest first, return them by month and day; no more than RUNS_LISTED."""
    found = []
    for title, of_month in itertools.groupby(runs[:RUNS_LISTED], lambda r: f"{_utc(r):%B %Y}"):
        days = []
        for day, of_day in itertools.groupby(of_month, lambda r: _utc(r).date()):
            entries = [
                {
                    "time": f"{_utc(run):%H:%M}",
                    "status": shown(run).value,
                    "symbol": show.SYMBOLS[shown(run)],
                    "href": links.get(run.stamp, ""),
                }
                for run in of_day
            ]
            name = f"{anchor}-{day}" if anchor and len(entries) > 1 else ""
            days.append({"day": str(day), "anchor": name, "runs": entries})
        count = sum(len(day["runs"]) for day in days)
        found.append({"title": title, "count": count, "days": days})
    return found


def trends(reports_dir: Path, volume: str, now: datetime) -> list[spark.Trend]:
    """Given a volume's key, return TRENDS of the last TREND_DAYS from the history."""
    since = now - timedelta(days=TREND_DAYS)
    found = []
    for label, unit, name, key in TRENDS:
        points = history.points(reports_dir, name, key, volume, since)
        missing = f"no run has measured it: nescord-ops report {name}"
        found.append(spark.trend(label, unit, points, missing=missing))
    return found


def _utc(run: RunRow) -> datetime:
    return run.generated_at.astimezone(UTC)
