"""The joined copies at size: what is read from disk grows as the stores do, and no faster."""

from __future__ import annotations

import contextlib
import pickle
import random
import resource
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nescord_ops import agreement, database, settings, stores
from nescord_ops.snapshot import DATABASE, Snapshot

VECTOR, RECORDS = "5f0a4b8e-0000-4000-8000-000000000001", "5f0a4b8e-0000-4000-8000-000000000002"
COLLECTION = "5f0a4b8e-0000-4000-8000-000000000003"
# As chromadb 1.5.9 makes them, as far as they are read here.
CHROMA = f"""
CREATE TABLE collections (id TEXT PRIMARY KEY, name TEXT, dimension INTEGER);
CREATE TABLE collection_metadata (collection_id TEXT, key TEXT, str_value TEXT);
CREATE TABLE segments (id TEXT PRIMARY KEY, type TEXT, scope TEXT, collection TEXT);
CREATE TABLE max_seq_id (segment_id TEXT PRIMARY KEY, seq_id INTEGER);
CREATE TABLE embeddings_queue (seq_id INTEGER PRIMARY KEY, operation INTEGER, topic TEXT, id TEXT);
CREATE TABLE embeddings (id INTEGER PRIMARY KEY, segment_id TEXT NOT NULL,
    embedding_id TEXT NOT NULL, UNIQUE (segment_id, embedding_id));
CREATE TABLE embedding_metadata (id INTEGER, key TEXT NOT NULL, string_value TEXT,
    PRIMARY KEY (id, key));
INSERT INTO collections VALUES ('{COLLECTION}', 'nescord_knowledge', 768);
INSERT INTO segments VALUES ('{VECTOR}', '', 'VECTOR', '{COLLECTION}'),
    ('{RECORDS}', '', 'METADATA', '{COLLECTION}');
"""
BOT = """
CREATE TABLE knowledge_notes (id TEXT PRIMARY KEY, title TEXT, content TEXT, tags TEXT,
    updated_at TEXT);
CREATE TABLE sync_metadata (note_id TEXT PRIMARY KEY, sync_status TEXT, embedding_hash TEXT);
"""


def plant(root: Path, notes: int, note_bytes: int) -> Snapshot:
    """Write copies of both stores with that many notes, all of them in Chroma and its id map."""
    draw = random.Random(notes)
    (root / "chromadb" / VECTOR).mkdir(parents=True)
    ids = [str(uuid.UUID(int=draw.getrandbits(128), version=4)) for _ in range(notes)]
    with contextlib.closing(sqlite3.connect(root / DATABASE)) as bot, bot:
        bot.executescript(BOT)
        rows = ((id_, "t", "x" * note_bytes, "", "2026-01-01") for id_ in ids)
        bot.executemany("INSERT INTO knowledge_notes VALUES (?, ?, ?, ?, ?)", rows)
        bot.execute("INSERT INTO sync_metadata SELECT id, 'synced', '' FROM knowledge_notes")
    with contextlib.closing(sqlite3.connect(root / "chromadb" / "chroma.sqlite3")) as vec, vec:
        vec.executescript(CHROMA)
        records = ((number, RECORDS, f"note_{id_}") for number, id_ in enumerate(ids))
        vec.executemany("INSERT INTO embeddings VALUES (?, ?, ?)", records)
        text = agreement.expected_text("t", "x" * note_bytes, "")
        documents = ((number, "chroma:document", text) for number in range(notes))
        vec.executemany("INSERT INTO embedding_metadata VALUES (?, ?, ?)", documents)
    labels = {f"note_{id_}": label for label, id_ in enumerate(ids)}
    with (root / "chromadb" / VECTOR / "index_metadata.pickle").open("wb") as file:
        pickler = pickle.Pickler(file, 3)
        pickler.fast = True  # without a memo, as Chroma's
        pickler.dump({"dimensionality": None, "id_to_label": labels})
    now = datetime.now(UTC)
    return Snapshot(root, root / DATABASE, root / "chromadb", {}, now, 0.0, 0.0, 1)


@contextlib.contextmanager
def transferred() -> Iterator[list[int]]:
    """Collect the bytes that this process reads and writes meanwhile, cached or not (proc(5))."""
    found: list[int] = []
    before = _bytes()
    yield found
    found.append(_bytes() - before)


def _bytes() -> int:
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    counts = dict(lines)
    return int(counts["rchar"]) + int(counts["wchar"])


@pytest.fixture
def found(tmp_path: Path) -> settings.Settings:
    return settings.load(
        app_dir=tmp_path,
        database_url=f"sqlite:///{tmp_path}/x.db",
        chroma_dir=tmp_path / "x",
    )


def test_an_id_map_larger_than_the_cache_is_read_in_order(
    found: settings.Settings, tmp_path: Path
) -> None:
    copy = plant(tmp_path / "copy", 80_000, 0)
    size = (copy.root / "chromadb" / VECTOR / "index_metadata.pickle").stat().st_size
    with transferred() as once, stores.join(copy, found) as joined:
        assert joined.count("SELECT count(*) FROM hnsw") == 80_000
    assert once[0] < 16 * size  # 40 times if every row is put where it belongs as it comes


def test_a_disk_that_is_full_while_the_id_map_is_read_is_no_damage(
    tmp_path: Path, found: settings.Settings
) -> None:
    copy = plant(tmp_path / "copy", 80_000, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(sqlite3.OperationalError) as caught, stores.join(copy, found):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert database.of_the_machine(caught.value), caught.value


def test_comparing_the_texts_reads_each_page_about_once(
    found: settings.Settings, tmp_path: Path
) -> None:
    copy = plant(tmp_path / "copy", 8000, 1500)
    size = sum(path.stat().st_size for path in copy.root.rglob("*") if path.is_file())
    with stores.join(copy, found) as joined, transferred() as once:
        assert sum(1 for _ in agreement.compare(joined)) == 8000
    assert once[0] < 1.5 * size


def test_integrity_check_reads_each_page_about_once_while_the_indices_fit_the_cache(
    tmp_path: Path,
) -> None:
    copy = plant(tmp_path / "copy", 40_000, 400)
    assert copy.database
    size = copy.database.stat().st_size
    with transferred() as once, database.open_copy(copy.database) as connection:
        assert database.integrity(connection) == []
    assert once[0] < 2 * size
