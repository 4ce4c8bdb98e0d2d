"""Verify: the healthy volume is healthy, each fault turns its checks, nothing is written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo

from nescord_ops import chroma, doubt, settings, verify, volume
from nescord_ops.checks import ChecksFailed, Status
from nescord_ops.errors import CaptureError, SettingsError
from nescord_ops.faults import FAULTS
from nescord_ops.snapshot import capture

LOCATION = {"location.volume", "location.database", "location.chroma"}
# What each fault turns, and nothing else.
TURNS: dict[str, dict[str, str]] = {
    "three-slash-url": {"location.url": "fail"},
    "query-string-file": {"location.url": "fail"},
    "wrong-dimension": {"chroma.dimension": "fail", "stores.backlog": "warn"},
    "lost-vectors": {
        "chroma.index": "fail",
        "chroma.vectors": "fail",
        "chroma.sequence": "fail",
        "chroma.roundtrip": "fail",
        "chroma.search": "unknown",
    },
    "torn-copy": {
        "chroma.vectors": "fail",
        "chroma.roundtrip": "fail",
        "chroma.search": "unknown",
    },
    "truncated-pickle": {
        "chroma.index": "fail",
        "chroma.vectors": "unknown",
        "chroma.roundtrip": "fail",
        "chroma.search": "unknown",
    },
    "stale-vector": {"stores.stale": "warn"},
    "leaked-deletion": {"stores.deleted": "warn"},
    "orphan-segment": {"chroma.orphans": "warn"},
    "sparse-bloat": {"chroma.bloat": "warn"},
    "corrupt-page": {"database.integrity": "fail"},
    "orphan-sync-row": {"stores.sync": "warn"},
    "no-write-permission": {"access.volume": "fail", "access.chroma": "fail"},
    "no-fts": {"database.search": "warn"},
    "large-wal": {"database.wal": "warn"},
    "old-backups-only": {"backups.age": "fail"},
}


def run(app_dir: Path, depth: str = "full", **options: Any) -> verify.Verification:
    return verify.run(settings.load(app_dir=app_dir), depth=depth, **options)


def turned(result: verify.Verification) -> dict[str, str]:
    """The checks that are neither ok nor an expected unknown."""
    return {c.name: c.status.value for c in result.checks if c.status != "ok" and not c.expected}


def listing(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Every entry with its size, mtime, mode and content."""
    return {
        str(path): (
            seen.st_size,
            seen.st_mtime_ns if stat.S_ISREG(seen.st_mode) else 0,
            seen.st_mode,
            path.read_bytes() if stat.S_ISREG(seen.st_mode) else b"",
        )
        for path, seen in volume.walk(root)
        if seen
    }


def test_the_healthy_demo_turns_no_check(demo: MakeDemo) -> None:
    result = run(demo().app_dir)
    assert turned(result) == {}
    assert {c.name for c in result.checks if c.expected} == LOCATION
    assert result.status is Status.OK
    assert result.headline.startswith("Your data is safe on this machine. 3 ")
    assert set(verify.DEEP) <= {c.name for c in result.checks}


