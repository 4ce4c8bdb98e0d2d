"""Clean: what is in vain goes and gives its bytes back, and nothing living is ever lost."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo
from test_restore import HOLD_FILE, HOLD_WAL, Tree, holding, in_child, live, tiny, tree, write

from nescord_ops import backup, capacity, clean, cli, places, rebuild, swap, verify
from nescord_ops.checks import Check, Status, fail
from nescord_ops.demo import Demo
from nescord_ops.errors import (
    BackupError,
    CaptureError,
    ChecksFailed,
    OpsError,
    SettingsError,
    VolumeError,
)
from nescord_ops.faults import FAULTS as PLANTS
from nescord_ops.settings import Settings, load
from nescord_ops.store import Damage

__all__ = ["tiny"]
FAULTS = ("leaked-deletion", "orphan-segment", "orphan-sync-row")
FOREIGN = "0b0a0908-0706-4504-8302-010f0e0d0c0b"
READ = """
import json, sys, chromadb
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
collection = client.get_collection("nescord_knowledge", embedding_function=None)
held = collection.get(include=["documents", "metadatas", "embeddings"])
rows = zip(held["ids"], held["documents"], held["metadatas"], held["embeddings"])
found = {i: [d, m, [float(x) for x in v]] for i, d, m, v in rows}
near = collection.query(query_embeddings=held["embeddings"][:1], n_results=len(found))
print(json.dumps({"records": found, "searched": near["ids"][0]}))
"""
QUEUE_TABLE = (
    "CREATE TABLE obsidian_file_queue (id INTEGER PRIMARY KEY AUTOINCREMENT, status TEXT,"
    " file_request_json TEXT NOT NULL)"
)


@pytest.fixture(scope="module")
def base_faulty(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    app = shutil.copytree(base_demo.app_dir, tmp_path_factory.mktemp("faulty") / "app")
    for name in FAULTS:
        PLANTS[name].plant(dataclasses.replace(base_demo, app_dir=app))
    return app


@pytest.fixture
def faulty(base_faulty: Path, tmp_path: Path) -> Settings:
    return load(app_dir=shutil.copytree(base_faulty, tmp_path / "app"))


@pytest.fixture
def healthy(demo: MakeDemo) -> Settings:
    return load(app_dir=demo().app_dir)


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the backup as given: it takes half of a clean-up's time."""
    monkeypatch.setattr(clean, "_proven_backup", lambda _: "a backup")


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as db:
        return db.execute(sql).fetchall()


def read(settings: Settings, scratch: Path) -> dict[str, Any]:
    """Every record as a client of its own reads it from a copy, and what a search finds."""
    copy = shutil.copytree(settings.chroma_dir, scratch / f"read-{random.random()}")
    command = [sys.executable, "-W", "ignore", "-c", READ, copy]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def by_name(result: clean.Cleaning | verify.Verification) -> dict[str, Check]:
    return {check.name: check for check in result.checks}


def refused(settings: Settings, match: str, *what: str, error: type = VolumeError) -> OpsError:
    """Clean, see it refused, and see that the live data is as it was."""
    before = live(settings)
    with pytest.raises(error, match=match) as caught:
        clean.run(settings, what, apply=True)
    assert live(settings) == before
    assert not [*settings.database.parent.glob(f"{swap.HIDDEN}*")]
    assert not [*settings.database.parent.glob("replaced_*")]
    assert isinstance(caught.value, OpsError)
    return caught.value


