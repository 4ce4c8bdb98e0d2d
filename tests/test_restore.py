"""Restore: what was backed up comes back, what is replaced is kept, and nothing is ever mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nescord_ops import (
    backup,
    database,
    holders,
    inventory,
    proof,
    restore,
    settings,
    swap,
    troubleshoot,
    verify,
)
from nescord_ops.checks import Check, Status
from nescord_ops.demo import Demo
from nescord_ops.errors import BackupError, OpsError, VolumeError
from nescord_ops.settings import Settings
from nescord_ops.snapshot import Snapshot
from nescord_ops.volume import mount_of

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOLD_WAL = (
    "import sqlite3; c = sqlite3.connect(path); c.execute('SELECT 1 FROM kv_store').fetchall()"
)
HOLD_FILE = "f = open(path, 'rb')"
HOLD_MAP = (
    f"import mmap, os; {HOLD_FILE}; m = mmap.mmap(f.fileno(), 0, prot=1); os.closerange(3, 99)"
)
Tree = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Site:
    """A volume with two backups; since the newer one its live data has changed, partly in a WAL."""

    settings: Settings
    older: str
    backup: str


@pytest.fixture(scope="module")
def base(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Site:
    app = tmp_path_factory.mktemp("restore") / "app"
    shutil.copytree(base_demo.app_dir, app)
    (app / "data" / "nescordbot.db").chmod(0o640)
    (app / "data" / "chromadb").chmod(0o750)
    found = settings.load(app_dir=app)
    ids = []
    for number in (1, 2):
        write(found.database, f"INSERT INTO kv_store(key, value) VALUES ('n', '{number}')")
        made = backup.create(found).backup
        assert made
        ids.append(made.id)
        write(found.database, "DELETE FROM kv_store WHERE key = 'n'")
    # the bot is killed: its newest row is in the WAL alone
    code = "INSERT INTO kv_store(key, value) VALUES ('newest', 'in the WAL')"
    killed = f"import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute({code!r});"
    subprocess.run(
        [sys.executable, "-c", killed + "c.commit(); os._exit(0)", found.database], check=True
    )
    assert database.beside(found.database, "-wal").stat().st_size
    write(found.chroma_dir / "chroma.sqlite3", "CREATE TABLE later(n)")
    return Site(found, *ids)


@pytest.fixture
def site(base: Site, tmp_path: Path) -> Site:
    return copy_of(base, tmp_path / "app")


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the copy's proofs as given: they take most of a restore's time."""
    monkeypatch.setattr(restore, "_proofs", lambda *_: [])


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a factory of small file systems of their own, unmounted afterwards."""
    mounted: list[Path] = []

    def make(directory: Path, size: str) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("mounting a file system needs root")
        mounted.append(directory)
        return directory

    yield make
    for directory in reversed(mounted):
        subprocess.run(["umount", directory], check=True)


def copy_of(base: Site, app: Path) -> Site:
    shutil.copytree(base.settings.app_dir, app)
    return dataclasses.replace(base, settings=settings.load(app_dir=app))


def write(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


def tree(root: Path) -> Tree:
    """Every file below `root` and its bytes."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def live(found: Settings) -> Tree:
    """The bytes of both stores, and of what lies beside the database."""
    names = [f"{found.database.name}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]
    paths = [found.database.with_name(name) for name in names]
    notes = {path.name: path.read_bytes() for path in paths if path.exists()}
    return {**notes, **{f"chromadb/{name}": data for name, data in tree(found.chroma_dir).items()}}


def refused(site: Site, match: str, **options: object) -> OpsError:
    """Restore, see it refused, and see that nothing changed on the volume."""
    data = site.settings.app_dir
    before = tree(data)
    with pytest.raises(OpsError, match=match) as caught:
        restore.run(site.settings, site.backup, **options)  # type: ignore[arg-type]
    after = tree(data)
    for files in (before, after):
        files.pop("data/backups/store.sqlite3", None)  # in which damage that is found is noted
    assert after == before
    assert list(data.rglob(f"{swap.HIDDEN}*")) == []
    return caught.value


def by_name(result: restore.Restored) -> dict[str, Check]:
    return {check.name: check for check in result.checks}


@contextlib.contextmanager
def holding(path: Path, code: str) -> Iterator[int]:
    """Another process that holds a file; yields its pid."""
    script = f"import sys; path = sys.argv[1]\n{code}\nprint('held', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    try:
        yield child.pid
    finally:
        child.communicate()


def test_both_stores_come_back_byte_for_byte_and_what_they_replace_is_kept(
    site: Site, tmp_path: Path
) -> None:
    found, before = site.settings, live(site.settings)
    result = restore.run(found, site.backup, now=NOON)
    restore.run(found, site.backup, to=tmp_path / "out")
    assert live(found) == tree(tmp_path / "out")
    kept = found.database.parent / "replaced_20260102_120000"
    assert result.kept == (kept,)
    assert tree(kept) == before
    assert database.read_header(found.database).wal_mode
    with contextlib.closing(sqlite3.connect(kept / "nescordbot.db")) as replaced:
        assert replaced.execute("SELECT value FROM kv_store WHERE key = 'newest'").fetchall()
    checks = by_name(result)
    proofs = (*proof.DAMAGE, "chroma.roundtrip", "chroma.search")
    assert {checks[name].status for name in proofs} == {Status.OK}
    assert result.remove_command in checks["restore.kept"].hint
    subprocess.run(result.remove_command, shell=True, check=True)
    assert not kept.exists()
    assert result.to_dict()["data"]["backup_id"] == site.backup
    assert site.backup in result._repr_mimebundle_()["text/html"]


@pytest.mark.usefixtures("unproven")
def test_an_older_backup_is_restored_beside_what_an_earlier_restore_kept(site: Site) -> None:
    first = restore.run(site.settings, site.backup, now=NOON)
    second = restore.run(site.settings, site.older, now=NOON)
    assert first.kept != second.kept
    assert all(path.is_dir() for path in (*first.kept, *second.kept))


@pytest.mark.usefixtures("unproven")
def test_owner_and_mode_are_those_of_the_originals(site: Site) -> None:
    restore.run(site.settings, site.backup)
    modes = {
        site.settings.database: 0o640,
        site.settings.chroma_dir: 0o750,
        site.settings.chroma_dir / "chroma.sqlite3": 0o640,
    }
    assert {path: path.stat().st_mode & 0o777 for path in modes} == modes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.usefixtures("unproven")
def test_the_bots_own_backup_takes_the_owner_of_what_it_replaces(site: Site) -> None:
    found = site.settings
    for path in (found.database, found.chroma_dir):
        os.chown(path, 1234, 1234)
    own = bots_backup(found)
    restore.run(found, own)
    owned = [found.database, found.chroma_dir, *found.chroma_dir.rglob("*")]
    assert {path.stat().st_uid for path in owned} == {1234}


def bots_backup(found: Settings) -> str:
    """A backup in the bot's own format, of the live data at rest."""
    target = found.backup_dir / "nescordbot_backup_20260101_000000"
    shutil.copytree(found.chroma_dir, target / "chromadb_data")
    shutil.copy(found.database, target / "nescordbot.db")
    return target.name


@pytest.mark.usefixtures("unproven")
def test_a_lost_volume_is_restored_with_its_directories(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore.run(site.settings, site.backup, to=out)
    elsewhere = shutil.copytree(site.settings.backup_dir, tmp_path / "backups")
    shutil.rmtree(site.settings.app_dir / "data")
    found = dataclasses.replace(
        site.settings,
        backup_dir=elsewhere,
        database=site.settings.app_dir / "data/deep/nescordbot.db?timeout=20&journal_mode=WAL",
    )
    result = restore.run(found, site.backup)
    assert (result.kept, result.remove_command) == ((), "")
    assert found.database.read_bytes() == (out / "nescordbot.db").read_bytes()
    assert tree(found.chroma_dir) == tree(out / "chromadb")
    assert {path.name for path in found.app_dir.glob("data/*")} == {"chromadb", "deep"}


def test_a_dry_run_says_everything_and_does_nothing(site: Site) -> None:
    before = tree(site.settings.app_dir)
    result = restore.run(site.settings, site.backup, dry_run=True, now=NOON)
    assert tree(site.settings.app_dir) == before
    assert result.dry_run
    assert "Nothing was done" in result.headline
    said = "\n".join(result.steps)
    for path in (site.settings.chroma_dir, site.settings.database, *result.kept):
        assert str(path) in said
    assert f"{site.settings.database}-wal" in said
    assert not result.kept[0].exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nescordbot.db", HOLD_WAL),
        ("nescordbot.db-wal", HOLD_FILE),
        ("chromadb/chroma.sqlite3", HOLD_FILE),
        ("chromadb/chroma.sqlite3", HOLD_MAP),
    ],
)
def test_a_process_that_holds_the_data_is_named(site: Site, name: str, code: str) -> None:
    path = site.settings.database.parent / name
    with holding(path, code) as pid:
        for options in ({}, {"dry_run": True}):
            error = refused(site, rf"process {pid} \(python.* has {path.parent}", **options)
            assert "sleep infinity" in error.hint
    restore.run(site.settings, site.backup, dry_run=True)


