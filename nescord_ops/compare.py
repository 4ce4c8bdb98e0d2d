"""What changed since the previous run of the same notebook on the same volume.

A check that was not looked at says nothing: it neither ends a failure nor begins one. What failed
when it was last looked at stays *standing*, from run to run, until it is looked at and found right.
Every run's standing failures are kept in the history, so one earlier run is enough to go on from;
runs of a time that did not keep them are read from their JSON. Samples are compared with nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nescord_ops import history, show

# What matters of each notebook: key in the history, words, unit.
MEASURES = {
    "verify": (
        ("chroma.collection", "documents in Chroma", ""),
        ("database.file", "database", "bytes"),
        ("chroma.file", "Chroma's database", "bytes"),
        ("backups.count", "good backups", ""),
        ("backups.age", "age of the newest backup", "days"),
    ),
    "capacity": (
        ("used_bytes", "on the volume", "bytes"),
        ("reclaimable_bytes", "reclaimable", "bytes"),
        ("notes", "notes", ""),
    ),
    "cost": (("usd_per_month", "cost a month", "USD"), ("billed_bytes", "billed", "bytes")),
    "backup": (
        ("backup.stored", "new in the store", "bytes"),
        ("drill.restore", "restored by the drill", "bytes"),
    ),
}
CARRY_DAYS = 30  # a failure of a check that is not made any more stands no longer than this
DOCUMENT_BYTES = 4_000_000  # ours have some 50 kB
NO_DOCUMENT = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
READ_RUNS = 100  # JSON files that are read at the most where the history does not know
NAMES = 4  # checks named in a sentence
_CLOSING = ("none", "rules")  # `cause.none`, `image.rules`: nothing was found in the whole group
_PARTIAL = "--depth full"  # in the hint of a check that could have been looked at

Standing = dict[str, dict[str, str]]  # check to {"since", "seen"}: first and last run it failed in


def changes(
    reports_dir: Path, document: Mapping[str, Any], at: datetime, *, demo: bool = False
) -> dict[str, Any]:
    """Given a notebook's JSON document and its run's time, return what changed.

    That is {"previous", "previous_run", "new", "resolved", "since", "unseen", "warned",
    "last_healthy", "measures"}. `since` maps each check that fails now to the first run of its
    unbroken series, `unseen` each one that failed when it was last looked at to {"since", "seen"},
    `warned` each one that warns to the first run in which it did; times are ISO 8601 in UTC.
    `last_healthy` is the newest earlier healthy run. `measures` have "key", "label", "before",
    "now" and "unit". Reads the history, and older runs' JSON files.
    """
    name = document["name"]
    volume = history.volume_of(document["settings"])
    rows = [] if demo else _earlier(reports_dir, name, volume, at)
    before = _standing(reports_dir, rows, name)
    after, resolved = _step(before, document, at)
    failing = {check["name"] for check in document["checks"] if check["status"] == "fail"}
    since = {check: seen["since"] for check, seen in after.items() if check in failing}
    return {
        "previous": history.iso(rows[0][1]) if rows else None,
        "previous_run": rows[0][0] if rows else None,
        "new": [check for check in since if check not in before] if rows else [],
        "resolved": resolved,
        "since": since,
        "unseen": {check: seen for check, seen in after.items() if check not in failing},
        "warned": _warned(reports_dir, rows, document, at),
        "last_healthy": _last_healthy(reports_dir, name, volume, at) if rows else None,
        "measures": _measures(reports_dir, rows[0][0], document) if rows else [],
    }


def words(changes: Mapping[str, Any]) -> show.Text:
    """Given what changed, return it as the end of a sentence; empty where nothing did."""
    said = []
    for names, one, many in (
        (changes["new"], "new failure", "new failures"),
        (changes["resolved"], "resolved", "resolved"),
        (list(changes["unseen"]), "not looked at that failed", "not looked at that failed"),
    ):
        if names:
            said.append(f"{show.count(len(names), one, many)} ({_listed(names)})")
    return show.Text(", ".join([*said, *_moved(changes["measures"])]))


def line(pages: Iterable[tuple[str, str, str]]) -> show.Text:
    """Given notebook, time of its previous run (ISO, or empty) and words, return one sentence.

    Where the previous runs differ in time, there is a sentence for each time.
    """
    by_time: dict[str, list[str]] = {}
    for name, previous, changed in pages:
        said = by_time.setdefault(previous, [])
        if changed:
            said.append(f"{name}: {changed}")
    sentences = []
    for previous in sorted(filter(None, by_time), reverse=True):
        time = show.moment(datetime.fromisoformat(previous))
        sentences.append(f"Since {time}: {'; '.join(by_time[previous]) or 'nothing changed'}.")
    return show.Text(" ".join(sentences) or "No earlier run to compare with.")


def _earlier(
    reports_dir: Path, name: str, volume: str, until: datetime
) -> list[tuple[str, datetime, Standing | None]]:
    """The earlier runs of a notebook on a volume, newest first: stamp, time, what stood then."""
    query = """
        SELECT p.run, r.generated_at, c.standing FROM pages p JOIN runs r ON r.stamp = p.run
        LEFT JOIN changes c ON c.run = p.run AND c.name = p.name
        WHERE p.name = ? AND p.volume = ? AND NOT r.demo AND r.generated_at <= ?
        ORDER BY r.generated_at DESC, r.rowid DESC LIMIT ?
    """
    given = (name, volume, history.iso(until), READ_RUNS)

    def run(stamp: str, at: str, text: str | None) -> tuple[str, datetime, Standing | None]:
        when = datetime.fromisoformat(at).astimezone(UTC)
        return stamp, when, None if text is None else _read(text)

    return [*history.made(run, history.select(reports_dir, query, given))]


def _read(text: str) -> Standing | None:
    """What stood, from the history's JSON; None if it makes no sense."""
    try:
        return {
            name: {key: history.iso(datetime.fromisoformat(seen[key])) for key in ("since", "seen")}
            for name, seen in json.loads(text).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _last_healthy(reports_dir: Path, name: str, volume: str, until: datetime) -> str | None:
    """When it was ok or warn last, with no failure standing that was merely not looked at."""
    query = """
        SELECT max(r.generated_at) FROM pages p JOIN runs r ON r.stamp = p.run
        LEFT JOIN changes c ON c.run = p.run AND c.name = p.name
        WHERE p.name = ? AND p.volume = ? AND NOT r.demo AND r.generated_at <= ?
          AND p.status IN ('ok', 'warn') AND coalesce(c.standing, '{}') = '{}'
    """
    rows = history.select(reports_dir, query, (name, volume, history.iso(until)))
    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        return history.iso(datetime.fromisoformat(rows[0][0]))
    return None


def document(file: Path) -> dict[str, Any]:
    """Read one JSON document of an earlier run, which may be anything; raise one of NO_DOCUMENT."""
    if not file.is_file() or file.stat().st_size > DOCUMENT_BYTES:
        raise ValueError("not one of ours")
    read: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return read


def _standing(
    reports_dir: Path, rows: Sequence[tuple[str, datetime, Standing | None]], name: str
) -> Standing:
    """What stood after the newest run; runs that did not record it are gone through by JSON."""
    silent = []
    standing: Standing = {}
    for stamp, at, recorded in rows:
        if recorded is not None:
            standing = recorded
            break
        silent.append((stamp, at))
    for stamp, at in reversed(silent):
        with contextlib.suppress(*NO_DOCUMENT):
            standing, _ = _step(standing, document(reports_dir / stamp / f"{name}.json"), at)
    return standing


def _step(
    before: Standing, document: Mapping[str, Any], at: datetime
) -> tuple[Standing, list[str]]:
    """Given what stood and a run's document, return what stands after it, and what was resolved.

    Troubleshoot names the causes that it found, of all of them unless it was asked for a symptom.
    """
    now, checks = history.iso(at), document["checks"]
    found: dict[str, set[str]] = {"ok": set(), "warn": set(), "unknown": set(), "fail": set()}
    for check in checks:
        found[check["status"]].add(check["name"])
    failing = [check["name"] for check in checks if check["status"] == "fail"]
    right = (found["ok"] | found["warn"]) - found["unknown"] - found["fail"]
    partial = any(_PARTIAL in check["hint"] for check in checks if check["status"] == "unknown")
    closed = {name.partition(".")[0] for name in right if name.partition(".")[2] in _CLOSING}
    unseen = any(c["status"] == "unknown" and not c.get("expected") for c in checks)
    asked = document.get("data", {}).get("symptom")
    if not (unseen or asked) and any(check["name"].startswith("cause.") for check in checks):
        closed.add("cause")
    after, resolved = {}, []
    for name, seen in before.items():
        made = name in right or name in found["unknown"] or name in failing
        if name in right or (not made and not partial and name.partition(".")[0] in closed):
            resolved.append(name)
        elif made or at - datetime.fromisoformat(seen["seen"]) <= timedelta(days=CARRY_DAYS):
            after[name] = seen
    fresh = {"since": now, "seen": now}
    return {**after, **{n: {**before.get(n, fresh), "seen": now} for n in failing}}, resolved


def _warned(
    reports_dir: Path,
    rows: Sequence[tuple[str, datetime, Standing | None]],
    now: Mapping[str, Any],
    at: datetime,
) -> dict[str, str]:
    """Since when each check warns, as far as the run before says; what was not looked at stays."""
    before: dict[str, str] = {}
    for stamp, _, _ in rows[:1]:
        with contextlib.suppress(*NO_DOCUMENT):
            read = document(reports_dir / stamp / f"{now['name']}.json")["changes"]["warned"]
            before = {n: history.iso(datetime.fromisoformat(began)) for n, began in read.items()}
    found = {}
    for check in now["checks"]:
        name, warns = check["name"], check["status"] == "warn"
        if warns or (check["status"] == "unknown" and name in before):
            found[name] = before.get(name, history.iso(at))
    return found


def _measures(reports_dir: Path, stamp: str, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measures that both runs have."""
    query = "SELECT key, value FROM measurements WHERE run = ? AND name = ?"
    rows = history.select(reports_dir, query, (stamp, document["name"]))
    before = {key: value for key, value in rows if history.is_number(value)}
    now = history.measurements(document)
    return [
        {
            "key": key,
            "label": label,
            "before": int(before[key]) if unit in ("", "bytes") else before[key],
            "now": int(now[key][0]) if unit in ("", "bytes") else now[key][0],
            "unit": unit,
        }
        for key, label, unit in MEASURES.get(document["name"], ())
        if key in before and key in now
    ]


def _moved(measures: Iterable[Mapping[str, Any]]) -> list[str]:
    """The measures that a person would see change, as text; an age changes by itself."""
    said = []
    for each in measures:
        before, now = (show.quantity(each[when], each["unit"]) for when in ("before", "now"))
        if before != now and each["unit"] != "days":
            by = each["now"] - each["before"]
            grown = show.quantity(abs(by), each["unit"])
            said.append(f"{each['label']} {'+' if by > 0 else '−'}{grown} to {now}")
    return said


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
