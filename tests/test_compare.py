"""What changed since the previous run: nothing is called resolved that was not looked at."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_schedule import put

from nescord_ops import checks, cli, compare, history, publish, show
from nescord_ops.checks import Check, Status, fail, ok, unknown, warn

NOW = datetime(2026, 11, 1, 3, 15, tzinfo=UTC)
VOLUME = "/app/data/nescordbot.db"
GOOD = ok("lost", "none", value=0)
BAD = fail("lost", "41 lost", "restore", value=41)
UNSEEN = unknown("lost", "could not be looked at")


def at(day: int) -> str:
    return history.iso(NOW + timedelta(days=day))


def run(
    out: Path,
    day: int,
    *found: Check,
    name: str = "verify",
    database: str = VOLUME,
    demo: bool = False,
    **data: float | str,
) -> dict[str, Any]:
    """Compare and record one run; return what changed."""
    when = NOW + timedelta(days=day)
    document = {
        "name": name,
        "status": checks.verdict(found).value,
        "settings": {"database": database},
        "checks": [checks.plain(check) for check in found],
        "data": data,
    }
    changes = compare.changes(out, document, when, demo=demo)
    document["changes"] = changes
    row = publish._row(name, Status(document["status"]), checks.headline(found), changes)
    this = history.RunRow(f"{when:%Y%m%dT%H%M%SZ}", when, document["status"], demo, (row,))
    history.record(out, this, [document])
    return changes


def test_a_first_run_is_compared_with_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, 0, BAD, used_bytes=5)
    assert found == {
        "previous": None,
        "previous_run": None,
        "new": [],
        "resolved": [],
        "since": {"lost": at(0)},
        "unseen": {},
        "warned": {},
        "last_healthy": None,
        "measures": [],
    }
    assert compare.line([("verify", "", compare.words(found))]).startswith("No earlier run")


def test_a_failure_is_new_once_stands_since_then_and_is_resolved_once(tmp_path: Path) -> None:
    other = fail("space", "full", "grow it")
    days = [(GOOD,), (BAD,), (BAD, other), (GOOD, other), (warn("lost", "1", "see"),)]
    found = [run(tmp_path, day, *made) for day, made in enumerate(days)]
    assert [each["new"] for each in found] == [[], ["lost"], ["space"], [], []]
    assert [each["resolved"] for each in found] == [[], [], [], ["lost"], []]
    assert found[2]["since"] == {"lost": at(1), "space": at(2)}
    assert found[3]["since"] == {"space": at(2)}
    assert [each["previous"] for each in found] == [None, at(0), at(1), at(2), at(3)]
    assert found[4]["previous_run"] == "20261104T031500Z"
    assert [each["last_healthy"] for each in found] == [None, *[at(0)] * 4]
    assert list(found[4]["unseen"]) == ["space"], "a check that is not made is not resolved"


@pytest.mark.parametrize("between", [(UNSEEN,), (ok("other", "fine"),), ()])
def test_what_was_not_looked_at_neither_ends_a_failure_nor_begins_one(
    tmp_path: Path, between: tuple[Check, ...]
) -> None:
    run(tmp_path, 0, BAD)
    unlooked = run(tmp_path, 1, *between)
    assert (unlooked["new"], unlooked["resolved"], unlooked["since"]) == ([], [], {})
    assert unlooked["unseen"] == {"lost": {"since": at(0), "seen": at(0)}}
    assert compare.words(unlooked) == "1 not looked at that failed (lost)"
    again = run(tmp_path, 2, BAD)
    assert (again["new"], again["since"]) == ([], {"lost": at(0)})
    run(tmp_path, 3, *between)
    assert run(tmp_path, 4, GOOD)["resolved"] == ["lost"]
    assert run(tmp_path, 5, *between)["unseen"] == {}
    assert run(tmp_path, 6, BAD)["new"] == ["lost"]


def test_every_order_of_four_runs_agrees_with_what_was_looked_at() -> None:
    """All 625 of them, against the rule said in another way."""
    states = {"ok": GOOD, "warn": warn("lost", "1", "see"), "fail": BAD, "unknown": UNSEEN}
    for order in itertools.product([*states, ""], repeat=4):
        standing: compare.Standing = {}
        for day, state in enumerate(order):
            made = [checks.plain(states[state])] if state else []
            before = set(standing)
            standing, resolved = compare._step(
                standing, {"checks": made}, NOW + timedelta(days=day)
            )
            looked = [n for n in range(day + 1) if order[n] in ("ok", "warn", "fail")]
            right = [n for n in looked if order[n] != "fail"]
            failed = [n for n in looked if order[n] == "fail" and n > max(right, default=-1)]
            assert [seen["since"] for seen in standing.values()] == [at(n) for n in failed[:1]]
            assert [seen["seen"] for seen in standing.values()] == [at(n) for n in failed[-1:]]
            assert bool(resolved) == (bool(before) and state in ("ok", "warn")), order


def test_a_run_that_did_not_look_at_a_failure_is_not_healthy(tmp_path: Path) -> None:
    other = ok("other", "fine")
    for day, made in enumerate([(GOOD, other), (BAD, other), (other,)]):
        run(tmp_path, day, *made)
    assert run(tmp_path, 3, BAD, other)["last_healthy"] == at(0), "not the run of day 2"


def test_a_warning_says_since_when(tmp_path: Path) -> None:
    old = warn("old", "a backup is old", "take one")
    days = [
        (GOOD,),
        (old,),
        (unknown("old", "not looked at"),),
        (old,),
        (ok("old", "new"),),
        (old,),
    ]
    made = [put(tmp_path, *found, at=NOW + timedelta(days=day)) for day, found in enumerate(days)]
    warned = [each.pages[0].changes["warned"] for each in made]
    assert warned == [{}, *[{"old": at(1)}] * 3, {}, {"old": at(5)}]
    page = re.sub(r"<[^>]+>", "", made[3].pages[0].html.read_text())
    assert "old, since 2026-11-02 03:15 UTC" in page
    (made[5].directory / "verify.json").write_text('{"changes": {"warned": {"old": "x"}}}')
    assert put(tmp_path, old, at=NOW + timedelta(days=6)).pages[0].changes["warned"] == {
        "old": at(6)
    }


def test_a_group_with_nothing_found_in_it_is_resolved_unless_a_part_was_left_out(
    tmp_path: Path,
) -> None:
    full = fail("cause.full", "the volume is full", "grow it")
    nothing = ok("cause.none", "nothing speaks for any trouble")
    shallow = unknown("deep", "not in quick depth", "verify --depth full", expected=True)
    run(tmp_path, 0, full)
    assert run(tmp_path, 1, nothing, shallow)["resolved"] == []
    assert run(tmp_path, 2, nothing)["resolved"] == ["cause.full"]


def test_a_cause_that_is_no_longer_found_is_resolved_beside_others(tmp_path: Path) -> None:
    lost, old = fail("cause.index-lost", "a", "b"), warn("cause.no-backup", "c", "d")
    blind = unknown("looked.checks", "the copy failed", "see why")
    run(tmp_path, 0, lost, old)
    assert run(tmp_path, 1, old, blind)["resolved"] == []
    assert run(tmp_path, 2, old, symptom="full")["resolved"] == []
    assert run(tmp_path, 3, old)["resolved"] == ["cause.index-lost"]


def test_a_check_that_is_never_made_again_is_let_go_without_being_resolved(tmp_path: Path) -> None:
    other = ok("other", "fine")
    run(tmp_path, 0, BAD)
    last = compare.CARRY_DAYS
    assert list(run(tmp_path, last, other)["unseen"]) == ["lost"]
    gone = run(tmp_path, last + 1, other)
    assert (gone["unseen"], gone["resolved"]) == ({}, [])
    run(tmp_path, 100, BAD)
    assert list(run(tmp_path, 200, UNSEEN)["unseen"]) == ["lost"], "it is made, and cannot look"


def test_volumes_notebooks_and_samples_are_apart(tmp_path: Path) -> None:
    run(tmp_path, 0, BAD)
    assert run(tmp_path, 1, BAD, database="/other/bot.db")["previous"] is None
    assert run(tmp_path, 2, BAD, name="backup")["previous"] is None
    run(tmp_path, 3, GOOD, demo=True)
    assert run(tmp_path, 4, GOOD, demo=True)["previous"] is None
    assert run(tmp_path, 5, GOOD)["previous"] == at(0)


def test_growth_and_cost_are_told_with_their_units(tmp_path: Path) -> None:
    run(tmp_path, 0, GOOD, name="capacity", used_bytes=12_600_000, notes=300)
    found = run(tmp_path, 1, GOOD, name="capacity", used_bytes=13_800_000, notes=290, free_bytes=5)
    assert found["measures"] == [
        {"key": "used_bytes", "label": "on the volume", "before": 12_600_000, "now": 13_800_000,
         "unit": "bytes"},
        {"key": "notes", "label": "notes", "before": 300, "now": 290, "unit": ""},
    ]  # fmt: skip
    capacity = compare.words(found)
    assert capacity == "on the volume +1.2 MB to 13.8 MB, notes −10 to 290"
    run(tmp_path, 0, GOOD, name="cost", usd_per_month=0.04)
    cost = compare.words(run(tmp_path, 1, GOOD, name="cost", usd_per_month=0.0512))
    assert cost == "cost a month +$0.01 to $0.05"
    told = compare.line([("capacity", at(0), capacity), ("cost", at(0), cost)])
    assert told == f"Since 2026-11-01 03:15 UTC: capacity: {capacity!s}; cost: {cost!s}."
    assert 'title="1,200,000 bytes"' in show.titled(f"{told}")
    assert compare.line([("capacity", at(0), "")]).endswith("UTC: nothing changed.")


def test_many_names_are_counted_and_few_are_named(tmp_path: Path) -> None:
    run(tmp_path, 0, GOOD)
    many = [fail(f"check{n}", "bad", "mend") for n in range(40)]
    text = compare.words(run(tmp_path, 1, *many))
    assert text == "40 new failures (check0, check1, check2, check3 and 36 more)"


def test_runs_that_did_not_record_what_stood_are_read_from_their_json(tmp_path: Path) -> None:
    for day, made in enumerate([(GOOD,), (BAD,), (UNSEEN,), (BAD,)]):
        run(tmp_path, day, *made)
        directory = tmp_path / f"{NOW + timedelta(days=day):%Y%m%dT%H%M%SZ}"
        directory.mkdir()
        text = json.dumps({"checks": [checks.plain(check) for check in made]})
        (directory / "verify.json").write_text(text)
    with sqlite3.connect(tmp_path / history.FILE_NAME) as connection:
        connection.execute("DROP TABLE changes")
    found = run(tmp_path, 4, BAD, fail("space", "full", "grow it"))
    assert (found["new"], found["since"]["lost"]) == (["space"], at(1))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"lost": 3}', '{"lost": {"since": "x", "seen": "y"}}']
)
def test_a_history_that_makes_no_sense_is_no_history(tmp_path: Path, text: str) -> None:
    run(tmp_path, 0, BAD)
    with sqlite3.connect(tmp_path / history.FILE_NAME) as connection:
        connection.execute("UPDATE changes SET standing = ?", (text,))
    assert run(tmp_path, 1, BAD)["since"] == {"lost": at(1)}


def test_report_says_what_changed_in_its_json_and_on_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = nbformat.v4.new_notebook()
    cells = [
        "lost: int = 0",
        "import dataclasses\nfrom nescord_ops import checks\n\n"
        "class Settings:\n    def to_dict(self):\n        return {'database': '/v/bot.db'}\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Found(checks.Findings):\n"
        "    settings: Settings\n    checks: tuple\n",
        "made = checks.none_of('stores.lost', lost, 'notes', good='none', bad='lost',"
        " hint='restore', severity=checks.Status.FAIL)\nFound(Settings(), (made,))",
    ]
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    book.cells[0].metadata["tags"] = ["parameters"]
    name = tmp_path / "looked.ipynb"
    nbformat.write(book, name)
    out = tmp_path / "reports"
    out.mkdir()
    run(out, 0, ok("stores.lost", "none", value=0), name="looked", database="/v/bot.db")
    given = ["report", str(name), "--out", str(out), "-p", "lost=41", "--json"]
    assert cli.run(given) == 1
    made = json.loads(capsys.readouterr().out)
    told = "Since 2026-11-01 03:15 UTC: looked: 1 new failure (stores.lost)."
    assert made["changed"] == told
    said = re.sub(r"<[^>]+>", "", (out / "index.html").read_text())
    assert re.sub(r"UTC, \d+ \w+ ago", "UTC", said).count(told) == 1
    second, before = history.runs(out)
    document = json.loads((out / second.stamp / "looked.json").read_text())
    assert document["changes"] == made["pages"][0]["changes"]
    assert document["changes"]["new"] == ["stores.lost"]
    assert document["changes"]["previous_run"] == before.stamp
