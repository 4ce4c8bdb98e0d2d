"""Every byte is counted once, and a forecast claims no more than the data carries."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nescord_ops import (
    capacity,
    figures,
    footprint,
    growth,
    headroom,
    history,
    show,
    verify,
    volume,
)
from nescord_ops.checks import Check, Status
from nescord_ops.demo import Demo
from nescord_ops.errors import CaptureError, SettingsError
from nescord_ops.growth import Growth, Notes
from nescord_ops.prices import GB
from nescord_ops.settings import Settings, load
from nescord_ops.volume import Space

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 8, 1, tzinfo=UTC)
NOTES_TABLE = "CREATE TABLE knowledge_notes (id TEXT PRIMARY KEY, created_at DATETIME)"


def of(made: Demo) -> Settings:
    return load(app_dir=made.app_dir)


def check(result: capacity.Capacity, name: str) -> Check:
    (found,) = [c for c in result.checks if c.name == f"capacity.{name}"]
    return found


def not_ok(result: capacity.Capacity) -> dict[str, Status]:
    return {c.name: c.status for c in result.checks if c.status is not Status.OK and not c.expected}


def component(result: capacity.Capacity, name: str) -> footprint.Component:
    (found,) = [c for c in result.components if c.name == name]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Settings:
    """A database of the bot's notes table and nothing else; no Chroma store."""
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "nescordbot.db") as connection:
        connection.execute(NOTES_TABLE)
    connection.close()
    return load(app_dir=tmp_path)


def write_notes(settings: Settings, dates: list[Any]) -> None:
    with sqlite3.connect(settings.database) as connection:
        rows = [(str(number), date) for number, date in enumerate(dates)]
        connection.executemany("INSERT INTO knowledge_notes VALUES (?, ?)", rows)
    connection.close()


# What fills the volume


def test_the_healthy_volume_has_nothing_to_see_to(base_demo: Demo) -> None:
    full = capacity.run(of(base_demo))
    assert {c.status for c in full.checks} == {Status.OK}
    quick = capacity.run(of(base_demo), depth="quick")
    assert not_ok(quick) == {}
    assert quick.status is Status.OK


def test_components_sum_to_what_du_says(base_demo: Demo) -> None:
    for depth in ("quick", "full"):
        found = capacity.run(of(base_demo), depth=depth)
        parts = [c for c in found.components if c.on_volume]
        whole = volume.usage(base_demo.data_dir)
        assert sum(c.allocated_bytes for c in parts) == whole.allocated_bytes == found.used_bytes
        assert sum(c.apparent_bytes for c in parts) == whole.apparent_bytes
        assert sum(c.files for c in parts) == whole.files


def test_each_component_is_measured_by_itself(base_demo: Demo) -> None:
    found = capacity.run(of(base_demo))
    backups = [volume.usage(path).allocated_bytes for path in base_demo.backup_dir.iterdir()]
    vectors = [p for p in base_demo.chroma_dir.iterdir() if p.is_dir()]
    assert component(found, "bot_backups").allocated_bytes == sum(backups)
    assert component(found, "chroma_vectors").allocated_bytes == sum(
        volume.usage(path).allocated_bytes for path in vectors
    )
    assert component(found, "database").apparent_bytes == base_demo.database.stat().st_size
    assert not component(found, "logs").on_volume
    with sqlite3.connect(base_demo.chroma_dir / "chroma.sqlite3") as connection:
        query = "SELECT sum(pgsize) FROM dbstat WHERE name LIKE ? AND aggregate = TRUE"
        for name, tables in (
            ("chroma_queue", "%embeddings_queue%"),
            ("chroma_search", "embedding_fulltext%"),
        ):
            (size,) = connection.execute(query, (tables,)).fetchone()
            assert component(found, name).allocated_bytes == size
    connection.close()


