"""Backups: whole at one moment, proven by restoring, never lost by keeping fewer of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nescord_ops import (
    backup,
    chroma,
    chroma_build,
    cli,
    client,
    cost,
    database,
    freshness,
    inventory,
    legacy,
    memory,
    proof,
    snapshot,
    store,
    storefile,
    verify,
    volume,
)
from nescord_ops.checks import Status
from nescord_ops.errors import BackupError, CaptureError, OpsError, StoreError, VolumeError
from nescord_ops.faults import FAULTS
from nescord_ops.settings import Settings, load

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def live(demo: MakeDemo) -> Settings:
    """The settings of a healthy volume without backups."""
    made = demo()
    shutil.rmtree(made.backup_dir)
    return load(app_dir=made.app_dir)


@pytest.fixture
def quick_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma's client is content and takes no time: for drills that are about something else."""
    steps = dict.fromkeys(client.STEPS, True)
    answer = client.Answer({**steps, "fetched": client.SAMPLE, "nearest": client.SAMPLE})
    monkeypatch.setattr(client, "ask", lambda *_: answer)


def store_of(settings: Settings) -> Path:
    return settings.backup_dir / "store.sqlite3"


def take(settings: Settings, count: int = 1, **options: Any) -> list[str]:
    """Take backups, a day apart, with a note more each time; return their ids, oldest first."""
    ids = []
    for _ in range(count):
        write(settings)
        number = len(inventory.listing(settings).generations)
        made = backup.create(settings, now=options.pop("now", None) or NOON + number * DAY)
        assert made.backup
        ids.append(made.backup.id)
    return ids


def write(settings: Settings) -> None:
    with contextlib.closing(sqlite3.connect(settings.database)) as db, db:
        db.execute(
            "INSERT INTO kv_store(key, value) VALUES (hex(randomblob(8)), randomblob(90000))"
        )


def rows(path: Path) -> list[Any]:
    with database.open_copy(path) as db:
        return db.execute("SELECT key, value FROM kv_store ORDER BY key").fetchall()


def tree(root: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below `root` with its mtime and its content."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def rot(settings: Settings, backup_id: str) -> None:
    """Flip a byte in the newest page that only this generation uses."""
    with contextlib.closing(sqlite3.connect(store_of(settings))) as db, db:
        mine = "SELECT page FROM place JOIN file ON file.number = file JOIN generation"
        mine += " ON generation.number = generation WHERE id {} ?"
        (number, data) = db.execute(
            f"SELECT number, data FROM page WHERE number IN ({mine.format('=')})"
            f" AND number NOT IN ({mine.format('<>')}) ORDER BY number DESC LIMIT 1",
            (backup_id, backup_id),
        ).fetchone()
        harmed = bytearray(data)
        harmed[-1] ^= 1
        db.execute("UPDATE page SET data = ? WHERE number = ?", (bytes(harmed), number))


def statuses(found: Any) -> dict[str, str]:
    return {check.name: check.status.value for check in found.checks}


# Taking one


def test_a_backup_restores_to_what_was_there(live: Settings, tmp_path: Path) -> None:
    write(live)
    made = backup.create(live)
    assert made.status is Status.OK
    assert made.backup
    assert made.backup.stores == ("database", "chroma")
    copy = backup.materialise(live, made.backup.id, tmp_path / "to")
    assert copy.database
    assert copy.chroma
    assert copy.taken_at == made.backup.taken_at
    assert rows(copy.database) == rows(live.database)
    names = {path.relative_to(copy.chroma) for path in copy.chroma.rglob("*")}
    assert names == {path.relative_to(live.chroma_dir) for path in live.chroma_dir.rglob("*")}
    for name in names:
        if (copy.chroma / name).is_file():
            assert (copy.chroma / name).read_bytes() == (live.chroma_dir / name).read_bytes()


def test_a_backup_carries_its_evidence(live: Settings) -> None:
    live.database.chmod(0o640)
    (identity,) = take(live)
    evidence = backup.find(live, identity).evidence
    assert evidence["rows"]["knowledge_notes"] == 300
    assert evidence["collections"]["nescord_knowledge"]["count"] == 300
    assert {"nescord-ops", "Python", "SQLite", "chromadb"} == set(evidence["versions"])
    assert evidence["originals"]["database"]["mode"] == 0o640
    assert evidence["originals"]["chroma"]["uid"] == os.getuid()
    assert evidence["capture"]["attempts"] == 1
    assert evidence["damaged"] == []


@pytest.mark.usefixtures("quick_client")
def test_nothing_but_the_store_is_written(live: Settings) -> None:
    before = tree(live.app_dir)
    take_one = backup.create(live, drill=True, keep=1)
    assert take_one.status is Status.OK
    after = tree(live.app_dir)
    assert set(after) - set(before) == {store_of(live)}
    assert {path: after[path] for path in before} == before


def test_a_dry_run_writes_nothing(live: Settings, tmp_path: Path) -> None:
    made = backup.create(live, keep=1, dry_run=True)
    assert made.backup is None
    assert "nothing was written" in made.checks[2].summary
    assert not live.backup_dir.exists()
    ids = take(live, 3)
    before = tree(live.app_dir)
    planned = backup.create(live, keep=1, drill=True, dry_run=True)
    assert "would be kept" in planned.checks[-1].summary
    assert backup.prune(live, 1, dry_run=True).removed == (ids[1], ids[0])
    assert backup.export(live, ids[0], tmp_path / "out", dry_run=True).name == ids[0]
    assert tree(live.app_dir) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["database", "chroma_dir"])
def test_half_of_the_data_is_no_backup(missing: str, live: Settings) -> None:
    take(live)
    before = store_of(live).read_bytes()
    path: Path = getattr(live, missing)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(CaptureError, match="only half of the data") as caught:
        backup.create(live)
    assert "verify" in caught.value.hint
    assert store_of(live).read_bytes() == before