def test_a_bot_of_another_user_is_betrayed_by_its_lock(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(pid: int) -> Iterator[tuple[int, int]]:
        raise PermissionError

    monkeypatch.setattr(holders, "_held", hidden)
    with holding(site.settings.database, HOLD_WAL) as pid:
        refused(site, rf"process {pid} \(python.* has .*-shm open")
    result = restore.run(site.settings, site.backup, dry_run=True)
    assert by_name(result)["restore.holders"].status is Status.WARN


def test_a_file_that_cannot_be_asked_for_its_locks_is_not_taken_for_free(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refused_open(path: Path, *arguments: int, **options: int) -> int:
        if str(path).endswith("-shm"):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused_open)
    check = by_name(restore.run(site.settings, site.backup, dry_run=True))["restore.holders"]
    assert check.status is Status.WARN
    assert "-shm (Too many open files) cannot be looked into" in check.summary


def test_a_process_whose_files_cannot_be_looked_at_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its files lies where nobody answers (ESTALE, ENOTCONN): here a link to itself."""
    process = tmp_path / "proc" / "7"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "3").symlink_to("3")
    (process / "cmdline").write_text("bot")
    (process / "comm").write_text("bot")
    monkeypatch.setattr(holders, "_PROC", process.parent)
    check = by_name(restore.run(site.settings, site.backup, dry_run=True))["restore.holders"]
    assert check.status is Status.WARN
    assert "process 7 (bot) cannot be looked into" in check.summary


def test_a_bot_that_starts_while_the_copy_is_verified_is_noticed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:

        def start(*_: object) -> list[Check]:
            stack.enter_context(holding(site.settings.chroma_dir / "chroma.sqlite3", HOLD_FILE))
            return []

        monkeypatch.setattr(restore, "_proofs", start)
        refused(site, "has .*chroma.sqlite3 open")


@pytest.mark.usefixtures("unproven")
def test_a_damaged_backup_is_refused_by_file_and_the_newest_whole_one_offered(site: Site) -> None:
    path = site.settings.backup_dir / "store.sqlite3"
    newest = "(SELECT max(number) FROM page WHERE number NOT IN (SELECT page FROM place JOIN file"
    newest += " ON file.number = file WHERE generation = 1))"
    write(path, f"UPDATE page SET data = zeroblob(length(data)) WHERE number = {newest}")
    error = refused(site, "is damaged: nescordbot.db; the live data is untouched")
    assert error.hint.startswith(f"nescord-ops restore {site.older}")
    restore.run(site.settings, site.older)


def test_a_torn_copy_of_the_bots_is_refused_and_can_be_had_elsewhere(
    site: Site, tmp_path: Path
) -> None:
    own = bots_backup(site.settings)
    target = site.settings.backup_dir / own / "nescordbot.db"
    with target.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(20 * 4096))
    error = refused(dataclasses.replace(site, backup=own), "database.integrity")
    assert site.backup in error.hint
    result = restore.run(site.settings, own, to=tmp_path / "out")
    assert result.status is Status.FAIL


@pytest.mark.usefixtures("unproven")
def test_notes_without_vectors_are_restored_only_when_asked_to(site: Site) -> None:
    found = site.settings
    name = "backup_20260101_000000_manual.db"
    with contextlib.closing(sqlite3.connect(found.database)) as source:
        copied = sqlite3.connect(found.backup_dir / name)
        source.backup(copied)
        copied.close()
    alone = dataclasses.replace(site, backup=name)
    assert "--only database" in refused(alone, "holds no vectors").hint
    before = live(found)
    result = restore.run(found, name, only="database")
    assert result.placed == (found.database,)
    assert {n: d for n, d in before.items() if "chroma" in n} == {
        n: d for n, d in live(found).items() if "chroma" in n
    }
    assert "chromadb" not in {path.name for path in result.kept[0].iterdir()}


@pytest.mark.usefixtures("unproven")
def test_the_vectors_alone_are_restored_and_the_notes_stay(
    site: Site, tiny: Callable[..., Path]
) -> None:
    found, before = site.settings, live(site.settings)
    held = found.chroma_dir.rename(found.chroma_dir.with_name("held"))
    place = tiny(found.app_dir / "elsewhere", "64m") / "chromadb"
    shutil.copytree(held, place)
    apart = dataclasses.replace(found, chroma_dir=place)
    assert mount_of(place) != mount_of(found.database)
    result = restore.run(apart, site.backup, only="chroma")
    after = live(apart)
    assert {n: d for n, d in after.items() if "chroma" not in n} == {
        n: d for n, d in before.items() if "chroma" not in n
    }
    assert after != before
    assert result.placed == (place,)
    assert tree(result.kept[0] / "chromadb") == tree(held)
    assert not [*found.database.parent.glob(".*"), *place.parent.glob(".*")]
    (told,) = (check for check in result.checks if check.name == "restore.notes")
    assert "clean unsynced --apply" in told.hint


@pytest.mark.usefixtures("unproven")
def test_a_backup_without_vectors_is_none_to_restore_them_from(site: Site) -> None:
    name = "backup_20260101_000000_manual.db"
    shutil.copyfile(site.settings.database, site.settings.backup_dir / name)
    refused(dataclasses.replace(site, backup=name), "holds no vectors", only="chroma")
    refused(site, "'vectors' is no store", only="vectors")


def test_an_id_that_does_not_exist_or_is_a_path_is_refused(site: Site) -> None:
    for wrong in ("nescordbot_backup_20000101_000000", "../app", ""):
        error = refused(dataclasses.replace(site, backup=wrong), "backup")
        assert isinstance(error, BackupError)
        assert error.hint == "nescord-ops backup list"


def test_links_and_other_things_in_the_live_places_are_refused(site: Site) -> None:
    found = site.settings
    moved = found.chroma_dir.rename(found.chroma_dir.with_name("elsewhere"))
    found.chroma_dir.symlink_to(moved)
    assert str(moved) in refused(site, "is a link").hint
    found.chroma_dir.unlink()
    found.chroma_dir.symlink_to(found.chroma_dir)
    refused(site, "is a link")
    out = found.app_dir / "out"
    assert restore.run(found, site.backup, to=out, dry_run=True).placed[0] == out / "chromadb"
    found.chroma_dir.unlink()
    found.chroma_dir.write_text("")
    assert "CHROMADB_PERSIST_DIRECTORY" in refused(site, "is no directory but file").hint
    inside = dataclasses.replace(found, chroma_dir=found.database.parent)
    refused(dataclasses.replace(site, settings=inside), "in Chroma's directory")


def test_backups_that_a_link_leads_into_chromas_directory_are_not_moved_with_it(
    site: Site,
) -> None:
    found, way = site.settings, site.settings.app_dir / "way"
    way.symlink_to(found.chroma_dir)
    found.backup_dir.rename(found.chroma_dir / "backups")
    found = dataclasses.replace(found, backup_dir=way / "backups")
    before = tree(found.backup_dir)
    with pytest.raises(VolumeError, match="in Chroma's directory"):
        restore.run(found, site.backup)
    assert tree(found.backup_dir) == before


@pytest.mark.usefixtures("unproven")
def test_one_directory_that_two_ways_lead_to_is_one(site: Site, tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.symlink_to(site.settings.database.parent)
    found = dataclasses.replace(site.settings, chroma_dir=way / "chromadb")
    result = restore.run(found, site.backup)
    restore.run(found, site.backup, to=tmp_path / "out")
    assert live(found) == tree(tmp_path / "out")
    assert len(result.kept) == 1


def test_a_dry_run_before_the_directories_of_both_stores_are_there(
    site: Site, tmp_path: Path
) -> None:
    lost = tmp_path / "lost"
    database, chroma = lost / "a" / "nescordbot.db", lost / "b" / "chromadb"
    found = dataclasses.replace(site.settings, database=database, chroma_dir=chroma)
    assert restore.run(found, site.backup, dry_run=True).placed == (chroma, database)
    assert not lost.exists()


def test_a_directory_that_is_not_empty_is_refused(site: Site, tmp_path: Path) -> None:
    full, link = tmp_path / "full", tmp_path / "link"
    (full / "mine").mkdir(parents=True)
    link.symlink_to(tmp_path / "nowhere")
    for to in (full, link, full / "mine" / ".." / ".." / "full"):
        refused(site, "not an empty directory", to=to)
    refused(site, "in Chroma's directory", to=site.settings.chroma_dir / "new")


@pytest.mark.usefixtures("unproven")
def test_stores_on_two_file_systems_are_both_swapped(
    site: Site, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    other = tiny(tmp_path / "other", "64m")
    found = dataclasses.replace(site.settings, chroma_dir=other / "chromadb")
    shutil.copytree(site.settings.chroma_dir, found.chroma_dir)
    result = restore.run(found, site.backup)
    restore.run(found, site.backup, to=tmp_path / "out")
    assert live(found) == tree(tmp_path / "out")
    assert {mount_of(path) for path in result.kept} == {mount_of(other), mount_of(tmp_path)}
    assert not list(other.glob(".*"))


def test_a_mount_point_and_a_read_only_volume_are_refused(
    site: Site, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    mounted = tiny(tmp_path / "mounted", "32m")
    found = dataclasses.replace(site.settings, chroma_dir=mounted)
    refused(dataclasses.replace(site, settings=found), "is a mount point")
    found = dataclasses.replace(site.settings, chroma_dir=mounted / "chromadb")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    refused(dataclasses.replace(site, settings=found), "read-only file system")


def test_no_room_is_refused_before_anything_is_written(
    site: Site, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    small = tiny(tmp_path / "small", "8m")
    found = dataclasses.replace(site.settings, chroma_dir=small / "chromadb")
    refused(dataclasses.replace(site, settings=found), "free, and the copy takes")


@pytest.mark.usefixtures("unproven")
def test_a_disk_that_fills_up_midway_leaves_the_live_data_and_no_rubbish(
    site: Site, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny(tmp_path / "small", "2m")
    found = dataclasses.replace(site.settings, chroma_dir=small / "chromadb")
    monkeypatch.setattr("nescord_ops.inventory.room_bytes", lambda _: 0)
    monkeypatch.setattr(restore, "MARGIN_BYTES", 0)
    refused(dataclasses.replace(site, settings=found), "No space left on device.*untouched")
    assert list(small.iterdir()) == []


@pytest.mark.usefixtures("unproven")
def test_a_disk_that_takes_no_sync_leaves_the_live_data_and_no_rubbish(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = inventory.materialise

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def then_full(*arguments: Any, **options: Any) -> Snapshot:
        copy = write(*arguments, **options)
        monkeypatch.setattr(os, "fsync", full)
        return copy

    monkeypatch.setattr(inventory, "materialise", then_full)
    refused(site, "No space left on device; the live data is untouched")


def test_without_scratch_space_chroma_is_not_opened_and_that_is_said(
    site: Site, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tiny(tmp_path / "small", "1m")))
    result = restore.run(site.settings, site.backup)
    check = by_name(result)["chroma.roundtrip"]
    assert check.status is Status.UNKNOWN
    assert "not opened with Chroma: scratch space" in check.summary


def test_two_restores_at_once_are_one_too_many(site: Site) -> None:
    with swap.alone(site.settings):
        refused(site, "another restore or clean-up is at work")


def recover(found: Settings) -> str:
    """What every restore and clean-up begins with."""
    with swap.alone(found):
        return swap.recover(found)


def in_child(work: Callable[[], object]) -> int:
    """Run work in a forked process and return its pid; it ends with 0, or 1 for any error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def check_after_kill(site: Site, old: Tree, new: Tree) -> str:
    """Recover, and return `old` or `new`: both stores are one of them, and nothing is left over."""
    found, whole = site.settings, new["nescordbot.db"] != old["nescordbot.db"]
    replaced = {name: data for name, data in old.items() if whole or "chroma" in name}
    said = recover(found)
    now = live(found)
    assert now in (old, new)
    kept = [path for path in found.database.parent.glob("replaced_*") if any(path.iterdir())]
    assert [tree(path) for path in kept] == ([] if now == old else [replaced])
    assert not list(found.database.parent.glob(".*"))
    assert ("undone" in said) <= (now == old)
    assert ("completed" in said) <= (now == new)
    assert recover(found) == ""
    return "old" if now == old else "new"


@pytest.fixture(scope="module")
def outcome(base: Site, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What the live stores are after the restore."""
    out = tmp_path_factory.mktemp("outcome") / "out"
    restore.run(base.settings, base.backup, to=out)
    return tree(out)


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize(("only", "news"), [("", 10), ("chroma", 5)])
def test_killed_at_every_step_of_the_swap_both_stores_are_old_or_new(
    base: Site, outcome: Tree, tmp_path: Path, only: str, news: int
) -> None:
    """Before and after every rename, sync and removal, one after the other until none is left."""
    old = live(base.settings)
    if only:
        notes = {name: data for name, data in old.items() if "chroma" not in name}
        outcome = {**{n: d for n, d in outcome.items() if "chroma" in n}, **notes}
    ends = []
    for deadly in itertools.count():
        site = copy_of(base, tmp_path / "app")
        pid = in_child(lambda: kill_at(deadly, site, only))  # noqa: B023
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        ends.append(check_after_kill(site, old, outcome))
        shutil.rmtree(tmp_path / "app")
    assert ends == sorted(ends, reverse=True)  # "old" up to the note of intent, "new" after it
    assert ends.count("old") > 3
    assert ends.count("new") > news


def kill_at(deadly: int, site: Site, only: str) -> None:
    """Restore, and be killed before the step of that number."""
    steps = itertools.count()

    def lethal(work: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if next(steps) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)

        return step

    for name in ("rename", "unlink", "mkdir", "rmdir"):
        setattr(Path, name, lethal(getattr(Path, name)))
    for name in ("sync", "sync_entry"):
        setattr(swap, name, lethal(getattr(swap, name)))
    swap.volume.remove_tree = lethal(swap.volume.remove_tree)  # type: ignore[assignment]
    restore.run(site.settings, site.backup, only=only)


@pytest.mark.usefixtures("unproven")
def test_a_swap_that_was_given_up_is_not_completed_from_what_is_left_of_it(site: Site) -> None:
    """The first step is refused, and a kill comes while the copies are being removed."""
    old = live(site.settings)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    def remove_some(staging: Path) -> None:
        (staging / "chromadb" / "chroma.sqlite3").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        swap._exchange = lambda each: refuse(each.kept)
        swap.volume.remove_tree = remove_some  # type: ignore[assignment]
        restore.run(site.settings, site.backup)

    _, status = os.waitpid(in_child(work), 0)
    assert os.WIFSIGNALED(status)
    assert "undone" in recover(site.settings)
    assert live(site.settings) == old


@pytest.mark.usefixtures("unproven")
def test_a_swap_that_cannot_even_be_given_up_says_how_to_go_on(
    site: Site, outcome: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(swap, "_exchange", lambda each: refuse(each.kept))
        broken.setattr(Path, "unlink", refuse)
        with pytest.raises(VolumeError, match="stopped half way") as caught:
            restore.run(site.settings, site.backup)
    assert "run the same command again" in caught.value.hint
    assert "completed" in recover(site.settings)
    assert live(site.settings) == outcome


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize("at", [2, 5])
def test_an_interrupt_amid_the_swap_comes_too_late(
    site: Site, outcome: Tree, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls, sync = itertools.count(1), swap.sync

    def interrupted(directory: Path) -> None:
        sync(directory)
        if next(calls) == at:  # the first is that of the note of intent
            raise KeyboardInterrupt

    monkeypatch.setattr(swap, "sync", interrupted)
    restore.run(site.settings, site.backup)
    assert next(calls) > at
    assert live(site.settings) == outcome
    assert not list(site.settings.database.parent.glob(".*"))


@pytest.mark.usefixtures("unproven")
def test_an_interrupt_at_the_last_line_before_the_swap_undoes_everything(site: Site) -> None:
    def interrupt(text: str) -> None:
        if text == "swapping":
            raise KeyboardInterrupt

    old = live(site.settings)
    with pytest.raises(KeyboardInterrupt):
        restore.run(site.settings, site.backup, progress=interrupt)
    assert live(site.settings) == old
    assert not list(site.settings.database.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [100])
def test_killed_at_any_moment_both_stores_are_old_or_new(
    base: Site, outcome: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, chance = live(base.settings), random.Random(kills)
    seconds = restore.run(copy_of(base, tmp_path / "timed").settings, base.backup).seconds
    ends = []
    for number in range(kills):
        site = copy_of(base, tmp_path / f"app{number}")
        pid = in_child(lambda: restore.run(site.settings, site.backup))  # noqa: B023
        time.sleep(chance.uniform(0, seconds * 1.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends.append(check_after_kill(site, old, outcome))
        shutil.rmtree(site.settings.app_dir)
    assert "old" in ends


def interrupted(site: Site) -> None:
    """A restore killed when all is written and said, and nothing is swapped."""

    def die() -> None:
        restore._proofs = lambda *_: []  # type: ignore[assignment]
        swap._exchange = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        restore.run(site.settings, site.backup, now=NOON)

    os.waitpid(in_child(die), 0)


def test_the_next_restore_says_what_became_of_the_interrupted_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(site)
    assert "would be completed" in restore.run(site.settings, site.older, dry_run=True).recovered
    monkeypatch.setattr(restore, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(
        VolumeError, match=r"restore of .* was completed; .* Then: .* the copy takes"
    ):
        restore.run(site.settings, site.older)
    monkeypatch.undo()
    interrupted(site)
    result = restore.run(site.settings, site.older)
    assert f"restore of {site.backup} was completed" in result.recovered
    assert by_name(result)["restore.interrupted"].status is Status.WARN


@pytest.mark.usefixtures("unproven")
def test_what_a_bot_wrote_in_between_is_kept_too(site: Site, outcome: Tree) -> None:
    old = live(site.settings)
    interrupted(site)
    found, kept = site.settings, site.settings.database.parent / "replaced_20260102_120000"
    kept.mkdir(mode=0o700)
    for suffix in ("-wal", "-shm", ""):
        path = database.beside(found.database, suffix)
        path.rename(kept / path.name)
    write(found.database, "CREATE TABLE made_by_the_bot(n)")
    assert "completed" in recover(found)
    assert live(found) == outcome
    assert {name: data for name, data in old.items() if "chroma" not in name} == {
        name: data for name, data in tree(kept).items() if name in old and "chroma" not in name
    }
    with contextlib.closing(sqlite3.connect(kept / "nescordbot.db.2")) as connection:
        connection.execute("SELECT n FROM made_by_the_bot")


def test_an_interrupted_restore_waits_for_the_bot_to_stop(site: Site) -> None:
    interrupted(site)
    with (
        holding(site.settings.database, HOLD_WAL) as pid,
        pytest.raises(VolumeError, match=f"process {pid}"),
    ):
        recover(site.settings)
    assert "completed" in recover(site.settings)


def test_no_backup_is_taken_between_the_swaps_of_both_stores(site: Site) -> None:
    """One store is old and one new: a backup of that would be no moment's, and prune good ones."""
    found, exchange = site.settings, swap._exchange

    def half(each: swap.Swap) -> None:
        if each.name == "database":
            os.kill(os.getpid(), signal.SIGKILL)
        exchange(each)

    def work() -> None:
        restore._proofs = lambda *_: []  # type: ignore[assignment]
        swap._exchange = half
        restore.run(found, site.backup)

    def begin(text: str) -> None:
        if text == "copying both stores":
            note.write_text(said)

    os.waitpid(in_child(work), 0)
    note, before = found.database.parent / swap.INTENT, inventory.listing(found).backups
    said = note.read_text()
    seen = verify.run(found, depth="quick")
    assert {check.name: check.status for check in seen.checks}["location.swap"] is Status.FAIL
    assert "a restore was interrupted" in seen.headline
    causes = troubleshoot.run(found, depth="quick").diagnoses
    assert "interrupted-swap" in {cause.name for cause in causes}
    for progress in (None, begin):
        with pytest.raises(VolumeError, match="at work, or was interrupted"):
            backup.create(found, keep=1, progress=progress)
        note.unlink()
    assert inventory.listing(found).backups == before


def test_an_interrupted_restore_of_other_places_and_a_forged_note_are_left_alone(
    site: Site,
) -> None:
    interrupted(site)
    note = site.settings.database.parent / swap.INTENT
    other = dataclasses.replace(site.settings, chroma_dir=site.settings.app_dir / "other")
    before = tree(site.settings.app_dir)
    with pytest.raises(VolumeError, match="the settings differ now"):
        recover(other)
    said = note.read_text()
    for forged in ("", "[]", said.replace("20260102_120000", "../../x")):
        note.write_text(forged)
        with pytest.raises(VolumeError, match="no note of a swap"):
            recover(site.settings)
    note.write_text(said)
    assert tree(site.settings.app_dir) == before


@pytest.mark.usefixtures("unproven")
def test_a_rename_that_is_refused_undoes_everything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def stubborn(path: Path, target: Path | str, **options: int) -> None:
        if path == site.settings.chroma_dir:
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, target, **options)

    monkeypatch.setattr(os, "rename", stubborn)
    refused(site, "Operation not permitted; the live data is untouched")


def test_a_swap_goes_on_after_a_fault_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"chroma": tmp_path / "chromadb", "database": tmp_path / "nescordbot.db"}
    swaps = swap.plan(places, datetime.now(UTC))
    for each in swaps:
        each.staged.parent.mkdir(mode=0o700, exist_ok=True)
        for path, text in ((each.live, "old"), (each.staged, "new")):
            if each.name == "chroma":
                path.mkdir()
                path /= "file"
            path.write_text(text)
    rename, failed = Path.rename, []

    def once(path: Path, target: Path) -> Path:
        if path == swaps[1].staged and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    swap.finish(swaps, None)
    assert failed
    assert places["database"].read_text() == (places["chroma"] / "file").read_text() == "new"
    assert (swaps[1].kept / "nescordbot.db").read_text() == "old"