def mtimes(root: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*")}


def free_pages(path: Path) -> None:
    write(path, "CREATE TABLE blob(b)")
    write(path, "INSERT INTO blob VALUES (zeroblob(400000))")
    write(path, "DROP TABLE blob")


def persisted_without_purge(found: Settings) -> None:
    """Have Chroma persist its index and keep its queue, as a store of an older version does."""
    off = "config_json_str = replace(config_json_str, 'true', 'false')"
    write(found.chroma_dir / "chroma.sqlite3", f"UPDATE embeddings_queue_config SET {off}")
    command = [sys.executable, "-m", "nescord_ops.chroma_build", found.chroma_dir, "persist", "0"]
    subprocess.run(command, check=True)


def residue(found: Settings) -> None:
    """Leave the document of the bot's own check in Chroma, in the place of a note that goes."""
    sql = "SELECT id FROM knowledge_notes WHERE id NOT IN (SELECT note_id FROM note_history)"
    ((note,),) = rows(found.database, f"{sql} ORDER BY rowid LIMIT 1")
    for table, column in (("knowledge_notes", "id"), ("sync_metadata", "note_id")):
        write(found.database, f"DELETE FROM {table} WHERE {column} = '{note}'")
    for table, column in (("embeddings", "embedding_id"), ("embeddings_queue", "id")):
        change = f"UPDATE {table} SET {column} = 'persistence_test_doc'"
        write(found.chroma_dir / "chroma.sqlite3", f"{change} WHERE {column} = 'note_{note}'")


def test_a_dry_run_promises_what_capacity_measures_and_writes_nothing(faulty: Settings) -> None:
    free_pages(faulty.database)
    free_pages(faulty.chroma_dir / "chroma.sqlite3")
    measured = capacity.run(faulty)
    held, times = tree(faulty.app_dir), mtimes(faulty.app_dir)
    result = clean.run(faulty)
    assert (tree(faulty.app_dir), mtimes(faulty.app_dir)) == (held, times)
    items = {item.what: item for item in result.items}
    assert items["pages"].gives_bytes == measured.bytes_of("database_free", "chroma_free")
    assert items["segments"].gives_bytes == measured.bytes_of("chroma_orphans") > 0
    assert {what for what, item in items.items() if item.count} == {
        *("segments", "pages", "deletions", "sync")
    }
    assert result.promised_bytes == sum(item.gives_bytes for item in result.items) > 1_100_000
    assert result.usd_per_month == pytest.approx(result.promised_bytes / 1e9 * 0.25)
    assert "Nothing was done" in result.headline
    assert result.status is Status.WARN
    checks = by_name(verify.run(faulty))
    assert "nescord-ops clean deletions" in checks["stores.deleted"].hint
    assert "nescord-ops clean segments" in checks["chroma.orphans"].hint


def test_everything_in_vain_goes_and_every_living_note_and_vector_stays(
    demo: MakeDemo, tmp_path: Path
) -> None:
    found = load(app_dir=demo(*FAULTS, "stale-vector").app_dir)
    write(found.database, QUEUE_TABLE)
    for status in ("completed", "completed", "failed", "pending"):
        sql = "INSERT INTO obsidian_file_queue(status, file_request_json)"
        write(found.database, f"{sql} VALUES ('{status}', '{{}}')")
    free_pages(found.database)
    free_pages(found.chroma_dir / "chroma.sqlite3")
    latest = "SELECT note_id FROM note_history ORDER BY timestamp DESC LIMIT 1"
    stale = f"note_{rows(found.database, latest)[0][0]}"
    residue(found)
    persisted_without_purge(found)
    tables = [
        name
        for (name,) in rows(found.database, "SELECT name FROM sqlite_schema WHERE type = 'table'")
        if "_fts" not in name
    ]
    notes = {name: rows(found.database, f"SELECT rowid, * FROM {name}") for name in tables}
    before = read(found, tmp_path)
    old = live(found)
    words = [word for word in clean.WORDS if word not in ("strays", "backups")]
    queue = "SELECT max(seq_id), count(*) FROM embeddings_queue"
    ((newest, length),) = rows(found.chroma_dir / "chroma.sqlite3", queue)
    assert length >= 1000

    result = clean.run(found, words, apply=True)

    assert {check.name: check.summary for check in result.checks if check.status.exit_code} == {}
    assert result.given_bytes >= result.promised_bytes > 3_000_000
    after = read(found, tmp_path)
    gone = before["records"].keys() - after["records"].keys()
    living = {f"note_{note}" for _, note, *_ in notes["knowledge_notes"]}
    assert gone == {stale} | (before["records"].keys() - living)
    assert len(gone) == 3
    assert "persistence_test_doc" in gone
    assert after["records"] == {i: r for i, r in before["records"].items() if i not in gone}
    assert not gone & {*after["searched"]}
    ((latest_write, length),) = rows(found.chroma_dir / "chroma.sqlite3", queue)
    assert (latest_write, length) == (newest + len(gone), len(gone) + 1)
    left = {name: rows(found.database, f"SELECT rowid, * FROM {name}") for name in tables}
    changed = {name for name in tables if left[name] != notes[name]}
    assert changed == {"sync_metadata", "obsidian_file_queue"}
    assert [status for _, _, status, _ in left["obsidian_file_queue"]] == ["failed", "pending"]
    pending = "SELECT note_id FROM sync_metadata WHERE sync_status = 'pending'"
    assert rows(found.database, pending) == [(stale.removeprefix("note_"),)]
    assert len(left["sync_metadata"]) == len(notes["sync_metadata"]) - 1

    checks = by_name(verify.run(found))
    between = ("deleted", "residue", "sync", "stale", "lost")
    healed = ("chroma.orphans", "chroma.roundtrip", *(f"stores.{name}" for name in between))
    assert {checks[name].status for name in healed} == {Status.OK}
    assert checks["database.journal"].status is Status.OK
    assert tree(result.kept[0]) == old
    assert result.kept_bytes > 5_000_000
    assert backup.find(found, result.backup_id).proven_at
    again = clean.run(found, words, apply=True)
    assert not any(item.count for item in again.items)
    assert again.backup_id == ""
    subprocess.run(result.remove_command, shell=True, check=True)
    assert not result.kept[0].exists()


def test_only_what_chroma_itself_would_purge_counts_as_applied(healthy: Settings) -> None:
    file = healthy.chroma_dir / "chroma.sqlite3"

    def applied() -> object:
        return by_name(clean.run(healthy, ["queue"]))["clean.queue"].value

    assert applied() == 0  # nothing was persisted yet
    vector = "SELECT id, {} FROM segments WHERE scope = 'VECTOR'"
    write(file, f"INSERT INTO max_seq_id {vector.format(200)}")
    assert applied() == 199
    write(file, "UPDATE max_seq_id SET seq_id = 300")
    assert applied() == 299
    write(file, "UPDATE max_seq_id SET seq_id = 9000")
    assert applied() == 299  # the newest stays: Chroma counts on from it
    write(file, "UPDATE max_seq_id SET seq_id = x'00000000000000c8' WHERE rowid = 1")
    assert applied() == 0


@pytest.mark.parametrize(
    ("name", "code"), [("nescordbot.db", HOLD_WAL), ("chromadb/chroma.sqlite3", HOLD_FILE)]
)
def test_a_bot_that_runs_is_refused_and_named(faulty: Settings, name: str, code: str) -> None:
    with (
        holding(faulty.database.parent / name, code) as pid,
        pytest.raises(VolumeError, match=f"process {pid}"),
    ):
        clean.run(faulty, apply=True)
    with swap.alone(faulty):
        refused(faulty, "another restore or clean-up is at work")


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize("ends", [False, True])
def test_a_bot_that_starts_in_the_middle_keeps_what_it_writes(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    with contextlib.ExitStack() as stack:

        def start(*_: object) -> list[Check]:
            write(faulty.database, "INSERT INTO kv_store(key, value) VALUES ('late', 'x')")
            if not ends:
                stack.enter_context(holding(faulty.database, HOLD_FILE))
            return []

        monkeypatch.setattr(rebuild, "rebuild", start)
        with pytest.raises(VolumeError, match="has changed meanwhile" if ends else r"process \d+"):
            clean.run(faulty, ["sync"], apply=True)
    assert rows(faulty.database, "SELECT 1 FROM kv_store WHERE key = 'late'")


def test_no_backup_that_restores_no_clean_up(
    faulty: Settings, demo: MakeDemo, tmp_path: Path
) -> None:
    broken = load(app_dir=demo("corrupt-page", directory=tmp_path / "broken").app_dir)
    free_pages(broken.chroma_dir / "chroma.sqlite3")
    refused(broken, "no proven backup .*database.integrity", "pages", error=BackupError)
    shutil.rmtree(faulty.chroma_dir)
    refused(faulty, "not both stores can be read", error=CaptureError)


@pytest.mark.usefixtures("unproven")
@pytest.mark.usefixtures("unproven")
def test_what_became_of_an_interrupted_restore_is_told_though_the_clean_up_fails(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps = swap.plan(swap.live(faulty), datetime.now(UTC))
    swap.declare(faulty, swaps, "restore of a backup")
    monkeypatch.setattr(clean, "MARGIN_BYTES", 1 << 60)
    refused(faulty, "restore of a backup was completed; .* Then: .* the copy takes", "segments")


def test_deletions_are_refused_where_the_notes_may_lie_in_another_database(
    faulty: Settings,
) -> None:
    shutil.copy(faulty.database, faulty.database.with_name("nescordbot.db?timeout=20"))
    said = str(refused(faulty, "timeout=20", "deletions"))
    assert "1 record without a note here: do the notes lie in" in said
    faulty.database.with_name("nescordbot.db?timeout=20").unlink()
    write(faulty.database, "DELETE FROM knowledge_notes")
    assert "DATABASE_URL" in refused(faulty, "300 of 300 records without a note").hint
    assert by_name(clean.run(faulty))["clean.deletions"].status is Status.FAIL


@pytest.mark.usefixtures("unproven")
def test_a_trigger_that_takes_other_rows_along_is_noticed(faulty: Settings) -> None:
    write(
        faulty.database,
        "CREATE TRIGGER evil AFTER DELETE ON sync_metadata BEGIN DELETE FROM token_usage; END",
    )
    refused(faulty, r"differs in .*token_usage.*untouched", "sync")


@pytest.mark.usefixtures("unproven")
def test_a_vector_that_is_lost_or_changed_is_noticed(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rebuild.edit

    def careless(swaps: Any, found: Any) -> Any:
        (chroma,) = [each.staged / "chroma.sqlite3" for each in swaps if each.name == "chroma"]
        write(
            chroma, "UPDATE embeddings_queue SET vector = zeroblob(length(vector)) WHERE seq_id = 7"
        )
        return real(swaps, found)

    monkeypatch.setattr(rebuild, "edit", careless)
    refused(faulty, "299 records that stay would not be as they were", "deletions")


@pytest.mark.usefixtures("unproven")
def test_a_copy_that_verify_likes_less_is_thrown_away(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify.examine

    def stricter(snapshot: Any, settings: Settings, **options: Any) -> tuple[Check, ...]:
        staged = "restore" in str(snapshot.database)
        return (
            (*real(snapshot, settings, **options), fail("new", "bad", "look"))
            if staged
            else real(snapshot, settings, **options)
        )

    monkeypatch.setattr(verify, "examine", stricter)
    refused(faulty, "verify would be worse: new: bad", "sync", error=ChecksFailed)


@pytest.mark.usefixtures("unproven")
def test_the_old_state_is_put_back_when_verify_is_worse_for_it(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = live(faulty)
    real = verify.run

    def worse(settings: Settings, **options: Any) -> verify.Verification:
        seen = real(settings, **options)
        swapped = any(settings.database.parent.glob("replaced_*"))
        return (
            dataclasses.replace(seen, checks=(*seen.checks, fail("new", "bad", "look")))
            if swapped
            else seen
        )

    monkeypatch.setattr(verify, "run", worse)
    with pytest.raises(ChecksFailed, match="the old state was put back: new: bad") as caught:
        clean.run(faulty, ["segments", "sync"], apply=True, discard=True)
    assert caught.value.exit_code == 1
    assert live(faulty) == old
    kept = sorted(faulty.database.parent.glob("replaced_*"))
    assert tree(kept[0]) == old
    assert f"rm -r -- {kept[0]} {kept[1]}" in caught.value.hint


@pytest.mark.usefixtures("unproven")
def test_an_interrupt_at_the_last_line_before_the_swap_undoes_everything(faulty: Settings) -> None:
    def interrupt(text: str) -> None:
        if text == "swapping":
            raise KeyboardInterrupt

    old = live(faulty)
    with pytest.raises(KeyboardInterrupt):
        clean.run(faulty, ["sync"], apply=True, progress=interrupt)
    assert live(faulty) == old
    assert not list(faulty.database.parent.glob(".*"))


@pytest.mark.usefixtures("unproven")
def test_an_old_state_that_cannot_be_put_back_is_named_with_the_way_to_it(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, stage, real = live(faulty), rebuild.stage, verify.run

    def swapped() -> bool:
        return any(faulty.database.parent.glob("replaced_*"))

    def worse(settings: Settings, **options: Any) -> verify.Verification:
        seen = real(settings, **options)
        more = (fail("new", "bad", "look"),) if swapped() else ()
        return dataclasses.replace(seen, checks=(*seen.checks, *more))

    def full(*arguments: Any) -> None:
        if swapped():
            raise OSError(errno.ENOSPC, "No space left on device")
        stage(*arguments)

    monkeypatch.setattr(verify, "run", worse)
    monkeypatch.setattr(rebuild, "stage", full)
    with pytest.raises(ChecksFailed, match=r"new: bad\. .*not be put back: .*No space") as caught:
        clean.run(faulty, ["segments", "sync"], apply=True)
    (kept,) = faulty.database.parent.glob("replaced_*")
    assert f"it lies in {kept}" in str(caught.value)
    assert "nescord-ops restore a backup" in caught.value.hint
    assert tree(kept) == old


def test_only_what_was_meant_to_rise_may_rise() -> None:
    def count(name: str, value: int) -> Check:
        return Check(name, Status.WARN if value else Status.OK, "", value=value, limit=0)

    was = [count("stores.backlog", 1), count("stores.lost", 2)]
    assert [
        *rebuild.regressions(was, [count("stores.backlog", 3), count("stores.lost", 2)], backlog=2)
    ] == []
    assert [*rebuild.regressions(was, [count("stores.backlog", 4)], backlog=2)]
    assert [*rebuild.regressions(was, [count("stores.lost", 3)])]
    assert [*rebuild.regressions([], [fail("x", "", "")])]


@pytest.mark.usefixtures("unproven")
def test_links_and_foreign_files_are_neither_followed_nor_lost(
    faulty: Settings, tmp_path: Path
) -> None:
    root, outside = faulty.chroma_dir, tmp_path / "outside"
    outside.mkdir()
    (outside / "header.bin").write_text("mine")
    (root / FOREIGN).symlink_to(outside)
    (root / "README").write_text("foreign")
    (root / "README").chmod(0o604)
    mine = root / "0a0a0a0a-0a0a-4a0a-8a0a-0a0a0a0a0a0a"
    mine.mkdir()
    (mine / "photo.jpg").write_text("not an index")
    (root / ("0" * 32)).mkdir()
    result = clean.run(faulty, ["segments"], apply=True)
    assert {item.count for item in result.items if item.what == "segments"} == {1}
    assert (root / FOREIGN).readlink() == outside
    assert (outside / "header.bin").read_text() == "mine"
    assert (root / "README").stat().st_mode & 0o777 == 0o604
    assert (root / "README").stat().st_mtime == (result.kept[0] / "chromadb/README").stat().st_mtime
    assert {"photo.jpg"} == {path.name for path in mine.iterdir()}
    assert (root / ("0" * 32)).is_dir()
    assert root.stat().st_mode & 0o777 == 0o750
    os.mkfifo(root / "pipe")
    free_pages(root / "chroma.sqlite3")
    refused_with_fifo = pytest.raises(VolumeError, match="pipe can be neither read nor copied")
    with refused_with_fifo:
        clean.run(faulty, ["pages"], apply=True)


@pytest.mark.usefixtures("unproven")
def test_a_chromadb_that_would_migrate_the_bots_store_is_refused(faulty: Settings) -> None:
    file = faulty.chroma_dir / "chroma.sqlite3"
    write(file, "DROP TABLE embedding_metadata_array")
    write(file, "DELETE FROM migrations WHERE dir = 'metadb' AND version = 6")
    assert "beside the bot" in refused(faulty, "newer than the bot's", "deletions").hint


@pytest.mark.usefixtures("unproven")
def test_the_database_in_use_is_no_stray_whatever_way_leads_to_it(healthy: Settings) -> None:
    app = healthy.app_dir
    (app.parent / "link").symlink_to(app)
    for way in (app / "data" / "..", app.parent / "link", app.parent / "link" / "data" / ".."):
        assert places.stray_databases(load(app_dir=str(way))) == [], way


def test_strays_are_shown_always_and_moved_only_by_name(healthy: Settings) -> None:
    stray = healthy.database.with_name("nescordbot.db?timeout=20")
    shutil.copy(healthy.database, stray)
    beside = stray.with_name(f"{stray.name}-wal")
    beside.write_bytes(b"newest")
    for words in ((), ("sync",)):
        result = clean.run(healthy, words, apply=True)
        assert by_name(result)["clean.strays"].value == 1
        assert "only if it is named" in by_name(result)["clean.strays"].hint
        assert stray.exists()
    with pytest.raises(SettingsError, match="in no backup"):
        clean.run(healthy, ["strays"], apply=True, discard=True)
    data = stray.read_bytes()
    result = clean.run(healthy, ["strays"], apply=True)
    (aside,) = healthy.database.parent.glob("replaced_*")
    assert tree(aside) == {stray.name: data, beside.name: b"newest"}
    assert not stray.exists()
    assert result.remove_command == ""


@pytest.mark.usefixtures("unproven")
def test_a_backup_of_the_bots_goes_only_once_the_store_holds_it_whole(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clean.run(healthy, ["backups"]).promised_bytes == 0
    (whole,) = healthy.backup_dir.glob("nescordbot_backup_*")
    (plain,) = healthy.backup_dir.glob("*.db")
    (packed,) = healthy.backup_dir.glob("*.zip")
    for path in (whole, plain):
        assert backup.adopt(healthy, path).backup
    (whole / "mine.txt").write_text("not in the store")
    result = clean.run(healthy, ["backups"], apply=True)
    assert whole.exists()
    assert packed.exists()
    assert not plain.exists()
    assert result.given_bytes == result.promised_bytes > 1_000_000
    (whole / "mine.txt").unlink()
    monkeypatch.setattr("nescord_ops.store.check", lambda *_: [Damage("", "", "torn")])
    clean.run(healthy, ["backups"], apply=True)
    assert whole.exists()


def test_backups_of_the_bots_are_not_called_none_where_the_store_cannot_be_read(
    healthy: Settings,
) -> None:
    (plain,) = healthy.backup_dir.glob("*.db")
    assert backup.adopt(healthy, plain).backup
    store = healthy.backup_dir / "store.sqlite3"
    os.truncate(store, 8192)
    found = by_name(clean.run(healthy, ["backups"]))["clean.backups"]
    assert found.status is Status.UNKNOWN
    assert str(store) in found.summary
    assert clean.run(healthy, ["backups"], apply=True).status is Status.UNKNOWN
    assert plain.exists()
    for path in healthy.backup_dir.iterdir():
        if path != store:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert by_name(clean.run(healthy, ["backups"]))["clean.backups"].status is Status.OK


@pytest.mark.usefixtures("unproven")
def test_what_was_replaced_is_discarded_only_when_asked_for(faulty: Settings) -> None:
    result = clean.run(faulty, ["sync"], apply=True, discard=True)
    assert result.kept == ()
    assert (result.kept_bytes, result.remove_command) == (0, "")
    assert not [*faulty.database.parent.glob("replaced_*")]
    assert by_name(clean.run(faulty))["clean.sync"].status is Status.OK


@pytest.mark.usefixtures("unproven")
def test_a_killed_bots_newest_notes_are_kept(faulty: Settings) -> None:
    code = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
    code += "c.execute(\"INSERT INTO kv_store(key, value) VALUES ('newest', 'in the WAL')\");"
    subprocess.run(
        [sys.executable, "-c", f"{code} c.commit(); os._exit(0)", faulty.database], check=True
    )
    clean.run(faulty, ["sync"], apply=True)
    assert not faulty.database.with_name("nescordbot.db-wal").exists()
    assert rows(faulty.database, "SELECT value FROM kv_store WHERE key = 'newest'")


@pytest.mark.usefixtures("unproven")
def test_no_room_a_full_disk_and_a_read_only_volume_leave_the_live_data(
    faulty: Settings, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny(tmp_path / "small", "7m")
    found = dataclasses.replace(
        faulty, database=small / "nescordbot.db", chroma_dir=small / "chromadb"
    )
    shutil.copy(faulty.database, found.database)
    shutil.copytree(faulty.chroma_dir, found.chroma_dir)
    refused(found, "free, and the copy takes", "segments")
    monkeypatch.setattr("nescord_ops.restore.refuse_full", lambda *_: None)
    refused(found, "No space left on device.*untouched", "segments")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused(found, "read-only file system", "segments")


@pytest.mark.usefixtures("unproven")
def test_notes_without_vectors_are_handed_to_the_bot_when_they_are_named(
    healthy: Settings,
) -> None:
    ids = [id_ for (id_,) in rows(healthy.database, "SELECT note_id FROM sync_metadata")][:4]
    states = (("synced", 0), ("failed", 3), ("syncing", 0), ("pending", 0))
    for id_, (status, tries) in zip(ids, states, strict=True):
        values = f"sync_status = '{status}', retry_count = {tries}"
        write(healthy.database, f"UPDATE sync_metadata SET {values} WHERE note_id = '{id_}'")
        gone = f"DELETE FROM embeddings WHERE embedding_id = 'note_{id_}'"
        write(healthy.chroma_dir / "chroma.sqlite3", gone)
    store = tree(healthy.chroma_dir)
    dry = by_name(clean.run(healthy))["clean.unsynced"]
    assert (dry.status, dry.value) == (Status.WARN, 3)
    result = clean.run(healthy, ["unsynced"], apply=True)
    done = by_name(result)["clean.unsynced"]
    assert done.summary.startswith("handed to the bot, which adds it when it starts: 3 notes")
    pending = "SELECT note_id FROM sync_metadata WHERE sync_status = 'pending' AND retry_count = 0"
    assert {id_ for (id_,) in rows(healthy.database, pending)} >= set(ids)
    assert tree(healthy.chroma_dir) == store
    assert by_name(verify.run(healthy))["stores.lost"].status is Status.OK
    assert by_name(clean.run(healthy))["clean.unsynced"].status is Status.OK


def test_a_word_that_is_none_is_refused_with_the_words_that_are(faulty: Settings) -> None:
    with pytest.raises(SettingsError, match="'vectors' is nothing to clean") as caught:
        clean.run(faulty, ["sync", "vectors"])
    assert "segments" in caught.value.hint


def test_the_command_says_what_it_would_do_and_exits_0(
    faulty: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--app-dir", str(faulty.app_dir), "clean"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Nothing was done.")
    assert "nescord-ops clean deletions --apply" in shown
    assert cli.run(["--app-dir", str(faulty.app_dir), "--json", "clean", "sync"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert [item["what"] for item in data["items"] if item["chosen"]] == ["sync"]
    assert cli.run(["--app-dir", str(faulty.app_dir), "clean", "everything"]) == 2


KILLS = 50


@pytest.mark.usefixtures("unproven")
@pytest.mark.slow
def test_killed_at_any_moment_both_stores_are_old_or_new(
    faulty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, chance = live(faulty), random.Random(KILLS)
    seconds, ends = 4.0, []
    for number in range(KILLS + 1):
        app = shutil.copytree(faulty.app_dir, tmp_path / f"app{number}")
        found = load(app_dir=app)
        if not number:  # unkilled: how long it takes
            seconds = clean.run(found, apply=True).seconds
            continue
        pid = in_child(lambda: clean.run(found, apply=True))  # noqa: B023
        # spread over the whole time: the swap comes last
        time.sleep(seconds * 1.1 * (number - 1 + chance.random()) / KILLS)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends.append(after_kill(found, old))
        shutil.rmtree(app)
    assert {*ends} == {"old", "new"}


def after_kill(found: Settings, old: Tree) -> str:
    """Recover, and return `old` or `new`: nothing in between, and nothing left over."""
    with swap.alone(found):
        swap.recover(found)
    assert not list(found.database.parent.glob(".*"))
    kept = [tree(path) for path in found.database.parent.glob("replaced_*") if any(path.iterdir())]
    if live(found) == old:
        assert kept == []
        return "old"
    assert kept == [old]
    checks = by_name(verify.run(found))
    healed = ("chroma.orphans", "stores.deleted", "stores.sync", "stores.lost", "chroma.vectors")
    assert {checks[name].status for name in healed} == {Status.OK}
    return "new"
