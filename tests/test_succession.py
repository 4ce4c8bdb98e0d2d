"""A volume stays one while its DATABASE_URL is wrong: in comparisons, on the index, in messages."""

from __future__ import annotations

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import MakeDemo
from test_compare import BAD, GOOD, run
from test_troubleshoot import shell

from nescord_ops import history, notify, report, settings, succession
from nescord_ops.checks import fail
from nescord_ops.faults import FAULTS

NOW = datetime.now(UTC).replace(microsecond=0)
URL = fail("location.url", "DATABASE_URL opens another file", "correct it")


def test_a_wrong_url_and_its_repair_are_two_events_of_one_volume(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made, other = demo(), demo(directory=tmp_path / "other")
    out = tmp_path / "reports"

    def look(days: int, app_dir: Path = made.app_dir) -> report.Run:
        at = NOW - timedelta(days=days)
        options = {"app_dir": str(app_dir)}
        return report.run(["verify"], options=options, depth="quick", out=out, now=at)

    look(3)
    FAULTS["three-slash-url"].plant(made)
    broken = look(2)
    changes = broken.pages[0].changes
    assert (broken.exit_code, changes["new"]) == (1, ["location.url"])
    assert changes["last_healthy"] == history.iso(NOW - timedelta(days=3))
    assert changes["since"] == {"location.url": history.iso(NOW - timedelta(days=2))}
    text = broken.pages[0].html.read_text()
    assert "First seen now; last healthy run" in text

    fix = json.loads(broken.pages[0].json.read_text())["data"]["fixes"][0]["commands"]
    shell(fix, tmp_path / "bin")
    apart = look(1, other.app_dir)
    assert apart.pages[0].changes["previous"] is None, "another volume"
    mended = look(0)
    assert mended.pages[0].changes["resolved"] == ["location.url"]
    message = notify.of_run(mended, notify.before(mended))
    assert (message.recovered, message.verdict[-5:]) == (True, "again")
    index = (out / "index.html").read_text()
    sections = re.findall(
        r'<section class="verdict newest (\w+)" aria-label="Newest run, ([^"]+)', index
    )
    assert sorted(path for _, path in sections) == [
        str(made.database), str(other.database)
    ]  # fmt: skip
    assert {status for status, _ in sections} <= {"ok", "warn", "unknown"}, "no red of the past"


@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite:////{}?timeout=20&journal_mode=WAL"])
def test_a_history_of_before_is_taken_over_where_the_url_was_seen_to_be_wrong(
    tmp_path: Path, url: str
) -> None:
    app, out = tmp_path / "app", tmp_path
    app.mkdir()
    right = app / "data" / "bot.db"
    wrong, meant = settings.opened_by_bot(url.format(str(right)[1:]), app)
    assert meant == right
    assert wrong != right
    stray = app.joinpath(str(wrong)[1:] + "-2")
    run(out, 0, GOOD, database=str(right))
    run(out, 1, GOOD, URL, database=str(wrong))
    run(out, 2, BAD, database=str(stray))
    found = settings.load(app_dir=app, database_url=f"sqlite:///{right}")
    succession.take_over(out, found)
    after = run(out, 3, GOOD, database=str(right))
    assert after["previous_run"] == "20261102T031500Z"
    assert list(after["unseen"]) == ["location.url"]
    assert {row.volume for row in history.runs(out)} == {str(right), str(stray)}


def test_a_second_database_that_was_looked_at_on_purpose_stays_apart(tmp_path: Path) -> None:
    app = tmp_path / "app"
    right = app / "data" / "bot.db"
    stray = app / str(right)[1:]
    app.mkdir()
    run(tmp_path, 0, BAD, database=str(stray))
    found = settings.load(app_dir=app, database_url=f"sqlite:///{right}")
    before = (tmp_path / history.FILE_NAME).read_bytes()
    succession.take_over(tmp_path, found)
    assert (tmp_path / history.FILE_NAME).read_bytes() == before
    assert run(tmp_path, 1, GOOD, database=str(right))["previous"] is None


def test_a_history_that_is_held_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "LOCK_SECONDS", 0.1)
    right = tmp_path / "data" / "bot.db"
    run(tmp_path, 0, URL, database=str(tmp_path / str(right)[1:]))
    holder = sqlite3.connect(tmp_path / history.FILE_NAME, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    succession.take_over(
        tmp_path, settings.load(app_dir=tmp_path, database_url=f"sqlite:///{right}")
    )
    holder.close()
    assert "cannot be written" in caplog.text