def test_free_pages_stand_apart(bare: Settings) -> None:
    with sqlite3.connect(bare.database) as connection:
        connection.execute("CREATE TABLE big (content BLOB)")
        connection.execute("INSERT INTO big VALUES (zeroblob(1000000))")
        connection.execute("DELETE FROM big")
        connection.commit()
        (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    found = capacity.run(bare)
    assert pages > 200
    assert component(found, "database_free").allocated_bytes == pages * size
    assert found.reclaimable_bytes == pages * size
    (row,) = found.reclaimable
    assert "nescord-ops clean pages" in row.how


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("nescordbot.db", "nescordbot.db-wal", "chromadb/chroma.sqlite3", "store.sqlite3"),
                *("chromadb/0f0e0d0c-0b0a-4908-8706-050403020100/header.bin", "chromadb/x/y"),
                *("backups/store.sqlite3", "backups/nescordbot_backup_20260101_000000/a"),
                *("backups/backup_20260101_000000_auto.db", "backups/mine", "bot.log", "深い/木"),
            ]
        ),
        st.integers(0, 50_000),
    )
)
def test_whatever_lies_there_components_are_the_whole(
    tmp_path: Path, files: dict[str, int]
) -> None:
    data = tmp_path / "data"
    shutil.rmtree(data, ignore_errors=True)
    for name, size in {"nescordbot.db": 1, **files}.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(bytes(size))
    settings = load(app_dir=tmp_path)
    seen = footprint.scan(settings)
    free = {"database": 20_000, "chroma_store": 1 << 40}
    parts = footprint.components(seen, free_bytes=free, used_segments=frozenset())
    whole = volume.usage(data)
    assert sum(p.allocated_bytes for p in parts) == whole.allocated_bytes
    assert sum(p.apparent_bytes for p in parts) == whole.apparent_bytes
    assert sum(p.files for p in parts) == whole.files
    assert all(p.allocated_bytes >= 0 and p.apparent_bytes >= 0 for p in parts)


def test_a_hard_link_is_counted_once(base_demo: Demo, demo: MakeDemo) -> None:
    made = demo()
    before = capacity.run(of(made), depth="quick").used_bytes
    os.link(made.database, made.data_dir / "again.db")
    assert capacity.run(of(made), depth="quick").used_bytes == before