def test_every_fault_has_its_expectation() -> None:
    assert set(TURNS) == set(FAULTS)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_fault_turns_exactly_its_checks(
    fault: str, demo: MakeDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo(fault)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    result = run(made.app_dir)
    assert turned(result) == TURNS[fault]
    assert all(c.hint for c in result.checks if c.status in ("fail", "warn"))
    names = [check.name for check in result.checks]
    assert len(names) == len(set(names))
    assert set(verify.DEEP) <= set(names)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_nothing_on_the_volume_changes(depth: str, demo: MakeDemo) -> None:
    app = demo().app_dir
    before = listing(app)
    run(app, depth)
    assert listing(app) == before


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_beside_a_killed_bot_only_sqlites_own_shm_changes(depth: str, demo: MakeDemo) -> None:
    made = demo("large-wal")
    before = listing(made.app_dir)
    run(made.app_dir, depth)
    after = listing(made.app_dir)
    shm = f"{made.database}-shm"
    before.pop(shm, None)
    after.pop(shm, None)
    assert after == before


def test_quick_imports_no_heavy_library_and_lists_what_it_did_not_look_at(
    demo: MakeDemo,
) -> None:
    code = """
        import json, sys
        from nescord_ops import settings, verify
        result = verify.run(settings.load(app_dir=sys.argv[1]), depth="quick")
        heavy = {"chromadb", "pandas", "matplotlib", "numpy", "papermill"} & set(sys.modules)
        unlooked = [c.name for c in result.checks if c.expected]
        print(json.dumps([sorted(heavy), unlooked, result.status]))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(demo().app_dir)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    heavy, unlooked, status = json.loads(done.stdout)
    assert heavy == []
    assert set(verify.DEEP) <= set(unlooked)
    assert status == "ok"


def test_quick_never_says_healthy(demo: MakeDemo) -> None:
    result = run(demo("lost-vectors").app_dir, "quick")
    assert result.headline.startswith("Nothing wrong in what was looked at. 27 not checked,")


def test_a_verdict_of_unknown_says_why(demo: MakeDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    result = run(demo().app_dir)
    assert result.status is Status.UNKNOWN
    assert "scratch" in result.headline


def test_an_unknown_depth_is_refused(demo: MakeDemo) -> None:
    with pytest.raises(SettingsError, match="depth"):
        run(demo().app_dir, "deep")


def test_raising_is_explicit_and_carries_the_first_hint(demo: MakeDemo) -> None:
    result = run(demo("three-slash-url").app_dir, "quick")
    with pytest.raises(ChecksFailed, match=r"location\.url") as caught:
        result.raise_for_status()
    assert caught.value.exit_code == 1
    assert "four slashes" in caught.value.hint


# --- on Railway -------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A bot's directory with a real file system mounted at its data/, as Railway does."""
    data = tmp_path / "app" / "data"
    data.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", data], check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield data.parent
    subprocess.run(["umount", data], check=True)


def fill(app: Path, base: Path) -> None:
    """Put a healthy volume's data onto the mounted one."""
    shutil.copytree(base, app, dirs_exist_ok=True)


def railway(app: Path, monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    monkeypatch.setenv("RAILWAY_VOLUME_NAME", "data")
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", str(app / "data"))
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_on_a_mounted_volume_the_locations_are_ok(
    mounted: Path, demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mounted, demo(directory=mounted.parent / "source").app_dir)
    railway(mounted, monkeypatch)
    result = run(mounted)
    assert turned(result) == {}
    assert all(c.status == "ok" for c in result.checks if c.name in LOCATION)


def test_the_guide_followed_to_the_letter_is_judged_as_the_facts_say(
    mounted: Path, demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Database off the volume, query string in its name, collection poisoned at 384."""
    source = demo("wrong-dimension", directory=mounted.parent / "source").app_dir
    shutil.copytree(source / "data" / "chromadb", mounted / "data" / "chromadb")
    name = "nescordbot.db?timeout=20&journal_mode=WAL"
    (mounted / "app" / "data").mkdir(parents=True)
    shutil.copy(source / "data" / "nescordbot.db", mounted / "app" / "data" / name)
    url = f"sqlite:///app/data/{name}"
    chroma = str(mounted / "data" / "chromadb")
    railway(mounted, monkeypatch, DATABASE_URL=url, CHROMADB_PERSIST_DIRECTORY=chroma)
    result = run(mounted)
    seen = turned(result)
    assert seen["location.url"] == "fail"
    assert seen["location.database"] == "fail"
    assert seen["chroma.dimension"] == "fail"
    assert "location.chroma" not in seen
    url_check = next(c for c in result.checks if c.name == "location.url")
    assert name in url_check.summary
    assert str(mounted / "data" / "nescordbot.db") in url_check.summary


def test_a_mount_path_with_nothing_mounted_fails(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = demo().app_dir
    railway(app, monkeypatch)
    seen = turned(run(app, "quick"))
    assert seen["location.volume"] == "fail"


def test_a_database_linked_out_of_the_volume_is_found_where_it_really_is(
    mounted: Path, demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mounted, demo(directory=mounted.parent / "source").app_dir)
    outside = mounted / "elsewhere.db"
    shutil.move(mounted / "data" / "nescordbot.db", outside)
    (mounted / "data" / "nescordbot.db").symlink_to(outside)
    railway(mounted, monkeypatch)
    seen = turned(run(mounted, "quick"))
    assert seen["location.database"] == "fail"


def test_a_full_volume_fails_and_a_probe_leaves_nothing(
    mounted: Path, demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mounted, demo(directory=mounted.parent / "source").app_dir)
    with pytest.raises(OSError, match="No space"):
        (mounted / "data" / "filler").write_bytes(bytes(400 << 20))
    railway(mounted, monkeypatch)
    seen = turned(run(mounted))
    assert seen["access.space"] == "fail"
    assert seen["access.volume_write"] == "fail"
    assert not list((mounted / "data").glob(".nescord-ops-*"))


def test_a_read_only_volume_is_still_verified(mounted: Path, demo: MakeDemo) -> None:
    fill(mounted, demo(directory=mounted.parent / "source").app_dir)
    subprocess.run(["mount", "-o", "remount,ro", mounted / "data"], check=True)
    seen = turned(run(mounted))
    seen.pop("access.space", "")  # the small disk leaves little of the 5 GB that the sample names
    assert set(seen) == {"access.volume_write", "access.chroma_write"}


# --- bad input --------------------------------------------------------------------------------


def test_without_any_store_everything_that_is_missing_fails(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=sqlite:///data/x.db\n")
    seen = turned(run(tmp_path))
    assert seen["access.database"] == seen["access.volume"] == seen["access.chroma"] == "fail"
    assert seen["database.integrity"] == seen["chroma.integrity"] == "fail"


def test_a_store_that_was_not_copied_is_no_reason_to_read_the_other_again(demo: MakeDemo) -> None:
    made = demo()
    shutil.rmtree(made.chroma_dir)
    found = settings.load(app_dir=made.app_dir)
    with capture(found) as copy:
        seen = verify.examine(copy, found)
        assert {c.name for c in seen if c.status is Status.FAIL} == {"chroma.integrity"}
        assert doubt.suspects(seen, copy) == set()


def test_what_sqlite_cannot_read_is_looked_at_again_as_what_it_calls_damaged(
    demo: MakeDemo,
) -> None:
    made = demo()
    with capture(settings.load(app_dir=made.app_dir)) as copy:
        assert copy.database
        os.truncate(copy.database, 8192)
        with contextlib.closing(sqlite3.connect(copy.database)) as db:
            seen = doubt.guarded(
                "database.integrity", lambda: db.execute("SELECT * FROM knowledge_notes")
            )
        assert seen[0].status is Status.UNKNOWN
        assert doubt.suspects(seen, copy) == {"database.integrity"}


def test_an_id_map_that_the_machine_does_not_give_is_no_damage_and_no_proof(demo: MakeDemo) -> None:
    found = settings.load(app_dir=demo().app_dir)
    with capture(found) as copy:
        assert copy.chroma
        (directory,) = chroma.segment_directories(copy.chroma)
        (directory / chroma.PICKLE).symlink_to("/proc/self/mem")  # which gives EIO
        seen = verify.examine(copy, found)
        (kept,) = [check for check in seen if check.status.exit_code]
        assert kept.status is Status.UNKNOWN
        assert "Input/output error" in kept.summary
        assert doubt.unread(seen) == kept
        with pytest.raises(CaptureError, match="Input/output error"):
            verify.glance(copy, found)


def swap_database(app: Path, content: bytes) -> None:
    (app / "data" / "nescordbot.db").write_bytes(content)


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\0", b"not a database at all" * 100], ids=len
)
def test_a_file_that_is_no_database_fails(content: bytes, demo: MakeDemo) -> None:
    app = demo().app_dir
    swap_database(app, content)
    seen = turned(run(app))
    assert seen["database.file"] == seen["database.integrity"] == "fail"
    assert "chroma.integrity" not in seen, "Chroma's own checks are not touched by it"


def test_a_damaged_schema_is_the_databases_and_not_chromas(demo: MakeDemo) -> None:
    made = demo()
    with contextlib.closing(sqlite3.connect(made.database)) as bot, bot:
        bot.execute("PRAGMA writable_schema=ON")
        bot.execute("UPDATE sqlite_schema SET name = 5 WHERE name = 'note_links'")
    seen = turned(run(made.app_dir))
    assert seen["database.integrity"] == "fail"
    assert seen["chroma.collection"] == "unknown"


def test_a_truncated_database_fails(demo: MakeDemo) -> None:
    made = demo()
    os.truncate(made.database, made.database.stat().st_size // 2)
    seen = turned(run(made.app_dir))
    assert seen["database.file"] == "fail"


def test_a_database_without_the_bots_tables_fails(demo: MakeDemo) -> None:
    made = demo()
    made.database.unlink()
    with sqlite3.connect(made.database) as connection:
        connection.execute("CREATE TABLE other(x)")
    seen = turned(run(made.app_dir))
    assert seen["database.schema"] == "fail"
    assert {seen[name] for name in seen if name.startswith("stores.")} == {"unknown"}


def test_a_migration_that_is_not_recorded_is_not_said_to_be(demo: MakeDemo) -> None:
    made = demo("no-fts")
    with sqlite3.connect(made.database) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = 5")
    found = verify.run(settings.load(app_dir=made.app_dir), depth="quick")
    (search,) = [check for check in found.checks if check.name == "database.search"]
    assert "is not recorded" in search.summary
    assert search.hint.startswith("start the bot once")


def test_a_directory_where_the_database_should_be_fails(demo: MakeDemo) -> None:
    made = demo()
    made.database.unlink()
    made.database.mkdir()
    assert turned(run(made.app_dir))["access.database"] == "fail"


def test_a_file_where_chroma_should_be_fails(demo: MakeDemo) -> None:
    made = demo()
    shutil.rmtree(made.chroma_dir)
    made.chroma_dir.write_text("")
    assert turned(run(made.app_dir))["access.chroma"] == "fail"


def test_an_empty_chroma_directory_and_a_foreign_one_fail(demo: MakeDemo) -> None:
    made = demo()
    shutil.rmtree(made.chroma_dir)
    made.chroma_dir.mkdir()
    assert turned(run(made.app_dir))["chroma.file"] == "fail"
    with sqlite3.connect(made.chroma_dir / "chroma.sqlite3") as connection:
        connection.execute("CREATE TABLE other(x)")
    assert turned(run(made.app_dir))["chroma.integrity"] == "fail"


def test_another_collection_name_fails(demo: MakeDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMADB_COLLECTION_NAME", "other")
    result = run(demo().app_dir)
    assert turned(result)["chroma.collection"] == "fail"


def test_hostile_names_are_shown_and_not_obeyed(demo: MakeDemo) -> None:
    made = demo()
    with sqlite3.connect(made.database) as connection:
        connection.execute("CREATE TABLE [<img src=x onerror=alert(1)>](x)")
    weird = os.fsencode(made.chroma_dir) + b"/\xff\xfe{brace}"
    Path(os.fsdecode(weird)).write_bytes(b"x")
    result = run(made.app_dir)
    assert turned(result) == {}
    html = result.tables_by_size().html
    assert "<img" not in html
    json.dumps(result.to_dict()).encode("utf-8")


def test_a_hostile_pickle_is_refused_and_does_not_run(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo("truncated-pickle")
    (pickle,) = made.chroma_dir.glob("*/index_metadata.pickle")
    canary = tmp_path / "canary"
    pickle.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(canary))
    result = run(made.app_dir)
    assert turned(result)["chroma.index"] == "fail"
    assert not canary.exists()


def test_a_note_younger_than_ten_minutes_is_no_backlog_yet(demo: MakeDemo) -> None:
    made = demo()
    now = datetime.now(UTC)
    with sqlite3.connect(made.database) as connection:
        for minutes in (2, 20):
            when = f"{now - timedelta(minutes=minutes):%Y-%m-%d %H:%M:%S}"
            connection.execute(
                "INSERT INTO knowledge_notes"
                "(id, title, content, user_id, source_type, created_at, updated_at)"
                " VALUES (?, 't', 'c', 'u', 'manual', ?, ?)",
                (f"note-{minutes}", when, when),
            )
    result = run(made.app_dir)
    backlog = next(c for c in result.checks if c.name == "stores.backlog")
    assert (backlog.status, backlog.value) == ("warn", 1)


def test_without_root_the_modes_are_what_counts(demo: MakeDemo) -> None:
    """A root without the right to override permissions sees what a plain user sees."""
    made = demo("no-write-permission")
    (made.app_dir / made.app_dir.name).mkdir(mode=0)
    code = (
        "import sys, json; from nescord_ops import settings, verify;"
        "r = verify.run(settings.load(app_dir=sys.argv[1]), depth='quick');"
        "print(json.dumps({c.name: c.status for c in r.checks if c.status != 'ok'}))"
    )
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set", "-dac_override,-dac_read_search"),
            *(sys.executable, "-c", code, str(made.app_dir)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["access.volume_write"] == seen["access.chroma_write"] == "fail"
    assert seen["location.strays"] == "unknown", "where nobody may look there may be one"


def test_a_volume_that_may_not_be_searched_is_a_cause_with_a_fix(demo: MakeDemo) -> None:
    made = demo()
    made.database.parent.chmod(0o600)
    plain = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", sys.executable)
    for command, failed in (("verify", "access.volume"), ("troubleshoot", "cause.no-permission")):
        words = ("-m", "nescord_ops", "--json", "--app-dir", str(made.app_dir), command)
        done = subprocess.run([*plain, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        seen = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
        assert seen[failed] == "fail"
        assert "database.integrity" not in seen or seen["database.integrity"] == "unknown"
    assert "chmod u+rwx" in done.stdout


def test_a_copy_that_cannot_be_examined_has_each_check_once(demo: MakeDemo) -> None:
    code = (
        "import json, resource, sys; from nescord_ops import settings, verify;"
        "found = settings.load(app_dir=sys.argv[1]);"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), -1));"
        "print(json.dumps([(c.name, c.status) for c in verify.run(found).checks]))"
    )
    command = [sys.executable, "-c", code, str(demo().app_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert dict(seen)["capture.moment"] == "unknown"
    assert len(seen) == len(dict(seen))


def test_findings_travel_as_the_documented_json(demo: MakeDemo) -> None:
    document = run(demo().app_dir, "quick").to_dict()
    assert set(document) == {
        *("schema_version", "name", "status", "generated_at", "tool_version"),
        *("settings", "checks", "data"),
    }
    assert {key for check in document["checks"] for key in check} == {
        f.name for f in dataclasses.fields(verify.Check)
    }
    json.dumps(document)


def test_verify_holds_while_a_writer_works(demo: MakeDemo) -> None:
    """Notes are written at full speed; the copy is whole, and the writer sees no error."""
    made = demo()
    stop = threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        with sqlite3.connect(made.database, timeout=5) as connection:
            while not stop.is_set():
                try:
                    connection.execute("UPDATE kv_store SET updated_at = datetime('now')")
                    connection.commit()
                except sqlite3.Error as error:
                    errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = turned(run(made.app_dir))
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert set(seen) <= {"database.wal"}


def test_a_store_that_a_newer_chromadb_wrote_is_not_called_damaged(demo: MakeDemo) -> None:
    made = demo()
    found = settings.load(app_dir=made.app_dir)
    with contextlib.closing(sqlite3.connect(found.chroma_dir / "chroma.sqlite3")) as db:
        row = ("sysdb", 11, "00011-of-tomorrow.sqlite.sql", "", "")
        db.execute("INSERT INTO migrations VALUES (?, ?, ?, ?, ?)", row)
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(collections)")]
        column = "schema_str" if "schema_str" in columns else "config_json_str"
        db.execute(f"ALTER TABLE collections RENAME COLUMN {column} TO of_tomorrow")
        db.commit()
    result = run(made.app_dir)
    assert result.status is Status.UNKNOWN
    check = next(c for c in result.checks if c.name == "chroma.roundtrip")
    assert "newer chromadb wrote the store" in check.summary
    assert "pip install" in check.hint
