"""The history: what is kept of a run, apart for each volume, whatever happens to the file."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import leave_journal

from nescord_ops import history, show
from nescord_ops.history import PageRow, RunRow

NOW = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)


def document(used: float = 1500, database: str = "/volume/bot.db") -> dict[str, Any]:
    return {
        "settings": {"database": database},
        "checks": [
            {"name": "disk.free", "status": "ok", "value": 9, "unit": "bytes"},
            {"name": "sqlite.mode", "status": "fail", "value": "wal", "unit": ""},
            {"name": "mount", "status": "unknown", "value": None, "unit": ""},
        ],
        "data": {
            "used_bytes": used,
            "cost_usd": 0.25,
            "notes": 300,
            "grows": True,
            "full_days": math.inf,
            "tables": {"notes": 3},
        },
    }


def run_row(day: int = 0, *, demo: bool = False) -> RunRow:
    page = PageRow("capacity", "ok", "Healthy. 1 ok.")
    at = NOW + timedelta(days=day)
    return RunRow(f"stamp-{day}-{demo}", at, "ok", demo, (page,), "/volume/bot.db")


def test_what_is_recorded_comes_back_newest_first(tmp_path: Path) -> None:
    for day in (0, 1, 2):
        history.record(tmp_path, run_row(day), [document(used=1000 + day)])
    assert history.runs(tmp_path) == [run_row(day) for day in (2, 1, 0)]
    grown = [(NOW + timedelta(days=day), 1000.0 + day) for day in (0, 1, 2)]
    assert history.series(tmp_path, "used_bytes") == grown
    assert history.series(tmp_path, "used_bytes", name="capacity") == grown
    assert history.series(tmp_path, "used_bytes", name="cost") == []


def test_the_amounts_in_a_headline_keep_their_exact_values(tmp_path: Path) -> None:
    sizes = f"{show.size(1_234_567)} of {show.size(1_200_000)}, {show.dollars(0.0312)} a month"
    row, facts = run_row(), {**document(), "changes": {"since": {}, "unseen": {}}}
    page = dataclasses.replace(row.pages[0], headline=show.Text(sizes), changed=show.Text(sizes))
    history.record(tmp_path, dataclasses.replace(row, pages=(page,)), [facts])
    ((kept,),) = (run.pages for run in history.runs(tmp_path))
    assert kept.headline == "1.23 MB of 1.2 MB, $0.03 a month"
    exact = ("1,234,567 bytes", "1,200,000 bytes", "0.0312 USD")
    for text in (kept.headline, kept.changed):
        assert all(f'title="{value}"' in show.titled(f"{text}") for value in exact)
    assert history.points(tmp_path, "capacity", "used_bytes", "/volume/bot.db", row.generated_at)
    with contextlib.closing(sqlite3.connect(tmp_path / history.FILE_NAME)) as db:
        db.execute("UPDATE measurements SET unit = 'miles' WHERE key = 'headline.000'")
        db.execute("UPDATE measurements SET value = 5 WHERE key = 'headline.001'")
        db.commit()
    ((kept,),) = (run.pages for run in history.runs(tmp_path))
    assert show.titled(f"{kept.headline}").count("title=") == 1, "what does not fit is left out"


def test_measurements_are_the_numbers_of_checks_and_data_with_their_units() -> None:
    assert history.measurements(document()) == {
        "disk.free": (9, "bytes"),
        "used_bytes": (1500, "bytes"),
        "cost_usd": (0.25, "usd"),
        "notes": (300, ""),
    }


def test_volumes_do_not_mix_and_a_demo_shows_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    history.record(tmp_path, run_row(0), [document(1, str(tmp_path / "volume" / "bot.db"))])
    history.record(tmp_path, run_row(1), [document(2, "/other/bot.db")])
    history.record(tmp_path, run_row(2, demo=True), [document(3, "/tmp/demo/bot.db")])

    def values(**asked: Any) -> list[float]:
        return [value for _, value in history.series(tmp_path, "used_bytes", **asked)]

    assert values() == [1, 2]
    assert values(volume=Path("/other/bot.db")) == [2]
    assert values(volume=tmp_path / "link" / "bot.db") == [1], "a link to it is the same volume"
    assert values(volume="/tmp/demo/bot.db") == [3]


def test_reading_never_makes_a_file(tmp_path: Path) -> None:
    assert history.series(tmp_path, "used_bytes") == []
    assert history.series(tmp_path / "absent", "used_bytes") == []
    assert history.runs(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def corrupt(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    file.write_bytes(data)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def text(file: Path) -> None:
    file.write_text("not a database\n" * 500)


def foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE runs (theirs)")


def journalled(file: Path) -> None:
    """Writing to it would remove the file of the run before."""
    mine = file.with_name("mine")
    mine.write_bytes(b"precious\0")
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE more AS SELECT hex(zeroblob(90000)) AS text")
    leave_journal(file, "UPDATE more SET text = hex(randomblob(90000))", mine)


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 999")


@pytest.mark.parametrize("damage", [corrupt, truncated, text, foreign, journalled, newer])
def test_a_file_that_is_damaged_or_not_ours_reads_as_empty_and_is_put_aside(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    history.record(tmp_path, run_row(0), [document()])
    file = tmp_path / history.FILE_NAME
    damage(file)
    before = file.read_bytes()
    assert history.series(tmp_path, "used_bytes") == []
    assert history.runs(tmp_path) == []
    assert file.read_bytes() == before
    with caplog.at_level(logging.WARNING):
        history.record(tmp_path, run_row(1), [document()])
    assert "cannot be used" in caplog.text
    assert [row.stamp for row in history.runs(tmp_path)] == [run_row(1).stamp]
    aside = tmp_path / f"{history.FILE_NAME}.damaged-{run_row(1).stamp}"
    assert aside.read_bytes() == before, "nothing of it is lost"
    assert damage is not journalled or (tmp_path / "mine").exists()


def test_a_locked_history_is_waited_for_and_never_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LOCK_SECONDS", 0.1)
    history.record(tmp_path, run_row(0), [document()])
    holder = sqlite3.connect(tmp_path / history.FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        history.record(tmp_path, run_row(1), [document()])
    assert history.series(tmp_path, "used_bytes") == []
    holder.close()
    history.record(tmp_path, run_row(1), [document()])
    assert len(history.runs(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [history.FILE_NAME]


def test_concurrent_runs_are_all_recorded(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: history.record(tmp_path, run_row(n), [document(n)]), range(24)))
    assert len(history.runs(tmp_path)) == 24
    assert len(history.series(tmp_path, "used_bytes")) == 24
    with sqlite3.connect(tmp_path / history.FILE_NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


SCHEMA_1 = """
PRAGMA application_id = 1313820755;
PRAGMA user_version = 1;
CREATE TABLE [runs] (
   [stamp] TEXT PRIMARY KEY, [generated_at] TEXT, [status] TEXT, [demo] INTEGER
);
CREATE TABLE [pages] (
   [run] TEXT, [name] TEXT, [status] TEXT, [headline] TEXT, [failed] INTEGER, [checks] INTEGER,
   [volume] TEXT, PRIMARY KEY ([run], [name])
);
CREATE TABLE [measurements] (
   [run] TEXT, [generated_at] TEXT, [volume] TEXT, [name] TEXT, [key] TEXT, [value] FLOAT,
   [unit] TEXT, PRIMARY KEY ([run], [name], [key])
);
CREATE INDEX [idx_measurements_key_volume_generated_at]
    ON [measurements] ([key], [volume], [generated_at]);