def test_links_lead_nowhere(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    before = capacity.run(of(made), depth="quick").used_bytes
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(bytes(5_000_000))
    (made.data_dir / "out").symlink_to(outside)
    (made.data_dir / "loop").symlink_to(made.data_dir)
    (made.backup_dir / "nescordbot_backup_20260101_000000").symlink_to(outside)
    assert capacity.run(of(made), depth="quick").used_bytes - before < 20_000


def test_a_chroma_directory_linked_out_of_the_volume_is_unknown(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo()
    made.chroma_dir.rename(tmp_path / "elsewhere")
    made.chroma_dir.symlink_to(tmp_path / "elsewhere")
    found = capacity.run(of(made), depth="quick")
    assert not_ok(found) == {"capacity.chroma": Status.UNKNOWN}
    assert "link" in check(found, "chroma").summary


def test_names_that_are_not_text_are_counted(demo: MakeDemo) -> None:
    made = demo()
    Path(os.fsdecode(os.fsencode(made.data_dir) + b"/\xff<b>{x}$y$\n")).write_bytes(bytes(9000))
    found = capacity.run(of(made))
    assert component(found, "other").files == 1
    found.to_dict()
    assert not_ok(found) == {}


def test_the_scan_is_bounded(base_demo: Demo) -> None:
    assert not footprint.scan(of(base_demo), limit=5).complete
    found = footprint.scan(of(base_demo), limit=5)
    assert found.entries == 6


def test_an_unfinished_scan_is_not_ok(base_demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = footprint.scan
    monkeypatch.setattr(footprint, "scan", lambda settings: whole(settings, limit=5))
    assert not_ok(capacity.run(of(base_demo), depth="quick")) == {"capacity.scan": Status.UNKNOWN}


def test_nothing_on_the_volume_changes(demo: MakeDemo) -> None:
    made = demo()

    def state() -> dict[str, Any]:
        paths = sorted(made.app_dir.rglob("*"))
        return {
            str(p): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in paths
        }

    before = state()
    capacity.run(of(made), depth="quick")
    capacity.run(of(made))
    assert state() == before


def test_quick_depth_imports_nothing_heavy(base_demo: Demo) -> None:
    code = (
        "import sys; from nescord_ops import capacity, settings;"
        f"capacity.run(settings.load(app_dir={str(base_demo.app_dir)!r}), depth='quick');"
        "print({'chromadb', 'pandas', 'matplotlib', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What could be given back


def test_the_newest_whole_backup_is_never_offered(base_demo: Demo) -> None:
    found = capacity.run(of(base_demo))
    (whole,) = base_demo.backup_dir.glob("nescordbot_backup_*")
    (row,) = found.reclaimable
    assert row.gives_bytes == row.takes_bytes - volume.usage(whole).allocated_bytes


def test_an_orphan_directory_is_named_and_offered(demo: MakeDemo) -> None:
    found = capacity.run(of(demo("orphan-segment")))
    assert not_ok(found) == {"capacity.orphans": Status.WARN}
    assert found.orphans == 1
    held = component(found, "chroma_orphans").allocated_bytes
    assert held > 0
    assert held in [row.gives_bytes for row in found.reclaimable]


def test_sparse_bloat_is_said_and_not_billed(demo: MakeDemo) -> None:
    settings = of(demo())
    before = capacity.run(settings, depth="quick").used_bytes
    shutil.rmtree(settings.app_dir)
    found = capacity.run(of(demo("sparse-bloat")))
    assert not_ok(found) == {"capacity.bloat": Status.WARN}
    assert found.used_bytes - before < 1_000_000
    assert component(found, "chroma_vectors").apparent_bytes > 3_900_000_000


def test_a_large_wal_is_normal_and_never_offered(demo: MakeDemo) -> None:
    found = capacity.run(of(demo("large-wal")))
    assert not_ok(found) == {}
    (row,) = [row for row in found.reclaimable if "write-ahead" in row.label]
    assert row.takes_bytes > 20_000_000
    assert row.gives_bytes == 0
    assert "never delete" in row.how


def test_much_to_give_back_warns(demo: MakeDemo) -> None:
    made = demo()
    old = made.backup_dir / "backup_20200101_000000_auto.db"
    old.write_bytes(os.urandom(headroom.RECLAIM_WARN_BYTES + 1))
    settings = dataclasses.replace(of(made), volume_gb=0.5)
    found = capacity.run(settings, depth="quick")
    assert not_ok(found) == {"capacity.reclaimable": Status.WARN}


# Room


@pytest.mark.parametrize(
    ("share", "status"),
    [(0.75, Status.OK), (0.86, Status.WARN), (0.96, Status.FAIL), (1.5, Status.FAIL)],
)
def test_room_is_judged_by_its_share(base_demo: Demo, share: float, status: Status) -> None:
    settings = of(base_demo)
    room = capacity.run(settings, depth="quick")
    # Made large enough for the limit of 20 MiB not to decide.
    big = dataclasses.replace(room, size_bytes=10**9, free_bytes=max(0, round(10**9 * (1 - share))))
    (found,) = [c for c in headroom.checks(big) if c.name == "capacity.free"]
    assert found.status is status
    assert bool(found.hint) is (status is not Status.OK)


def test_no_room_to_write_a_store_anew_warns(base_demo: Demo) -> None:
    room = capacity.run(of(base_demo), depth="quick")
    parts = tuple(
        dataclasses.replace(c, allocated_bytes=400_000_000) if c.name == "database" else c
        for c in room.components
    )
    tight = dataclasses.replace(room, components=parts, size_bytes=10**9, free_bytes=300_000_000)
    (found,) = [c for c in headroom.checks(tight) if c.name == "capacity.free"]
    assert (found.status, found.limit) == (Status.WARN, 400_000_000)


def test_the_size_of_the_settings_stands_in_for_a_mount(base_demo: Demo) -> None:
    settings = dataclasses.replace(of(base_demo), volume_gb=0.5)
    found = capacity.run(settings, depth="quick")
    own = volume.usage(base_demo.data_dir).allocated_bytes
    assert (found.size_bytes, found.overhead_bytes) == (500_000_000, 15_000_000)
    assert (found.used_bytes, found.free_bytes) == (own, 485_000_000 - own)
    assert found.size_source == "NESCORD_OPS_VOLUME_GB"


def test_a_mount_says_its_size_itself(base_demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = volume.Mount(base_demo.data_dir, "/dev/zd1", "ext4", False)
    monkeypatch.setattr(volume, "mount_of", lambda _: mount)
    space = volume.Space(5_000_000_000, 1_000_000_000, 3_900_000_000)
    monkeypatch.setattr(volume, "space", lambda _: space)
    settings = dataclasses.replace(of(base_demo), volume_mount=base_demo.data_dir)
    found = capacity.run(settings, depth="quick")
    assert (found.size_bytes, found.used_bytes) == (5_000_000_000, 1_000_000_000)
    assert (found.free_bytes, found.overhead_bytes) == (3_900_000_000, 150_000_000)
    assert str(base_demo.data_dir) in found.size_source


def test_without_a_size_room_and_forecast_are_unknown(base_demo: Demo) -> None:
    settings = dataclasses.replace(of(base_demo), volume_gb=None)
    found = capacity.run(settings)
    assert found.status is Status.OK
    for name in ("free", "forecast"):
        assert check(found, name).expected
        assert "NESCORD_OPS_VOLUME_GB" in check(found, name).hint
    assert found.growth
    unmounted = dataclasses.replace(settings, volume_mount=base_demo.data_dir)
    assert capacity.run(unmounted).status is Status.UNKNOWN


def test_data_off_the_volume_is_shown_and_not_counted(demo: MakeDemo) -> None:
    made = demo("three-slash-url")
    settings = dataclasses.replace(of(made), volume_mount=made.data_dir)
    found = capacity.run(settings)
    assert not component(found, "database").on_volume
    assert found.used_bytes == volume.usage(made.data_dir).allocated_bytes
    assert "not on the volume" in check(found, "database").summary
    assert "not on the volume" in str(found.components_table()._repr_mimebundle_())


# Growth and forecast


def notes(days: int, each: int, *, quiet: int = 0) -> Notes:
    by_day = tuple((MIDNIGHT - timedelta(days=n), each) for n in range(days, quiet - 1, -1))
    return Notes(sum(count for _, count in by_day), 0, by_day)


def test_a_steady_pace_is_found_exactly() -> None:
    found = growth.from_notes(notes(200, 3), 1000, 1_000_000, NOW)
    assert isinstance(found, Growth)
    assert found.bytes_per_day == pytest.approx(3000)
    assert found.variance_per_day == pytest.approx(0)
    assert found.days == growth.WINDOW_DAYS
    assert found.points[-1] == (MIDNIGHT, 1_000_000)
    assert len(found.points) <= growth.POINTS
    full = growth.forecast(found, 300_000, NOW)
    assert full.early_days == full.likely_days == pytest.approx(100)
    assert full.late_days == pytest.approx(100)
    assert full.likely_at == NOW + timedelta(days=100)


def test_only_the_last_months_count() -> None:
    found = growth.from_notes(notes(400, 5, quiet=60), 1000, 10_000_000, NOW)
    assert isinstance(found, Growth)
    # 30 of the last 90 days, the first of them as the starting point.
    assert found.bytes_per_day == pytest.approx(5000 * 30 / 90)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Notes(0, 0, ()), "no notes yet"),
        (Notes(7, 7, ()), "no note has a usable date"),
        (notes(0, 12), "the notes cover 0 days"),
        (notes(13, 1), "the notes cover 13 days"),
        (notes(300, 1, quiet=100), "no note was written in the last 90 days"),
    ],
)
def test_what_carries_no_forecast_says_why(found: Notes, reason: str) -> None:
    assert reason in str(growth.from_notes(found, 1000, 1_000_000, NOW))


series = st.lists(st.integers(0, 40), min_size=15, max_size=120).filter(lambda c: sum(c[1:]) > 0)


@given(series, st.integers(0, 10**12))
def test_the_likely_day_lies_between_the_early_and_the_late_one(
    counts: list[int], free: int
) -> None:
    by_day = tuple(
        (MIDNIGHT - timedelta(days=len(counts) - 1 - n), c) for n, c in enumerate(counts) if c
    )
    found = growth.from_notes(Notes(sum(counts), 0, by_day), 1000, 10**9, NOW)
    if isinstance(found, str):
        return
    full = growth.forecast(found, free, NOW)
    assert full.early_days <= full.likely_days * (1 + 1e-9)
    assert full.late_days is None or full.likely_days <= full.late_days * (1 + 1e-9)
    # Each day is where its edge of the band reaches what is free.
    assert found.expected(full.early_days)[2] == pytest.approx(free, rel=1e-6, abs=1)
    if full.late_days is not None:
        assert found.expected(full.late_days)[0] == pytest.approx(free, rel=1e-4, abs=1)
    more = growth.forecast(found, 2 * free + 1, NOW)
    assert more.early_days > full.early_days


def test_the_band_holds_what_it_promises() -> None:
    import random

    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        path = [sum(draw.random() < 0.2 for _ in range(10)) for _ in range(150)]
        by_day = tuple((MIDNIGHT - timedelta(days=90 - n), c) for n, c in enumerate(path[:91]))
        found = growth.from_notes(Notes(sum(path), 0, by_day), 1.0, 10**6, NOW)
        assert isinstance(found, Growth)
        low, _, high = found.expected(59)
        hits += low <= sum(path[91:]) <= high
    assert 0.74 < hits / 400 < 0.86


def test_earlier_reports_are_preferred_once_there_are_enough() -> None:
    runs = [(NOW - timedelta(days=n), 1_000_000.0 - 2000 * n) for n in range(1, 31)]
    found = growth.from_history(runs, 1_000_000, NOW)
    assert isinstance(found, Growth)
    assert (found.source, found.days) == ("history", 30)
    assert found.bytes_per_day == pytest.approx(2000)
    assert "no earlier report" in str(growth.from_history([], 1, NOW))
    assert "too few" in str(growth.from_history(runs[:3], 1, NOW))
    old = (NOW - timedelta(days=200), 1.0)
    assert "6 days within 5 days" in str(growth.from_history([old, *runs[:5]], 1_000_000, NOW))
    assert "did not fill" in str(growth.from_history(runs, 1000, NOW))
    future = [(NOW + timedelta(days=n), 5.0) for n in range(40)]
    assert "no earlier report" in str(growth.from_history(future, 1, NOW))


def test_the_history_of_this_volume_is_read(base_demo: Demo, tmp_path: Path) -> None:
    settings = dataclasses.replace(of(base_demo), reports_dir=tmp_path)
    now = datetime.now(UTC)
    document = {
        "settings": {"database": str(settings.database)},
        "data": {"used_bytes": 1_000_000},
        "checks": [],
    }
    for day in range(30, 0, -1):
        at = now - timedelta(days=day)
        page = history.PageRow("capacity", "ok", "Healthy.")
        history.record(tmp_path, history.RunRow(f"run{day}", at, "ok", False, (page,)), [document])
    found = capacity.run(settings, depth="quick", now=now)
    assert found.growth
    assert found.growth.source == "history"
    assert found.growth.bytes_per_day == pytest.approx((found.used_bytes - 1_000_000) / 30)


@pytest.mark.parametrize(
    ("days", "status"), [(5, Status.FAIL), (60, Status.WARN), (400, Status.OK)]
)
def test_the_forecast_is_judged_by_its_days(base_demo: Demo, days: int, status: Status) -> None:
    found = capacity.run(of(base_demo))
    assert found.growth
    free = round(found.growth.bytes_per_day * days)
    near = dataclasses.replace(
        found, free_bytes=free, forecast=growth.forecast(found.growth, free, NOW)
    )
    (judged,) = [c for c in headroom.checks(near) if c.name == "capacity.forecast"]
    assert (judged.status, judged.value) == (status, days)


HOSTILE = [
    *("garbage", "", "now", "2460000.5", "20260101", "9999-99-99", "0000-00-00", "2031-01-01"),
    *(None, 5, 2460000.5, b"2026-07-01", "1970-01-01T00:00:00", "２０２６-07-01", "+infinity"),
]


def test_hostile_dates_are_left_out_and_counted(bare: Settings) -> None:
    good = [f"2026-{month:02}-01T10:00:00" for month in range(1, 8)]
    write_notes(bare, [*good, *HOSTILE])
    found = capacity.run(bare, now=NOW)
    assert (found.notes, found.undated_notes) == (len(good) + len(HOSTILE), len(HOSTILE))
    assert check(found, "dates").status is Status.WARN
    assert found.growth
    # May 3 to August 1 are 90 days, with a note on the first of June and of July.
    assert found.bytes_per_note
    assert found.growth.bytes_per_day == pytest.approx(found.bytes_per_note * 2 / 90, rel=0.001)


def test_a_clock_that_ran_ahead_does_not_invent_growth(bare: Settings) -> None:
    write_notes(bare, ["2031-01-01T00:00:00"] * 50)
    found = capacity.run(bare, now=NOW)
    assert found.growth is None
    assert "no note has a usable date" in check(found, "growth").summary


@pytest.mark.parametrize("dates", [[], ["2026-08-01T09:00:00"] * 9])
def test_a_young_bot_has_no_forecast_and_is_not_blamed(demo: MakeDemo, dates: list[str]) -> None:
    made = demo()
    with sqlite3.connect(made.database) as connection:
        connection.execute("DELETE FROM knowledge_notes")
        connection.executemany(
            "INSERT INTO knowledge_notes(id, title, content, user_id, created_at)"
            " VALUES (?, '', '', '', ?)",
            list(enumerate(dates)),
        )
    connection.close()
    found = capacity.run(of(made), now=NOW)
    assert not_ok(found) == {}
    assert check(found, "forecast").expected
    assert found.bytes_per_note is None if not dates else found.bytes_per_note


# Bad input


@pytest.mark.parametrize("depth", ["quick", "full"])
@pytest.mark.parametrize("name", ["database", "chroma"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "directory", "truncated"])
def test_a_damaged_store_fails_with_a_hint(
    demo: MakeDemo, name: str, damage: str, depth: str
) -> None:
    made = demo()
    settings = of(made)
    path = made.database if name == "database" else made.chroma_dir / "chroma.sqlite3"
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "text": b"hello" * 99, "truncated": content[:9999]}[damage])
    found = capacity.run(settings, depth=depth)
    assert not_ok(found)[f"capacity.{name}"] is Status.FAIL
    assert check(found, name).hint
    found._repr_mimebundle_()


