"""The bot's own backups: recognised by name, unpacked within bounds, never trusted."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from conftest import MakeDemo

from nescord_ops import chroma, database, inventory, legacy, settings, volume
from nescord_ops.demo import Demo
from nescord_ops.errors import BackupError, OpsError, VolumeError

NAME = "backup_20260102_030405_auto.db.zip"


def unpack(made: Demo, path: Path, to: Path) -> legacy.Snapshot:
    found = legacy.recognise(path)
    assert found
    return inventory.unpack(found, settings.load(app_dir=made.app_dir), to)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def test_both_kinds_are_recognised_newest_first(base_demo: Demo) -> None:
    found = legacy.backups(base_demo.backup_dir)
    assert [backup.path.name.split("_")[-1] for backup in found[:2]] == ["auto.db.zip", "manual.db"]
    assert [(b.has_database, b.has_chroma) for b in found] == [(True, False)] * 2 + [(True, True)]
    assert sorted(found, key=lambda backup: backup.taken_at, reverse=True) == list(found)


@pytest.mark.parametrize(
    "name",
    ["nescordbot_backup_20261399_000000", "nescordbot_backup_x", "backup_20260101_000000_auto.txt"],
)
def test_other_names_and_impossible_dates_are_none_of_the_bots(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.db").write_bytes(b"")
    assert legacy.backups(tmp_path) == ()


def test_each_kind_unpacks_to_what_was_backed_up(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    for number, backup in enumerate(legacy.backups(made.backup_dir)):
        copy = unpack(made, backup.path, tmp_path / str(number))
        assert copy.taken_at == backup.taken_at
        assert copy.database
        assert copy.database.read_bytes() == made.database.read_bytes()
        assert ("chroma" in copy.problems) is not backup.has_chroma
        assert (copy.root / "chromadb").exists() is backup.has_chroma
        if copy.chroma:
            live = (made.chroma_dir / chroma.DATABASE).read_bytes()
            assert (copy.chroma / chroma.DATABASE).read_bytes() == live


def test_reading_a_backup_leaves_it_as_it_was(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    for number, backup in enumerate(legacy.backups(made.backup_dir)):
        before = {p: (s.st_mtime_ns, s.st_size) for p, s in volume.walk(backup.path) if s}
        unpack(made, backup.path, tmp_path / str(number))
        assert {p: (s.st_mtime_ns, s.st_size) for p, s in volume.walk(backup.path) if s} == before


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"../../climbed.db": b"x"}, "leads elsewhere"),
        ({"/climbed.db": b"x"}, "leads elsewhere"),
        ({"..\\climbed.db": b"x"}, "leads elsewhere"),
        ({"a.db": b"x", "b.db": b"y"}, "2 members"),
        ({}, "0 members"),
        ({"readme.txt": b"x"}, "where one database is meant"),
        ({"bomb.db": bytes(100 << 20)}, "unpack to 104,857,600"),
    ],
)
def test_an_archive_that_is_not_the_bots_is_refused(
    members: dict[str, bytes], reason: str, base_demo: Demo, tmp_path: Path
) -> None:
    path = archive(tmp_path / NAME, members)
    with pytest.raises(BackupError, match=reason):
        unpack(base_demo, path, tmp_path / "inner" / "to")
    assert {entry.name for entry in tmp_path.iterdir()} <= {NAME, "inner"}
    assert not (tmp_path / "inner" / "to").exists()


def test_a_member_that_is_a_link_is_refused(base_demo: Demo, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / NAME, "w") as packed:
        link = zipfile.ZipInfo("database.db")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(BackupError, match="leads elsewhere"):
        unpack(base_demo, tmp_path / NAME, tmp_path / "to")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_refused(keep: float, demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    (path,) = made.backup_dir.glob("*.zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(BackupError, match="cannot be unpacked"):
        unpack(made, path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_flipped_byte_in_an_archive_is_noticed(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    (path,) = made.backup_dir.glob("*.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(BackupError, match="cannot be unpacked"):
        unpack(made, path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_an_encrypted_archive_is_refused(base_demo: Demo, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("database.db", b"secret")
    content = bytearray(buffer.getvalue())
    content[6] |= 1  # the flag in the member's own header, and the one in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(BackupError, match="password"):
        unpack(base_demo, tmp_path / NAME, tmp_path / "to")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_packed_as_the_bot_never_does_is_refused(
    method: int, base_demo: Demo, tmp_path: Path
) -> None:
    """Damage of these is no error of zipfile's, and a few bytes unpack to any number."""
    with zipfile.ZipFile(tmp_path / NAME, "w", method) as packed:
        packed.writestr("database.db", bytes(10_000))
    content = bytearray((tmp_path / NAME).read_bytes())
    content[60:64] = b"\xff" * 4
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(BackupError, match="packed by method"):
        unpack(base_demo, tmp_path / NAME, tmp_path / "to")