@pytest.mark.parametrize("fault", ["corrupt-page", "lost-vectors", "truncated-pickle"])
def test_damaged_data_is_kept_marked_and_never_good(fault: str, demo: MakeDemo) -> None:
    """The rest of it may be all there is, so it is kept."""
    made = demo()
    settings = load(app_dir=made.app_dir)
    (good,) = take(settings)
    FAULTS[fault].plant(made)
    bad = backup.create(settings, now=NOON + DAY, keep=1)
    assert bad.status is Status.FAIL
    assert bad.backup
    assert not bad.backup.good
    assert bad.backup.fault.startswith("the data was damaged when it was taken: ")
    assert [b.id for b in inventory.listing(settings).generations] == [bad.backup.id, good]
    found = backup.listing(settings).newest_good
    assert found
    assert found.id == good


def tearing(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    """Make captures lose these of Chroma's files, one after the other; later ones are whole."""
    real, left = snapshot.capture, list(files)

    @contextlib.contextmanager
    def torn(settings: Settings, progress: Any = None) -> Iterator[snapshot.Snapshot]:
        with real(settings, progress) as copy:
            if left and left[0]:
                assert copy.chroma
                path = next(copy.chroma.rglob(left[0]))
                path.write_bytes(path.read_bytes()[:40])
            del left[:1]
            yield copy

    monkeypatch.setattr(backup, "capture", torn)


def test_a_store_with_other_columns_than_chromas_is_backed_up_and_said_to_be_odd(
    demo: MakeDemo,
) -> None:
    found = load(app_dir=demo().app_dir)
    with contextlib.closing(sqlite3.connect(found.chroma_dir / "chroma.sqlite3")) as db:
        db.execute("ALTER TABLE collections RENAME COLUMN dimension TO of_tomorrow")
        db.commit()
    made = backup.create(found)
    assert made.status is Status.FAIL
    assert any("has not the columns of Chroma's" in check.summary for check in made.checks)


def test_a_torn_capture_is_taken_again(live: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is torn in one copy only is never stored; copies torn in different ways are refused."""
    chroma_build.run(live.chroma_dir, "persist")
    tearing(monkeypatch, chroma.PICKLE, chroma.DATABASE)
    with pytest.raises(CaptureError, match="each in another way") as caught:
        backup.create(live)
    assert "nothing was stored" in caught.value.hint
    assert not store_of(live).exists()
    tearing(monkeypatch, chroma.PICKLE)
    made = backup.create(live)
    assert made.status is Status.OK
    assert made.backup
    assert made.backup.good


# Names and order


def test_ids_of_one_second_and_of_the_bots_do_not_collide(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    (bots,) = made.backup_dir.glob("nescordbot_backup_*")
    when = datetime.strptime(bots.name[-15:], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    ids = [backup.create(settings, now=when).backup for _ in range(2)]
    assert [b and b.id for b in ids] == [f"{bots.name}_2", f"{bots.name}_3"]


def test_a_clock_that_went_back_changes_neither_order_nor_prune(live: Settings) -> None:
    first, second = take(live), take(live, now=NOON - 400 * DAY)
    third = take(live, now=NOON - 300 * DAY)
    order = [generation.id for generation in inventory.listing(live).generations]
    assert order == [*third, *second, *first]
    assert backup.prune(live, 1).kept == tuple(third)


def test_an_adopted_backup_stands_where_its_date_says(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    newest = backup.create(settings).backup
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    adopted = backup.adopt(settings, whole).backup
    assert newest
    assert adopted
    assert [b.id for b in inventory.listing(settings).generations] == [newest.id, adopted.id]


def test_an_adopted_backup_which_may_be_of_another_volume_displaces_none_of_ours(
    demo: MakeDemo,
) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    adopted = backup.adopt(settings, whole).backup
    assert adopted
    assert inventory.listing(settings).newest_good == adopted, "better than none"
    ours = backup.create(settings, now=adopted.taken_at - DAY).backup
    assert ours
    known = inventory.listing(settings)
    assert [b.id for b in known.generations] == [adopted.id, ours.id]
    assert known.newest_good == ours
    assert backup.prune(settings, 1).removed == ()
    (age,) = [c for c in freshness.health(settings, adopted.taken_at) if c.name == "backups.age"]
    assert age.value == 1


@pytest.mark.parametrize("identity", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b", "nope"])
def test_an_id_that_is_none_is_refused(identity: str, live: Settings, tmp_path: Path) -> None:
    take(live)
    calls: list[Callable[[], object]] = [
        lambda: backup.find(live, identity),
        lambda: backup.drill(live, identity),
        lambda: backup.check(live, identity),
        lambda: backup.export(live, identity, tmp_path / "out"),
        lambda: backup.materialise(live, identity, tmp_path / "to"),
    ]
    for call in calls:
        with pytest.raises(BackupError, match=r"no id of a backup|there is no backup") as caught:
            call()
        assert caught.value.hint == "nescord-ops backup list"
    assert {path.name for path in tmp_path.iterdir()} == {"app"}


# Listing


@pytest.mark.usefixtures("quick_client")
def test_everything_is_listed_newest_first(demo: MakeDemo) -> None:
    settings = load(app_dir=demo().app_dir)
    made = backup.create(settings, drill=True).backup
    assert made
    found = backup.listing(settings)
    assert [b.kind for b in found.backups] == ["generation", "bot", "bot", "bot"]
    assert [b.status.value for b in found.backups] == ["ok", "unknown", "unknown", "unknown"]
    frame = found.to_frame()
    assert frame["id"].iloc[0] == made.id
    assert list(frame["stores"])[1:3] == [["database"]] * 2
    document = json.loads(json.dumps(found.to_dict()))
    assert document["backups"][0]["drilled"] == "ok"
    assert document["backups"][0]["size_bytes"] == made.size_bytes
    assert made.id in found._repr_html_()
    assert "proven by a drill on" in found._repr_html_()


def test_the_bots_backups_are_found_beside_its_database(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir, backup_dir=tmp_path / "ours")
    assert len(backup.listing(settings).backups) == 3
    backup.create(settings)
    assert (tmp_path / "ours" / "store.sqlite3").exists()
    assert len(backup.listing(settings).backups) == 4


# Check


def test_rot_is_found_kept_with_its_generation_and_not_counted(live: Settings) -> None:
    first, second, third = take(live, 3)
    assert backup.check(live).status is Status.OK
    rot(live, third)
    found = backup.check(live, now=NOON)
    assert statuses(found)[f"check.{third}"] == "fail"
    assert [c.status for c in found.checks if c.name != f"check.{third}"] == [Status.OK] * 2
    harmed = backup.find(live, third)
    assert harmed.fault.startswith("failed its check on 2026-01-02 12:00 UTC: nescordbot.db")
    newest = backup.listing(live).newest_good
    assert newest
    assert newest.id == second
    pruned = backup.prune(live, 1)
    assert (pruned.removed, pruned.kept) == ((first,), (third, second))


def test_a_generation_is_checked_by_itself(live: Settings) -> None:
    first, second = take(live, 2)
    rot(live, second)
    assert backup.check(live, first).status is Status.OK
    assert backup.check(live, second).status is Status.FAIL


def test_the_bots_backups_are_checked_as_far_as_they_go(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    found = statuses(backup.check(settings))
    assert sorted(found.values()) == ["ok", "warn", "warn"]
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    (plain,) = made.backup_dir.glob("*_manual.db")
    (packed,) = made.backup_dir.glob("*.zip")
    for path in (whole / "chromadb_data" / chroma.DATABASE, plain, packed):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert set(statuses(backup.check(settings)).values()) == {"fail"}


def test_no_backup_at_all_could_not_be_checked(live: Settings) -> None:
    found = backup.check(live)
    assert found.status is Status.UNKNOWN
    assert "create" in found.checks[0].hint


# Drill


def test_a_drill_proves_a_backup_and_is_remembered(live: Settings) -> None:
    (identity,) = take(live)
    found = backup.drill(live, identity, now=NOON)
    assert (found.outcome, found.reason, found.status) == ("ok", "", Status.OK)
    kept = backup.find(live, identity)
    assert kept.proven_at == NOON
    assert kept.to_dict()["drilled_at"] == NOON.isoformat()
    assert {"drill.restore", "drill.content", "chroma.queue", "chroma.roundtrip"} <= set(
        statuses(found)
    )


def test_a_drill_of_persisted_vectors_reads_them_all(live: Settings) -> None:
    chroma_build.run(live.chroma_dir, "persist")
    (identity,) = take(live)
    found = backup.drill(live, identity)
    assert found.outcome == "ok"
    (index,) = [check for check in found.checks if check.name == "chroma.index"]
    assert index.value == 300


def test_a_drill_proves_an_index_that_is_too_large_for_chroma_by_its_files(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chroma_build.run(live.chroma_dir, "persist")
    monkeypatch.setattr(client, "INDEX_LIMIT_BYTES", 900_000)  # the index takes 963,600
    (identity,) = take(live)
    found = backup.drill(live, identity)
    seen = {check.name: check.summary for check in found.checks}
    assert (found.outcome, found.reason) == ("ok", "")
    assert seen["chroma.roundtrip"].endswith("beside 300 records whose index was set aside")
    assert "a sample of 20 records Chroma fetched 20; " in seen["chroma.search"]
    assert seen["chroma.search"].endswith(
        "in the index's files, without Chroma, as the index's 964 kB are more than the 900 kB of"
        " memory that Chroma may load"
    )


def lead_nowhere(live: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every link out of an index too large for Chroma: whole, and no search finds anything."""
    monkeypatch.setattr(client, "INDEX_LIMIT_BYTES", 900_000)
    chroma_build.run(live.chroma_dir, "persist")
    (index,) = chroma.segment_directories(live.chroma_dir)
    header = chroma.read_hnsw(index)
    with (index / "data_level0.bin").open("r+b") as file:
        for number in range(header.elements):
            file.seek(number * header.element_bytes)
            file.write(bytes(2))


def test_a_drill_by_the_files_fails_where_their_graph_leads_nowhere(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_nowhere(live, monkeypatch)
    (identity,) = take(live)
    found = backup.drill(live, identity)
    assert (found.outcome, statuses(found)["chroma.search"]) == ("failed", "fail")


@pytest.mark.usefixtures("quick_client")
def test_a_drill_whose_vectors_nobody_can_search_is_inconclusive(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "INDEX_LIMIT_BYTES", 0)
    (identity,) = take(live)
    found = backup.drill(live, identity)
    assert found.outcome == "inconclusive"
    assert "no vector is in the index's files" in found.reason


@pytest.mark.usefixtures("quick_client")
def test_a_drill_of_a_damaged_backup_fails(live: Settings) -> None:
    (identity,) = take(live)
    assert backup.drill(live, identity, now=NOON).outcome == "ok"
    rot(live, identity)
    found = backup.drill(live, identity, now=NOON + DAY)
    assert found.outcome == "failed"
    assert "nescordbot.db is damaged" in found.reason or "chroma.sqlite3 is dam" in found.reason
    kept = backup.find(live, identity)
    assert kept.proven_at is None
    assert kept.fault.startswith("failed its drill on 2026-01-03")
    assert not kept.good


@pytest.mark.usefixtures("quick_client")
@pytest.mark.parametrize(
    "lie",
    [
        {"rows": {"knowledge_notes": 301}},
        {"collections": {"nescord_knowledge": {"count": 300, "sha256": "another"}}},
        {"collections": {"nescord_knowledge": {"count": 300, "sha256": ""}, "gone": {"count": 1}}},
    ],
)
def test_a_drill_compares_with_what_was_taken(lie: dict[str, Any], live: Settings) -> None:
    (identity,) = take(live)
    with store.open_store(store_of(live)) as opened:
        store.note(opened, identity, lie)
    found = backup.drill(live, identity)
    assert found.outcome == "failed"
    assert statuses(found)["drill.content"] == "fail"


@pytest.mark.usefixtures("quick_client")
@pytest.mark.parametrize("vector", ["zeroblob(8)", "zeroblob(9000000)", "'text'", "NULL"])
def test_a_drill_finds_a_vector_that_is_no_number(vector: str, live: Settings) -> None:
    with contextlib.closing(sqlite3.connect(live.chroma_dir / chroma.DATABASE)) as db, db:
        db.execute(f"UPDATE embeddings_queue SET vector = {vector} WHERE seq_id = 7")
    (identity,) = take(live)
    found = backup.drill(live, identity)
    assert found.outcome == "failed"
    assert statuses(found)["chroma.queue"] == "fail"


def test_what_was_wrong_when_it_was_taken_is_not_the_backups_fault(demo: MakeDemo) -> None:
    settings = load(app_dir=demo("stale-vector", "leaked-deletion", "orphan-segment").app_dir)
    (identity,) = take(settings)
    found = backup.drill(settings, identity)
    assert found.outcome == "ok"
    assert statuses(found)["stores.stale"] == "warn"
    assert backup.find(settings, identity).good


NO_VERDICT = [
    "Chroma did not answer within 180 s",
    "killed by signal 9",
    "Chroma's process gave no answer",
    "chromadb.errors.InternalError: (code: 13) database or disk is full",
]


@pytest.mark.parametrize("problem", NO_VERDICT)
def test_a_client_that_gives_no_verdict_proves_nothing(
    problem: str, live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (identity,) = take(live)
    monkeypatch.setattr(client, "ask", lambda *_: client.Answer({}, problem))
    found = backup.drill(live, identity)
    assert (found.outcome, found.status) == ("inconclusive", Status.UNKNOWN)
    kept = backup.find(live, identity)
    assert kept.proven_at is None
    assert kept.good
    assert "inconclusive" in kept.known


def test_the_limit_of_a_container_bounds_the_memory_that_is_left() -> None:
    old = Path("/sys/fs/cgroup/memory")
    base, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = base / f"nescord-ops-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(200 << 20))
    except OSError:
        if group.exists():
            group.rmdir()
        pytest.skip("no memory cgroup can be made here")
    ask = "from nescord_ops import memory; print(memory.available_bytes())"
    enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
    try:
        run = subprocess.run([*enter, sys.executable, "-c", ask], capture_output=True, check=True)
    finally:
        group.rmdir()
    assert 50 << 20 < int(run.stdout) <= 200 << 20


@pytest.mark.usefixtures("quick_client")
def test_too_little_memory_is_inconclusive_and_takes_no_earlier_proof_away(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (identity,) = take(live)
    backup.drill(live, identity, now=NOON)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert backup.drill(live, identity).outcome == "inconclusive"
    assert backup.find(live, identity).proven_at == NOON


def test_no_room_in_scratch_is_inconclusive(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (identity,) = take(live)
    space = dataclasses.replace(volume.space(live.app_dir), free_bytes=1000)
    monkeypatch.setattr(volume, "space", lambda _: space)
    found = backup.drill(live, identity)
    assert found.outcome == "inconclusive"
    assert "are needed" in found.reason


def test_a_drill_of_the_bots_backups_says_how_far_they_go(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    (packed,) = made.backup_dir.glob("*.zip")
    assert backup.drill(settings, whole.name).outcome == "ok"
    found = backup.drill(settings, packed.name)
    assert (found.outcome, statuses(found)["chroma.integrity"]) == ("ok", "warn")
    (whole / "nescordbot.db").write_bytes(b"")
    assert backup.drill(settings, whole.name).outcome == "failed"


# Prune


def test_prune_keeps_the_newest_good_ones_and_says_what_it_freed(live: Settings) -> None:
    ids = take(live, 4)
    before = store_of(live).stat().st_size
    pruned = backup.prune(live, 2)
    assert (pruned.removed, pruned.kept) == ((ids[1], ids[0]), (ids[3], ids[2]))
    assert pruned.freed_bytes == before - store_of(live).stat().st_size > 50_000
    assert pruned.usd_per_month == pytest.approx(pruned.freed_bytes / 1e9 * 0.25)
    assert str(pruned).startswith("2 generations removed, 2 kept; ")
    assert backup.check(live).status is Status.OK
    assert backup.prune(live, 2).removed == ()


def test_prune_counts_no_generation_that_is_rotten_unseen(live: Settings) -> None:
    ids = take(live, 3)
    rot(live, ids[2])
    assert backup.prune(live, 1).kept == (ids[2], ids[1])


def test_prune_does_not_say_done_where_it_could_not_look(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backup holds the store for longer than the list of backups waits."""
    backup.create(live)
    monkeypatch.setattr(inventory, "BUSY_SECONDS", 0.1)
    file = live.backup_dir / "store.sqlite3"
    with contextlib.closing(
        sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(1.0, lambda: other.execute("ROLLBACK"))
        release.start()
        try:
            with pytest.raises(BackupError, match="locked"):
                backup.prune(live, 1)
        finally:
            release.join()


def test_prune_removes_nothing_while_too_few_are_good(live: Settings) -> None:
    ids = take(live, 3)
    for identity in ids[1:]:
        with store.open_store(store_of(live)) as opened:
            store.note(opened, identity, {"damaged": ["database.integrity"]})
    assert backup.prune(live, 2).removed == ()
    assert backup.prune(live, 1).removed == ()
    assert len(inventory.listing(live).generations) == 3


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(keep: int, live: Settings) -> None:
    take(live)
    for call in (lambda: backup.prune(live, keep), lambda: backup.create(live, keep=keep)):
        with pytest.raises(BackupError, match="at least one generation stays"):
            call()
    assert len(inventory.listing(live).generations) == 1


def test_a_backup_is_told_of_where_the_store_cannot_be_read_afterwards(live: Settings) -> None:
    (earlier,) = take(live)
    path, aside = store_of(live), live.backup_dir / "aside"

    def lose(text: str) -> None:
        if text.startswith("storing") and not aside.exists():
            path.rename(aside)
            path.mkdir()

    made = backup.create(live, keep=1, drill=True, progress=lose)
    status = {check.name: check.status for check in made.checks}
    assert status["backup.stored"] is Status.OK
    undone = {name for name, seen in status.items() if seen is Status.UNKNOWN}
    assert undone == {"drill.restore", "backup.prune", "backup.listed"}
    assert made.status.exit_code == 2
    assert made.backup is None
    assert all(check.hint for check in made.checks if check.status is Status.UNKNOWN)
    path.rmdir()
    aside.rename(path)
    kept = {generation.id for generation in inventory.listing(live).generations}
    assert len(kept) == 2
    assert earlier in kept


def test_damage_that_the_prune_after_a_backup_finds_is_a_failure(live: Settings) -> None:
    take(live, 2)
    with contextlib.closing(sqlite3.connect(store_of(live))) as db, db:
        db.execute("DROP INDEX file_generation")
    made = backup.create(live, keep=1)
    assert made.backup
    (pruned,) = [check for check in made.checks if check.name == "backup.prune"]
    assert pruned.status is Status.FAIL
    assert "none was removed" in pruned.summary
    assert pruned.hint.startswith("nescord-ops backup prune --keep 1; ")
    assert len(inventory.listing(live).generations) == 3


def test_a_failed_drill_is_not_counted_by_the_prune_that_follows(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_nowhere(live, monkeypatch)
    (first,) = take(live)
    made = backup.create(live, drill=True, keep=1, now=NOON + DAY)
    assert made.status is Status.FAIL
    assert made.pruned
    assert made.pruned.removed == ()
    newest = backup.listing(live).newest_good
    assert newest
    assert newest.id == first


# In and out


def accepted_by_the_bot(directory: Path) -> bool:
    """What the bot's restore asks of a backup (NescordBot of September 2025, utils/backup.py)."""
    manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    names = {"backup_id", "timestamp", "config", "files"}
    right = manifest["backup_id"] == directory.name and set(manifest) == names
    datetime.strptime(manifest["timestamp"], "%Y%m%d_%H%M%S")
    held = (directory / "chromadb_data" / chroma.DATABASE).is_file()
    return right and held and (directory / "nescordbot.db").is_file()


def test_what_is_exported_the_bot_accepts_and_can_be_adopted(
    live: Settings, tmp_path: Path
) -> None:
    (identity,) = take(live)
    path = backup.export(live, identity, tmp_path / "out")
    assert path == tmp_path / "out" / identity
    assert accepted_by_the_bot(path)
    assert {entry.name for entry in path.parent.iterdir()} == {identity}
    assert rows(path / "nescordbot.db") == rows(live.database)
    adopted = backup.adopt(live, path).backup
    assert adopted
    assert (adopted.id, adopted.kind) == (f"{identity}_2", "adopted")
    assert adopted.taken_at == NOON
    assert backup.drill(live, adopted.id).outcome == "ok"
    with pytest.raises(BackupError, match="is there already"):
        backup.export(live, identity, tmp_path / "out")


def test_every_file_is_synced_before_an_export_is_there(
    demo: MakeDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo()
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    synced, sync = set(), os.fsync

    def seen(handle: int) -> None:
        sync(handle)
        synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", seen)
    path = backup.export(load(app_dir=made.app_dir), whole.name, tmp_path / "out")
    assert {entry.stat().st_ino for entry in path.rglob("*")} <= synced


def test_every_kind_is_adopted_and_half_ones_are_never_good(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    good = backup.adopt(settings, whole)
    assert good.status is Status.OK
    for pattern, missing in (("*_manual.db", "no vectors"), ("*.zip", "no vectors")):
        half = backup.adopt(settings, Path(next(made.backup_dir.glob(pattern)).name))
        assert half.status is Status.WARN
        assert half.backup
        assert missing in half.backup.fault
    (whole / "nescordbot.db").unlink()
    half = backup.adopt(settings, whole)
    assert half.backup
    assert "no notes" in half.backup.fault
    assert [b.good for b in inventory.listing(settings).generations].count(True) == 1
    assert backup.check(settings).status in (Status.OK, Status.WARN)


def test_a_torn_backup_of_the_bots_is_adopted_as_damaged(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    content = bytearray((whole / "nescordbot.db").read_bytes())
    content[4096 * 20 : 4096 * 22] = bytes(8192)
    (whole / "nescordbot.db").write_bytes(content)
    made_of_it = backup.adopt(settings, whole)
    assert made_of_it.status is Status.FAIL
    assert made_of_it.backup
    assert not made_of_it.backup.good


def test_what_is_none_of_the_bots_is_not_adopted(live: Settings, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_bytes(b"")
    for path in (tmp_path / "notes.db", tmp_path / "absent", tmp_path):
        with pytest.raises(BackupError, match="is no backup of the bot's"):
            backup.adopt(live, path)
    assert not store_of(live).exists()


def test_a_full_target_leaves_nothing_half_exported(live: Settings, tmp_path: Path) -> None:
    (identity,) = take(live)
    with small_disk(tmp_path / "small", 3) as small:
        with pytest.raises(OpsError, match="bytes free") as caught:
            backup.export(live, identity, small)
        assert caught.value.hint == "free some space there, or name another directory"
        assert list(small.iterdir()) == []


# Bad stores, disks and neighbours


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={storefile.VERSION + 1}")


BROKEN: dict[str, Callable[[Path], object]] = {
    "a newer version": newer,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "no store": lambda path: path.write_bytes(b"not a store" * 1000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_store_that_cannot_be_read_is_said_and_left_alone(
    kind: str, demo: MakeDemo, tmp_path: Path
) -> None:
    settings = load(app_dir=demo().app_dir)
    (identity,) = take(settings)
    BROKEN[kind](store_of(settings))
    before = store_of(settings).read_bytes()
    found = backup.listing(settings)
    assert [b.kind for b in found.backups].count("bot") == 3
    if found.problem:  # a truncated one may still list its generations
        assert found.hint
        for call in (
            lambda: backup.create(settings),
            lambda: backup.materialise(settings, identity, tmp_path / "to"),
        ):
            with pytest.raises(OpsError) as caught:
                call()
            assert caught.value.hint
    assert backup.check(settings).status is Status.FAIL
    assert Status.FAIL in {c.status for c in freshness.health(settings, NOON)} or not found.problem
    assert store_of(settings).read_bytes() == before


def test_a_full_disk_keeps_every_earlier_generation(
    demo: MakeDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo()
    with small_disk(tmp_path / "small", 4) as small:
        settings = load(app_dir=made.app_dir, backup_dir=small)
        with pytest.raises(VolumeError, match="may be needed") as caught:
            backup.create(settings)
        assert "prune" in caught.value.hint
        assert list(small.iterdir()) == []
        monkeypatch.setattr(backup, "_need_room", lambda *_: None)
        (first,) = take(settings)
        with contextlib.closing(sqlite3.connect(settings.database)) as db, db:
            db.execute("INSERT INTO kv_store(key, value) VALUES ('large', randomblob(4000000))")
        with pytest.raises(StoreError, match="full") as caught_store:
            backup.create(settings)
        assert "make room" in caught_store.value.hint
        assert [b.id for b in inventory.listing(settings).generations] == [first]
        assert statuses(backup.check(settings))[f"check.{first}"] == "ok"


@pytest.mark.usefixtures("quick_client")
def test_a_read_only_directory_is_said(live: Settings, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 40) as small:
        settings = load(app_dir=live.app_dir, backup_dir=small)
        (identity,) = take(settings)
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(OpsError) as caught:
            backup.create(settings)
        assert caught.value.hint
        found = backup.drill(settings, identity)
        assert (found.outcome, statuses(found)["drill.kept"]) == ("ok", "warn")
        assert [b.id for b in backup.listing(settings).generations] == [identity]


def test_a_second_backup_waits_for_the_first(live: Settings) -> None:
    take(live)
    with contextlib.closing(sqlite3.connect(store_of(live), check_same_thread=False)) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(1, lambda: other.execute("ROLLBACK"))
        timer.start()
        assert backup.create(live).status is Status.OK
        timer.join()


def test_a_store_in_use_for_too_long_is_said(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(live)
    monkeypatch.setattr(inventory, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(inventory, "_PATIENCE_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(store_of(live), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BackupError, match="locked") as caught:
            backup.create(live)
        assert "another backup is at work" in caught.value.hint
        assert backup.listing(live).busy
        (check,) = freshness.health(live, NOON)
        assert (check.name, check.status, check.expected) == ("backups.age", Status.UNKNOWN, True)


# Verify and cost


def judged(settings: Settings, now: datetime) -> dict[str, str]:
    return {check.name: check.status.value for check in freshness.health(settings, now)}


@pytest.mark.usefixtures("quick_client")
def test_verify_tells_age_and_proof(live: Settings) -> None:
    assert judged(live, NOON) == {"backups.age": "fail"}
    (identity,) = take(live)
    assert judged(live, NOON + DAY)["backups.drill"] == "warn"
    backup.drill(live, identity, now=NOON)
    fine = dict.fromkeys(("backups.age", "backups.damage", "backups.count", "backups.drill"), "ok")
    assert judged(live, NOON + DAY) == {**fine, "backups.place": "unknown"}
    assert judged(live, NOON + 8 * DAY)["backups.age"] == "warn"
    late = judged(live, NOON + 31 * DAY)
    assert (late["backups.age"], late["backups.drill"]) == ("fail", "warn")


def test_verify_names_the_proven_backup_where_it_says_to_restore_one(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)

    def hint() -> str:
        (index,) = [c for c in verify.run(settings).checks if c.name == "chroma.index"]
        return index.hint

    proven = backup.create(settings, drill=True).backup
    FAULTS["lost-vectors"].plant(made)
    assert proven
    assert f"(nescord-ops restore {proven.id})" in hint()
    with store.open_store(store_of(settings)) as opened:
        store.note(opened, proven.id, {"proven_at": None})
    assert hint() == "stop the bot and type what nescord-ops troubleshoot prints: it cannot search"


def test_a_backup_whose_drill_is_under_way_is_no_warning_for_half_an_hour(live: Settings) -> None:
    (identity,) = take(live)
    with store.open_store(store_of(live)) as opened:
        store.note(opened, identity, {"drill": True})

    def seen(minutes: int) -> Status:
        now = NOON + timedelta(minutes=minutes)
        (check,) = [c for c in freshness.health(live, now) if c.name == "backups.drill"]
        return check.status

    assert (seen(1), seen(31)) == (Status.UNKNOWN, Status.WARN)
    with store.open_store(store_of(live)) as opened:
        store.note(
            opened,
            identity,
            {"drilled": {"at": NOON.isoformat(), "outcome": "inconclusive", "reason": ""}},
        )
    assert seen(1) is Status.WARN


def test_verify_counts_no_damaged_generation(live: Settings) -> None:
    (identity,) = take(live)
    rot(live, identity)
    backup.check(live)
    found = {check.name: check for check in freshness.health(live, NOON)}
    assert found["backups.age"].status is Status.FAIL
    assert "failed its check" in found["backups.age"].summary
    assert found["backups.damage"].status is Status.WARN


def test_ours_are_preferred_to_the_bots(demo: MakeDemo) -> None:
    """A fresh copy of live files does not make an old proven backup fresh."""
    settings = load(app_dir=demo().app_dir)
    now = datetime.now(UTC)
    assert judged(settings, now) == {"backups.age": "ok"}
    backup.create(settings, now=now - 10 * DAY)
    assert judged(settings, now)["backups.age"] == "warn"


def test_a_store_on_the_volume_that_it_protects_is_said(live: Settings, tmp_path: Path) -> None:
    take(live)
    on_railway = dataclasses.replace(live, volume_mount=live.database.parent)
    assert judged(on_railway, NOON)["backups.place"] == "warn"
    with small_disk(tmp_path / "small", 40) as small:
        elsewhere = dataclasses.replace(on_railway, backup_dir=small)
        take(elsewhere)
        assert judged(elsewhere, NOON)["backups.place"] == "ok"
        inside = dataclasses.replace(live, volume_mount=small, backup_dir=Path("/none/backups"))
        found = freshness._place(inside, backup.listing(live).generations)
        assert found.status is Status.WARN
        assert "in the container itself, and is lost at the next deploy" in found.summary


@pytest.mark.parametrize(
    "facts", [{"kind": "other"}, {"proven_at": "2026-01-02T12:00:00"}, {"drilled": {"at": None}}]
)
def test_what_was_sealed_and_is_no_evidence_fails_its_check(
    live: Settings, facts: dict[str, Any]
) -> None:
    """Its bytes are as stored, and yet it is restorable for nobody."""
    made = backup.create(live, now=NOON).backup
    assert made
    with store.open_store(store_of(live)) as opened:
        assert store.note(opened, made.id, facts).intact
    (listed,) = backup.listing(live).backups
    assert listed.fault == "its record is damaged"
    (found,) = backup.check(live, made.id).checks
    assert (found.status, found.summary) == (Status.FAIL, listed.fault)
    assert backup.review(live, NOON).status is Status.FAIL


def test_a_backup_that_ends_while_one_looks_stops_nobody(live: Settings) -> None:
    backup.create(live, now=NOON)
    journal = database.beside(store_of(live), "-journal")
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1])\nwhile True: p.touch(), p.unlink()"
    with subprocess.Popen([sys.executable, "-c", code, journal]) as writer:
        try:
            for _ in range(600):
                backup.listing(live, looking=True)
        finally:
            writer.kill()


def test_verify_does_not_mend_what_a_killed_backup_left(live: Settings) -> None:
    """Opening would roll the journal back, which is writing."""
    take(live)
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size=5'); c.execute('BEGIN IMMEDIATE');"
        "c.execute('UPDATE page SET data = zeroblob(9)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, store_of(live)], check=True)
    journal = database.beside(store_of(live), "-journal")
    before = store_of(live).read_bytes(), journal.read_bytes()
    (check,) = freshness.health(live, NOON)
    assert check.expected
    os.utime(journal, (0, 0))
    (check,) = freshness.health(live, NOON)
    assert (check.status, check.hint) == (Status.FAIL, "nescord-ops backup list")
    assert (store_of(live).read_bytes(), journal.read_bytes()) == before
    assert len(backup.listing(live).generations) == 1
    assert not journal.exists()
    assert backup.check(live).status is Status.OK


def test_verify_writes_nothing_to_a_store(live: Settings) -> None:
    take(live, 2)
    before = tree(live.app_dir)
    verify.run(live, depth="quick")
    assert tree(live.app_dir) == before


def test_cost_tells_what_the_generations_cost_here(live: Settings) -> None:
    take(live, 3)
    found = {check.name: check for check in cost.run(live, depth="quick").checks}
    listed = backup.listing(live)
    assert found["cost.generations"].value == pytest.approx(listed.store_bytes / 1e9 * 0.25)
    assert "3 generations" in found["cost.generations"].summary
    assert listed.plain_bytes > 2 * listed.store_bytes
    assert "As plain copies" in listed.costs()._repr_html_()


# The command line


def test_the_commands_do_what_they_say(demo: MakeDemo, tmp_path: Path, capsys: Captured) -> None:
    made = demo()

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.run(["--app-dir", str(made.app_dir), *arguments]) == code
        return capsys.readouterr().out

    created = json.loads(run("--json", "backup", "create", "--keep", "3"))
    identity = created["data"]["backup"]["id"]
    assert identity in run("backup", "list")
    assert json.loads(run("--json", "backup", "list"))["backups"][0]["id"] == identity
    assert "as stored" in run("backup", "check", identity)
    assert "inconclusive" not in run("backup", "drill", identity)
    assert json.loads(run("--json", "backup", "prune", "--keep", "1"))["removed"] == []
    assert "1 kept" in run("backup", "prune", "--keep", "1", "--dry-run")
    path = json.loads(run("--json", "backup", "export", identity, str(tmp_path)))["path"]
    assert accepted_by_the_bot(Path(path))
    assert "adopted" in run("--json", "backup", "adopt", path)
    assert "Restored" in run("restore", identity, "--to", str(tmp_path / "there"))
    run("restore", "../nope", code=2)
    run("backup", "prune", "--keep", "0", code=2)
    BROKEN["no store"](store_of(load(app_dir=made.app_dir)))
    run("backup", "list", code=1)
    assert cli.run(["--app-dir", str(made.app_dir), "backup", "create"]) == 2
    assert "Try: " in capsys.readouterr().err


def test_every_backup_command_has_a_sentence_of_help() -> None:
    from nescord_ops.cli_backup import app

    assert {command.name or command.callback.__name__ for command in app.registered_commands} == {
        *("create", "list", "check", "drill", "prune", "export", "adopt")
    }
    for command in app.registered_commands:
        assert (command.callback.__doc__ or "").split("\n")[0].endswith(".")


# Long runs


HOT_WRITER = """
import sqlite3, sys, uuid
sys.modules.setdefault("rfc3987_syntax", None)
import chromadb, numpy
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
collection = client.get_collection("nescord_knowledge", embedding_function=None)
bot = sqlite3.connect(sys.argv[2], timeout=5, isolation_level=None)
random = numpy.random.default_rng(0)
print("ready", flush=True)
while True:
    ids = [str(uuid.uuid4()) for _ in range(20)]
    insert = "INSERT INTO knowledge_notes(id, title, content, user_id) VALUES (?, 'hot', 'note', 1)"
    bot.execute("BEGIN")
    bot.executemany(insert, [(name,) for name in ids])
    bot.execute("COMMIT")
    vectors = random.normal(size=(20, 768)).astype("float32")
    names = [f"note_{name}" for name in ids]
    collection.add(ids=names, embeddings=vectors, documents=["Title: hot\\n\\nnote"] * 20)
    print(*ids, flush=True)
"""


@pytest.mark.slow
def test_hot_backups_hold_everything_that_was_acknowledged(live: Settings, tmp_path: Path) -> None:
    """A writer at full speed, across persists of the HNSW files: every generation is whole."""
    command = [sys.executable, "-c", textwrap.dedent(HOT_WRITER), live.chroma_dir, live.database]
    acknowledged: list[str] = []
    errors = (tmp_path / "errors").open("w+")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"

        def listen() -> None:
            assert child.stdout
            for line in child.stdout:
                acknowledged.extend(line.split())

        listener = threading.Thread(target=listen)
        listener.start()
        expected: dict[str, int] = {}
        locked, persists = [], set()
        for _ in range(25):
            count = len(acknowledged)
            made = backup.create(live)
            assert made.backup
            expected[made.backup.id] = count
            locked.append(made.lock_seconds)
            while len(acknowledged) < count + 300 and child.poll() is None:
                time.sleep(0.01)
            persists |= {path.stat().st_mtime_ns for path in live.chroma_dir.rglob("*.pickle")}
        assert child.poll() is None
        child.kill()
        listener.join()
    errors.seek(0)
    assert errors.read() == ""
    assert len(persists) > 3
    for number, (identity, count) in enumerate(expected.items()):
        assert backup.find(live, identity).good
        copy = backup.materialise(live, identity, tmp_path / "to")
        found = {check.name: check for check in verify.examine(copy, live)}
        assert {found[name].status for name in proof.DAMAGE} == {Status.OK}
        assert found["stores.lost"].status is Status.OK
        held = ids_of(copy)
        assert held >= {f"note_{name}" for name in acknowledged[:count]}
        if number % 5 == 0:
            assert backup.drill(live, identity).outcome == "ok"
        shutil.rmtree(tmp_path / "to")
    print(f"{len(acknowledged):,} acknowledged, {len(persists)} persists seen,")
    print(f"Chroma's writers waited at most {max(locked) * 1000:.0f} ms")


def ids_of(copy: snapshot.Snapshot) -> set[str]:
    assert copy.chroma
    assert copy.database
    with database.open_copy(copy.chroma / chroma.DATABASE) as db:
        held = {name for (name,) in db.execute("SELECT embedding_id FROM embeddings")}
    with database.open_copy(copy.database) as db:
        notes = {f"note_{name}" for (name,) in db.execute("SELECT id FROM knowledge_notes")}
    assert held <= notes
    return held


KILLED = """
import sys
from nescord_ops import backup
from nescord_ops.settings import load
settings = load(app_dir=sys.argv[1])
print("go", flush=True)
backup.create(settings) if sys.argv[2] == "create" else backup.prune(settings, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["create", "prune"])
def test_killed_at_any_moment_every_earlier_generation_is_whole(
    action: str, live: Settings, tmp_path: Path
) -> None:
    ids = take(live, 3)
    contents = {}
    for identity in ids:
        backup.materialise(live, identity, tmp_path / identity)
        contents[identity] = {
            path.relative_to(tmp_path / identity): content
            for path, (_, content) in tree(tmp_path / identity).items()
        }
    pristine = store_of(live).read_bytes()
    draw = random.Random(0)
    killed = 0
    command = [sys.executable, "-c", textwrap.dedent(KILLED), live.app_dir, action]
    for run in range(100):
        for path in live.backup_dir.iterdir():
            path.unlink()
        store_of(live).write_bytes(pristine)
        write(live)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(draw.uniform(0, 0.2 if action == "create" else 0.12))
            killed += child.poll() is None
            child.send_signal(signal.SIGKILL)
        found = [b.id for b in inventory.listing(live).generations]
        assert set(found) >= set(ids[1:])
        kept = [identity for identity in ids if identity in found]
        assert action == "prune" or kept == ids
        assert backup.check(live).status is Status.OK
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        identity = kept[run % len(kept)]
        backup.materialise(live, identity, tmp_path / "to")
        restored = {
            p.relative_to(tmp_path / "to"): c for p, (_, c) in tree(tmp_path / "to").items()
        }
        assert restored == contents[identity]
    print(f"{killed} of 100 were killed at work")
    assert killed > 25


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.integers(-500, 500)),
        st.tuples(st.just("prune"), st.integers(1, 4)),
        st.tuples(st.just("adopt"), st.integers(0, 2)),
        st.tuples(st.just("rot"), st.integers(0, 9)),
    ),
    max_size=12,
)


@pytest.mark.slow
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_of_commands_leaves_the_rest_restorable(
    steps: list[tuple[str, int]], demo: MakeDemo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the clock does and however pages rot: good generations restore as they were."""
    root = tmp_path_factory.mktemp("steps")
    made = demo(directory=root / "app")
    settings = load(app_dir=made.app_dir)
    bots = [bot.path for bot in legacy.backups(made.backup_dir)]
    adopted = rows(made.database)
    held: dict[str, list[Any]] = {}
    rotten: set[str] = set()
    for step, number in steps:
        if step == "create":
            write(settings)
            done = backup.create(settings, now=NOON + number * DAY).backup
            assert done
            held[done.id] = rows(settings.database)
        elif step == "adopt":
            done = backup.adopt(settings, bots[number]).backup
            assert done
            held[done.id] = adopted
        elif step == "rot" and held:
            identity = sorted(held)[number % len(held)]
            with contextlib.suppress(TypeError):  # it may have no page of its own
                rot(settings, identity)
        elif step == "prune":
            good = {b for b in held if b not in rotten and backup.find(settings, b).good}
            pruned = backup.prune(settings, number)
            assert len(good & set(pruned.kept)) >= min(number, len(good))
            for identity in pruned.removed:
                del held[identity]
        # rot spreads to what builds on a page, and is mended by the same content coming again
        rotten = {identity for identity in held if not is_whole(settings, identity)}
    listed = [b.id for b in inventory.listing(settings).generations]
    assert set(listed) == set(held)
    for identity, expected in held.items():
        if identity in rotten:
            assert backup.check(settings, identity).status is Status.FAIL
            continue
        copy = backup.materialise(settings, identity, root / "to" / identity)
        assert copy.database
        assert rows(copy.database) == expected


def is_whole(settings: Settings, identity: str) -> bool:
    with store.open_store(store_of(settings)) as opened:
        return not store.check(opened, identity)


@pytest.mark.usefixtures("quick_client")
def test_prune_never_removes_the_newest_proven_generation(live: Settings) -> None:
    (proven,) = take(live)
    backup.drill(live, proven)
    newer = take(live, 2)
    pruned = backup.prune(live, 1)
    assert proven in pruned.kept
    assert newer[-1] in pruned.kept
    assert newer[0] in pruned.removed