def test_a_corrupt_page_does_not_stop_it(demo: MakeDemo) -> None:
    assert capacity.run(of(demo("corrupt-page"))).components


@pytest.mark.parametrize("name", ["database", "chroma"])
def test_a_foreign_store_fails(demo: MakeDemo, name: str) -> None:
    made = demo()
    path = made.database if name == "database" else made.chroma_dir / "chroma.sqlite3"
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (x)")
    connection.close()
    found = capacity.run(of(made))
    assert check(found, name).status is Status.FAIL
    assert "no such table" in check(found, name).summary


def test_nothing_there_at_all_fails(tmp_path: Path) -> None:
    settings = load(
        app_dir=tmp_path,
        database_url="sqlite:///nowhere/x.db",
        chroma_dir=str(tmp_path / "nothing"),
    )
    for depth in ("quick", "full"):
        found = capacity.run(settings, depth=depth)
        assert (found.status, found.used_bytes, found.components) == (Status.FAIL, 0, ())
        figures.volume(found)


@pytest.mark.parametrize("name", ["database", "chroma"])
def test_what_may_not_be_read_is_unknown(
    base_demo: Demo, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = capacity.run(of(base_demo), depth="quick")
    denied = dataclasses.replace(found, problems={name: "cannot be opened: Permission denied"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    (judged,) = [c for c in headroom.checks(denied) if c.name == f"capacity.{name}"]
    assert judged.status is Status.UNKNOWN
    assert "user" in judged.hint


def test_no_scratch_space_leaves_the_sizes(
    base_demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CaptureError("scratch space has 0 bytes free", "set TMPDIR")

    monkeypatch.setattr(capacity, "capture", full)
    found = capacity.run(of(base_demo))
    assert check(found, "copy").status is Status.UNKNOWN
    assert found.status is Status.UNKNOWN
    assert component(found, "database").allocated_bytes > 0


def test_an_unknown_depth_is_refused(base_demo: Demo) -> None:
    with pytest.raises(SettingsError):
        capacity.run(of(base_demo), depth="deep")


# What is shown


def test_tables_and_json_carry_units_and_exact_bytes(base_demo: Demo) -> None:
    found = capacity.run(of(base_demo))
    page = found.components_table()._repr_mimebundle_()
    exact = component(found, "database").allocated_bytes
    assert f'title="{exact:,} bytes"' in page["text/html"]
    data = found.to_dict()["data"]
    assert data["used_bytes"] == found.used_bytes
    assert data["components"][0]["allocated_bytes"] == found.components[0].allocated_bytes
    assert "knowledge_notes" in found.tables_table()._repr_mimebundle_()["text/plain"]
    assert "GB" in found.volume_table()._repr_mimebundle_()["text/plain"]
    assert "delete" in found.reclaimable_table()._repr_mimebundle_()["text/plain"]


def test_verify_and_capacity_name_the_same_room(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_dir = demo().app_dir
    found = capacity.run(load(app_dir=app_dir), depth="quick")
    shallow = verify.run(load(app_dir=app_dir), depth="quick")
    seen = next(check for check in shallow.checks if check.name == "access.space")
    assert (seen.value, found.size_bytes) == (found.free_bytes, 5 * GB)
    assert f"of {show.size(5 * GB)!s}" in seen.summary
    full = Space(9 * GB, 9 * GB, 1 << 20)
    monkeypatch.setattr(volume, "space", lambda _: full)
    assert capacity.run(load(app_dir=app_dir), depth="quick").free_bytes == 1 << 20
    worst = next(c for c in verify.run(load(app_dir=app_dir), depth="quick").checks
                 if c.name == "access.space")  # fmt: skip
    assert worst.status is Status.FAIL, "a disk that is fuller has the last word"
