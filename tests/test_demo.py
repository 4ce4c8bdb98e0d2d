"""The sample volume is what a real bot leaves, and each fault is real."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo

from nescord_ops import chroma, settings
from nescord_ops import demo as demos
from nescord_ops.demo import Demo
from nescord_ops.errors import SettingsError, VolumeError
from nescord_ops.faults import BLOAT_BYTES, FAULTS, GHOST, WAL_BYTES

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
_ASK = """
import json, sys
from pathlib import Path
from nescord_ops.chroma_build import collection_of, open_client, vectors
try:
    collection = collection_of(open_client(Path(sys.argv[1])))
    rows = collection.get(include=["documents", "metadatas"])
    query = vectors(["q"], 0, 0)
    found = collection.query(query_embeddings=query, n_results=max(1, len(rows["ids"])))
    answer = {"rows": rows, "found": len(found["ids"][0]), "error": ""}
except Exception as error:
    answer = {"error": str(error)}
print(json.dumps(answer))
"""


def rows(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def chroma_rows(demo: Demo, query: str) -> list[Any]:
    return rows(demo.chroma_dir / "chroma.sqlite3", query)


def ask_chroma(demo: Demo) -> dict[str, Any]:
    """Return what a new Chroma client says about the store; it may change the files."""
    command = [sys.executable, "-c", _ASK, str(demo.chroma_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_the_same_arguments_give_the_same_volume(tmp_path: Path) -> None:
    one, two, other = (
        demos.create(tmp_path / name, notes=20, seed=seed, now=NOW)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert dump(one.database) == dump(two.database)
    assert dump(one.database) != dump(other.database)
    vectors = "SELECT id, vector FROM embeddings_queue ORDER BY seq_id"
    assert chroma_rows(one, vectors) == chroma_rows(two, vectors)
    assert chroma_rows(one, vectors) != chroma_rows(other, vectors)
    assert one.log_file.read_bytes() == two.log_file.read_bytes()


def test_the_healthy_volume_is_sound_and_its_stores_agree(demo: MakeDemo) -> None:
    made = demo()
    assert rows(made.database, "PRAGMA integrity_check") == [("ok",)]
    assert rows(made.database, "PRAGMA foreign_key_check") == []
    assert rows(made.database, "PRAGMA journal_mode") == [("wal",)]
    assert rows(made.database, "SELECT version FROM schema_migrations") == [
        (version,) for version in range(1, 9)
    ]
    notes = rows(
        made.database,
        "SELECT 'note_' || id, 'Title: ' || title || char(10, 10) || content || char(10, 10)"
        " || 'Tags: ' || tags FROM knowledge_notes",
    )
    answer = ask_chroma(made)
    assert dict(zip(answer["rows"]["ids"], answer["rows"]["documents"], strict=True)) == dict(notes)
    assert answer["found"] > 200  # of 300; the index is approximate
    assert set(answer["rows"]["metadatas"][0]) == {
        *("title", "source", "created_at", "updated_at", "user_id", "content_type", "tags")
    }
    found = rows(made.database, "SELECT count(*) FROM knowledge_notes_fts('question* OR write')")
    assert found[0][0] > 100


def test_the_healthy_volume_leaves_no_journal_behind(base_demo: Demo) -> None:
    names = [path.name for path in base_demo.app_dir.rglob("*")]
    assert not [name for name in names if name.endswith(("-wal", "-shm", "-journal"))]


def test_settings_find_every_place_of_the_volume(base_demo: Demo) -> None:
    found = settings.load(app_dir=base_demo.app_dir)
    assert found.database == base_demo.database
    assert found.database_meant is None
    assert found.chroma_dir == base_demo.chroma_dir
    assert found.backup_dir == base_demo.backup_dir
    assert found.log_file == base_demo.log_file
    assert (found.dimension, found.volume_gb) == (768, 5)


def test_notes_spread_over_eight_months_and_grow(base_demo: Demo) -> None:
    first, last = rows(
        base_demo.database, "SELECT min(created_at), max(created_at) FROM knowledge_notes"
    )[0]
    span = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    assert timedelta(days=220) < span <= timedelta(days=240)
    middle = (datetime.fromisoformat(first) + span / 2).isoformat()
    (late,) = rows(
        base_demo.database, f"SELECT count(*) FROM knowledge_notes WHERE created_at > '{middle}'"
    )
    assert base_demo.notes * 0.52 < late[0] < base_demo.notes * 0.65


def test_the_bots_own_backups_of_each_kind_are_complete(base_demo: Demo, tmp_path: Path) -> None:
    (whole,) = base_demo.backup_dir.glob("nescordbot_backup_*")
    (plain,) = base_demo.backup_dir.glob("backup_*_manual.db")
    (packed,) = base_demo.backup_dir.glob("backup_*_auto.db.zip")
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["backup_id"] == whole.name
    with zipfile.ZipFile(packed) as archive:
        (member,) = archive.namelist()
        archive.extract(member, tmp_path)
    wanted = dump(base_demo.database)
    assert all(dump(x) == wanted for x in (whole / "nescordbot.db", plain, tmp_path / member))
    kept = "SELECT count(*) FROM embeddings"
    assert rows(whole / "chromadb_data" / "chroma.sqlite3", kept) == chroma_rows(base_demo, kept)


def test_the_newest_notes_wait_when_fewer_vectors_are_asked_for(tmp_path: Path) -> None:
    made = demos.create(tmp_path / "app", notes=10, vectors=7, now=NOW, backups=False)
    status = "SELECT sync_status, count(*) FROM sync_metadata GROUP BY 1 ORDER BY 1"
    assert rows(made.database, status) == [("pending", 3), ("synced", 7)]
    assert chroma_rows(made, "SELECT count(*) FROM embeddings") == [(7,)]


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(VolumeError, match="not empty"):
        demos.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VolumeError, match="cannot be made"):
        demos.create(tmp_path / "file")


@pytest.mark.parametrize("arguments", [{"faults": ["no-such"]}, {"notes": 0}, {"notes": 10**9}])
def test_arguments_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError):
        demos.create(tmp_path / "app", **arguments)
    assert not (tmp_path / "app").exists()


def three_slash_url(demo: Demo) -> None:
    found = settings.load(app_dir=demo.app_dir)
    assert found.database_meant == demo.data_dir / "nescordbot.db"
    assert found.database == Path(f"{demo.app_dir}{found.database_meant}")
    assert found.database.is_file()
    assert not found.database_meant.exists()


def query_string_file(demo: Demo) -> None:
    found = settings.load(app_dir=demo.app_dir)
    assert found.database == demo.data_dir / "nescordbot.db?timeout=20&journal_mode=WAL"
    assert found.database.is_file()
    assert not (demo.data_dir / "nescordbot.db").exists()


def wrong_dimension(demo: Demo) -> None:
    assert chroma_rows(demo, "SELECT dimension FROM collections") == [(384,)]
    assert rows(demo.database, "SELECT DISTINCT sync_status FROM sync_metadata") == [("failed",)]
    assert "dimension of 384, got 768" in ask_chroma(demo)["error"]


def lost_vectors(demo: Demo) -> None:
    answer = ask_chroma(demo)
    assert len(answer["rows"]["ids"]) == 300
    assert answer["found"] < 10


def torn_copy(demo: Demo) -> None:
    (index,) = (path for path in demo.chroma_dir.iterdir() if path.is_dir())
    kept = {name for name, _ in chroma.id_map(index)}
    waiting = {name for (name,) in chroma_rows(demo, "SELECT id FROM embeddings_queue")}
    counted = {name for (name,) in chroma_rows(demo, "SELECT embedding_id FROM embeddings")}
    assert (len(counted), len(kept), len(counted - kept - waiting)) == (300, 270, 30)
    answer = ask_chroma(demo)
    assert len(answer["rows"]["ids"]) == 300
    assert answer["found"] <= 270


def truncated_pickle(demo: Demo) -> None:
    assert ask_chroma(demo)["error"]


def stale_vector(demo: Demo) -> None:
    ((key, content),) = rows(
        demo.database,
        "SELECT id, content FROM knowledge_notes JOIN sync_metadata ON note_id = id"
        " WHERE content LIKE '%訂正%' AND sync_status = 'synced'"
        " AND knowledge_notes.updated_at < last_synced_at",
    )
    stored = ask_chroma(demo)["rows"]
    assert content not in stored["documents"][stored["ids"].index(f"note_{key}")]


def leaked_deletion(demo: Demo) -> None:
    assert rows(demo.database, "SELECT count(*) FROM knowledge_notes") == [(299,)]
    assert chroma_rows(demo, "SELECT count(*) FROM embeddings") == [(300,)]


def orphan_segment(demo: Demo) -> None:
    directories = {path.name for path in demo.chroma_dir.iterdir() if path.is_dir()}
    segments = {key for (key,) in chroma_rows(demo, "SELECT id FROM segments")}
    (left,) = directories - segments
    assert (demo.chroma_dir / left / "data_level0.bin").stat().st_size > 0


def sparse_bloat(demo: Demo) -> None:
    (file,) = demo.chroma_dir.glob("*/link_lists.bin")
    assert file.stat().st_size == BLOAT_BYTES
    assert file.stat().st_blocks * 512 < 1_000_000


def corrupt_page(demo: Demo) -> None:
    assert rows(demo.database, "PRAGMA integrity_check") != [("ok",)]
    assert rows(demo.database, "SELECT count(*) FROM knowledge_notes") == [(300,)]


def orphan_sync_row(demo: Demo) -> None:
    orphans = (
        "SELECT note_id FROM sync_metadata WHERE note_id NOT IN (SELECT id FROM knowledge_notes)"
    )
    assert rows(demo.database, orphans) == [(GHOST,)]


def no_write_permission(demo: Demo) -> None:
    assert stat.S_IMODE(demo.data_dir.stat().st_mode) == 0o555
    assert stat.S_IMODE(demo.chroma_dir.stat().st_mode) == 0o555


def no_fts(demo: Demo) -> None:
    assert rows(demo.database, "SELECT name FROM sqlite_master WHERE name LIKE '%fts%'") == []
    assert rows(demo.database, "SELECT count(*) FROM schema_migrations") == [(8,)]


def large_wal(demo: Demo) -> None:
    wal = demo.database.with_name("nescordbot.db-wal")
    assert wal.stat().st_size >= WAL_BYTES


def old_backups_only(demo: Demo) -> None:
    names = sorted(path.name for path in demo.backup_dir.iterdir())
    assert [name.split("_")[0] for name in names] == ["backup", "backup"]
    newest = datetime.strptime(names[-1][7:22], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    assert datetime.now(UTC) - newest > timedelta(days=40)


EVIDENCE: dict[str, Callable[[Demo], None]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        three_slash_url, query_string_file, wrong_dimension, lost_vectors, torn_copy,
        truncated_pickle, stale_vector, leaked_deletion, orphan_segment, sparse_bloat,
        corrupt_page, orphan_sync_row, no_write_permission, no_fts, large_wal, old_backups_only,
    )
}  # fmt: skip


def test_every_fault_has_its_evidence() -> None:
    assert EVIDENCE.keys() == FAULTS.keys()


IN_DATABASE = {"wrong-dimension", "stale-vector", "leaked-deletion", "corrupt-page"} | {
    *("orphan-sync-row", "no-fts", "three-slash-url", "query-string-file")
}
IN_CHROMA = {"wrong-dimension", "lost-vectors", "torn-copy", "truncated-pickle"} | {
    *("orphan-segment", "sparse-bloat")
}


def same(one: Path, two: Path) -> bool:
    """Whether two trees have the same files with the same bytes."""
    names = [sorted(path.relative_to(root) for path in root.rglob("*")) for root in (one, two)]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (two / name).read_bytes()
        for name in names[0]
        if (one / name).is_file()
    )


@pytest.mark.slow  # test_verify sees every fault turn its checks, and no other
@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_really_there_and_touches_nothing_else(
    demo: MakeDemo, base_demo: Demo, name: str
) -> None:
    made = demo(name)
    if name not in IN_DATABASE:
        assert made.database.read_bytes() == base_demo.database.read_bytes()
    if name not in IN_CHROMA:
        assert same(made.chroma_dir, base_demo.chroma_dir)
    if name != "old-backups-only":
        assert same(made.backup_dir, base_demo.backup_dir)
    if not name.endswith(("url", "file")):
        assert made.env_file.read_bytes() == base_demo.env_file.read_bytes()
    EVIDENCE[name](made)


@pytest.mark.slow
def test_faults_can_be_combined_in_any_order(demo: MakeDemo) -> None:
    made = demo("large-wal", "query-string-file", "three-slash-url", "stale-vector", "torn-copy")
    assert rows(
        made.database, "SELECT count(*) FROM knowledge_notes WHERE content LIKE '%訂正%'"
    ) == [(1,)]
    assert made.database.name.endswith("?timeout=20&journal_mode=WAL")
    torn_copy(made)


def test_a_fault_that_nothing_is_there_for_is_refused(tmp_path: Path) -> None:
    made = demos.create(tmp_path / "app", notes=3, vectors=0, backups=False)
    for name in (
        "stale-vector",
        "leaked-deletion",
        "sparse-bloat",
        "lost-vectors",
        "truncated-pickle",
    ):
        with pytest.raises(SettingsError, match="no vector is there"):
            FAULTS[name].plant(made)
    with pytest.raises(SettingsError, match="no vector is there"):
        demos.create(tmp_path / "b", notes=3, vectors=0, faults=["stale-vector"], backups=False)
    assert list((tmp_path / "b").iterdir()) == []