INSERT INTO runs VALUES ('20261122T220000Z', '2026-11-22T22:00:00+00:00', 'fail', 0);
INSERT INTO pages VALUES
   ('20261122T220000Z', 'capacity', 'fail', 'Not safe. 1 failed.', 1, 3, '/volume/bot.db');
INSERT INTO measurements VALUES ('20261122T220000Z', '2026-11-22T22:00:00+00:00',
   '/volume/bot.db', 'capacity', 'used_bytes', 900.0, 'bytes');
"""


def test_a_file_of_before_the_comparisons_is_read_and_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / history.FILE_NAME
    with sqlite3.connect(file) as connection:
        connection.executescript(SCHEMA_1)
    before = file.read_bytes()
    old = NOW - timedelta(days=1)
    page = PageRow("capacity", "fail", "Not safe. 1 failed.")
    first = RunRow("20261122T220000Z", old, "fail", False, (page,), "/volume/bot.db")
    assert history.runs(tmp_path) == [first]
    asked = ("/volume/bot.db", old)
    assert history.points(tmp_path, "capacity", "", *asked) == [(old, 1)]
    assert history.points(tmp_path, "capacity", "used_bytes", *asked) == [(old, 900)]
    assert file.read_bytes() == before, "reading changes nothing"

    at = history.iso(old)
    changes = {"since": {"sqlite.mode": at}, "unseen": {}}
    row = dataclasses.replace(
        run_row(), pages=(PageRow("capacity", "fail", "Not safe.", at, "none", True, at),)
    )
    history.record(tmp_path, row, [{**document(), "changes": changes}])
    assert history.runs(tmp_path) == [row, first]
    assert len(history.series(tmp_path, "used_bytes")) == 2
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,), "the older reads it"
        names = [row[1] for row in connection.execute("PRAGMA table_info(pages)")]
        assert names == ["run", "name", "status", "headline", "failed", "checks", "volume"]
    assert [path.name for path in tmp_path.iterdir()] == [history.FILE_NAME]


def test_a_page_that_names_no_volume_has_that_of_its_run(tmp_path: Path) -> None:
    pages = (PageRow("verify", "unknown", "Could not check."), run_row().pages[0])
    row = dataclasses.replace(run_row(), pages=pages)
    history.record(tmp_path, row, [document(database=""), document()])
    since = NOW - timedelta(days=1)
    assert history.points(tmp_path, "verify", "", "/volume/bot.db", since) == [(NOW, None)]
    assert history.runs(tmp_path, since=NOW + timedelta(seconds=1)) == []