def test_a_member_that_begins_beyond_every_file_is_refused(base_demo: Demo, tmp_path: Path) -> None:
    content = archive(tmp_path / NAME, {"database.db": b"x" * 1000}).read_bytes()
    at, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = bytearray(content[at:end] + struct.pack("<HHQ", 1, 8, 2**64 - 5))
    entry[30:32] = struct.pack("<H", 12)  # of extra fields
    entry[42:46] = b"\xff" * 4  # the offset is in one of them
    tail = content[end : end + 12] + struct.pack("<I", len(entry)) + content[end + 16 :]
    (tmp_path / NAME).write_bytes(content[:at] + entry + tail)
    with pytest.raises(BackupError, match="cannot be unpacked"):
        unpack(base_demo, tmp_path / NAME, tmp_path / "to")


def test_links_lead_nowhere(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo()
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    shutil.move(whole / "chromadb_data", tmp_path / "outside")
    (whole / "chromadb_data").symlink_to(tmp_path / "outside")
    with pytest.raises(BackupError, match="is a link"):
        unpack(made, whole, tmp_path / "to")
    (whole / "chromadb_data").unlink()
    shutil.move(whole / "nescordbot.db", tmp_path / "outside.db")
    (whole / "nescordbot.db").symlink_to(tmp_path / "outside.db")
    with pytest.raises(BackupError, match="holds no store"):
        unpack(made, whole, tmp_path / "to")
    link = made.backup_dir / "nescordbot_backup_20260101_000000"
    link.symlink_to(tmp_path)
    assert legacy.recognise(link) is None


def test_a_backup_without_its_database_is_half_a_backup(demo: MakeDemo, tmp_path: Path) -> None:
    """The bot makes these when DATABASE_URL is one that its backup reads differently."""
    made = demo()
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    (whole / "nescordbot.db").unlink()
    copy = unpack(made, whole, tmp_path / "to")
    assert copy.database is None
    assert copy.chroma
    shutil.rmtree(whole / "chromadb_data")
    with pytest.raises(BackupError, match="holds no store"):
        unpack(made, whole, tmp_path / "other")


def test_no_room_is_said_before_anything_is_unpacked(
    demo: MakeDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo()
    (path,) = made.backup_dir.glob("*.zip")
    space = dataclasses.replace(volume.space(tmp_path), free_bytes=1000)
    monkeypatch.setattr(volume, "space", lambda _: space)
    with pytest.raises(VolumeError, match="no room"):
        unpack(made, path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_room_it_takes_is_known_beforehand(base_demo: Demo, tmp_path: Path) -> None:
    for backup in legacy.backups(base_demo.backup_dir):
        copy = unpack(base_demo, backup.path, tmp_path / backup.path.name)
        taken = volume.usage(copy.root).allocated_bytes
        assert taken == pytest.approx(legacy.unpacked_bytes(backup), rel=0.05, abs=20_000)


def test_a_directory_that_is_not_empty_is_left_alone(base_demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OpsError, match="not an empty directory"):
        unpack(base_demo, next(base_demo.backup_dir.glob("*.db")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_manifest_is_the_bots(base_demo: Demo, tmp_path: Path) -> None:
    (whole,) = base_demo.backup_dir.glob("nescordbot_backup_*")
    target = tmp_path / whole.name
    target.mkdir()
    found = settings.load(app_dir=base_demo.app_dir)
    recognised = legacy.recognise(whole)
    assert recognised
    legacy.write_manifest(target, recognised.taken_at, found)
    ours = json.loads((target / "manifest.json").read_text("utf-8"))
    theirs = json.loads((whole / "manifest.json").read_text("utf-8"))
    theirs["config"]["chromadb_persist_directory"] = str(found.chroma_dir)
    assert ours == theirs


def test_a_database_in_the_middle_of_a_wal_keeps_it(demo: MakeDemo, tmp_path: Path) -> None:
    """A `-wal` that somebody left beside a backup belongs to it."""
    made = demo("large-wal")
    (whole,) = made.backup_dir.glob("nescordbot_backup_*")
    for suffix in ("", "-wal"):
        shutil.copy2(database.beside(made.database, suffix), whole / f"nescordbot.db{suffix}")
    copy = unpack(made, whole, tmp_path / "to")
    assert copy.database
    with database.open_copy(copy.database) as there, database.open_live(made.database) as live:
        count = "SELECT count(*) FROM kv_store"
        assert there.execute(count).fetchone() == live.execute(count).fetchone()
