"""Real faults, each planted in a sample volume the way it arises on a real one.

`plant` works on a store that nothing has open, uses sqlite3 in this process and chromadb in a
child only, and touches nothing but what the fault consists of. The faults can be combined, in any
order, unless one takes away what another is planted on.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from nescord_ops import chroma_build, sample, volume
from nescord_ops.errors import CaptureError, SettingsError
from nescord_ops.sample import Demo

BLOAT_BYTES = 4_000_000_000
WAL_BYTES = 24_000_000
OLD = timedelta(days=60)
GHOST = "0f0e0d0c-0b0a-4908-8706-050403020100"

# The bot, killed: it commits and never gets to close the database, so nothing is checkpointed.
_WRITER = """
import os, sqlite3, sys
path, size = sys.argv[1], int(sys.argv[2])
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("PRAGMA synchronous=OFF")
connection.execute("BEGIN IMMEDIATE")  # makes the log
connection.execute("COMMIT")
while os.path.getsize(path + "-wal") < size:
    for step in (1, -1):  # SQLite skips pages that do not change
        connection.execute("UPDATE token_usage SET input_tokens = input_tokens + ?", (step,))
os._exit(0)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A fault: its name, what is wrong in one line, and the function that plants it."""

    name: str
    summary: str
    plant: Callable[[Demo], None]


def three_slash_url(demo: Demo) -> None:
    """Set DATABASE_URL as the guide does; the bot then opens a file below its own directory."""
    path = demo.database
    _move_database(demo, f"sqlite:///{str(path).lstrip('/')}")


def query_string_file(demo: Demo) -> None:
    """Append the guide's tuning to DATABASE_URL; it becomes part of the file's name."""
    path = os.path.relpath(demo.database, demo.app_dir)
    _move_database(demo, f"sqlite:///{path}?timeout=20&journal_mode=WAL")


def wrong_dimension(demo: Demo) -> None:
    """Let the bot's own check poison an empty store: every later write of 768 numbers fails."""
    volume.clear(demo.chroma_dir)
    chroma_build.run(demo.chroma_dir, "poison", seed=demo.seed)
    error = (
        "Sync failed: Collection expecting embedding with dimension of "
        f"{chroma_build.WRONG_DIMENSION}, got {chroma_build.DIMENSION}"
    )
    with sample.connect(demo.database) as connection:
        connection.execute(
            "UPDATE sync_metadata SET sync_status = 'failed', last_synced_at = NULL,"
            " embedding_hash = NULL, retry_count = 3, last_error = ?",
            (error,),
        )
        (key,) = connection.execute("SELECT note_id FROM sync_metadata").fetchone()
    service = "nescordbot.services.sync_manager | sync_note_to_chromadb:371"
    with demo.log_file.open("a", encoding="utf-8") as file:
        file.write(
            f"{demo.now:%F %T} | ERROR    | {service} | Failed to sync note {key}: {error}\n"
        )


def lost_vectors(demo: Demo) -> None:
    """Lose the HNSW directory after a persist: `count()` still looks right, `query()` does not."""
    shutil.rmtree(_persisted(demo))


def torn_copy(demo: Demo) -> None:
    """Put an index of an earlier persist beside `chroma.sqlite3`, as a copy of live files does."""
    chroma_build.run(demo.chroma_dir, "tear", seed=demo.seed)
    built = demo.chroma_dir.with_name(demo.chroma_dir.name + ".new")
    earlier = built / chroma_build.EARLIER
    (segment,) = (path for path in built.iterdir() if path.is_dir() and path != earlier)
    shutil.rmtree(segment)
    earlier.rename(segment)
    volume.clear(demo.chroma_dir)
    for path in built.iterdir():
        path.rename(demo.chroma_dir / path.name)
    built.rmdir()


def truncated_pickle(demo: Demo) -> None:
    """Cut the id map in half, as a full disk or a kill during a persist does."""
    path = _persisted(demo) / "index_metadata.pickle"
    os.truncate(path, path.stat().st_size // 2)


def stale_vector(demo: Demo) -> None:
    """Edit a note: the bot adds and never updates, so Chroma keeps the old text, marked synced."""
    edited = demo.now - timedelta(hours=1)
    with sample.connect(demo.database) as connection:
        key, title, content, tags = _first(
            connection.execute(
                "SELECT id, title, content, tags FROM knowledge_notes JOIN sync_metadata"
                " ON note_id = id WHERE sync_status = 'synced' ORDER BY knowledge_notes.rowid"
            )
        )
        changed = f"{content}\n訂正: the figures above were wrong."
        connection.execute(
            "UPDATE knowledge_notes SET content = ?, updated_at = ? WHERE id = ?",
            (changed, f"{edited:%Y-%m-%dT%H:%M:%S}", key),
        )
        connection.execute(
            "INSERT INTO note_history(note_id, title_before, content_before, tags_before,"
            " title_after, content_after, tags_after, user_id, timestamp)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, title, content, tags, title, changed, tags, sample.USER, f"{edited:%F %T}"),
        )
        connection.execute(
            "UPDATE sync_metadata SET last_synced_at = ?, embedding_hash = ? WHERE note_id = ?",
            (
                f"{edited + sample.SYNC_DELAY:%Y-%m-%dT%H:%M:%S}",
                sample.embedding_hash(title, changed, tags),
                key,
            ),
        )


def leaked_deletion(demo: Demo) -> None:
    """Delete a note from the database and leave it in Chroma, where search still finds it."""
    with sample.connect(demo.database) as connection:
        (key,) = _first(
            connection.execute(
                "SELECT note_id FROM sync_metadata WHERE sync_status = 'synced' ORDER BY rowid DESC"
            )
        )
        connection.execute("DELETE FROM note_links WHERE ? IN (from_note_id, to_note_id)", (key,))
        connection.execute("UPDATE transcriptions SET note_id = NULL WHERE note_id = ?", (key,))
        connection.execute("DELETE FROM note_history WHERE note_id = ?", (key,))
        connection.execute("DELETE FROM sync_metadata WHERE note_id = ?", (key,))
        connection.execute("DELETE FROM knowledge_notes WHERE id = ?", (key,))


def orphan_segment(demo: Demo) -> None:
    """Delete a collection: Chroma leaves the directory of its vectors behind."""
    chroma_build.run(demo.chroma_dir, "orphan", seed=demo.seed)


def sparse_bloat(demo: Demo) -> None:
    """Let `link_lists.bin` claim gigabytes that it does not hold."""
    os.truncate(_first(_segments(demo)) / "link_lists.bin", BLOAT_BYTES)


def corrupt_page(demo: Demo) -> None:
    """Lose the second half of a page of `token_usage`, as a torn write does.

    The page is found as SQLite's file format has it (sqlite.org/fileformat2.html, section 1.6):
    from the table's root along the right-most pointers down to a leaf.
    """
    with sample.connect(demo.database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'token_usage'"
        ).fetchone()
    with demo.database.open("r+b") as file:
        while True:
            file.seek((page - 1) * size)
            kind, right = struct.unpack(">B7xI", file.read(12))
            if kind != 5:  # 5: an interior page of a table
                break
            page = right
        file.seek(page * size - size // 2)
        file.write(bytes(size // 2))


def orphan_sync_row(demo: Demo) -> None:
    """Keep the sync row of a note that is gone."""
    when = f"{demo.now - timedelta(days=1):%Y-%m-%dT%H:%M:%S}"
    with sample.connect(demo.database) as connection:
        connection.execute(
            "INSERT INTO sync_metadata(note_id, last_synced_at, sync_status, chromadb_doc_id,"
            " embedding_hash) VALUES (?, ?, 'synced', ?, ?)",
            (GHOST, when, f"note_{GHOST}", sample.embedding_hash("", "", "")),
        )


def no_write_permission(demo: Demo) -> None:
    """Take away the right to write, as a volume owned by root does from another user."""
    for directory in (demo.chroma_dir, demo.data_dir):
        directory.chmod(0o555)


def no_fts(demo: Demo) -> None:
    """Leave out the search table, as the bot's migration 5 does although it is recorded."""
    with sample.connect(demo.database) as connection:
        for event in ("insert", "delete", "update"):
            connection.execute(f"DROP TRIGGER IF EXISTS knowledge_notes_fts_{event}")
        connection.execute("DROP TABLE IF EXISTS knowledge_notes_fts")


def large_wal(demo: Demo) -> None:
    """End a process that has committed 24 MB and never checkpointed; its rows are as before."""
    command = [sys.executable, "-c", _WRITER, str(demo.database), str(WAL_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CaptureError(f"the sample WAL could not be written: {done.stderr.strip()}")


def old_backups_only(demo: Demo) -> None:
    """Leave nothing but two database-only backups that are two months old."""
    for path in demo.backup_dir.glob("nescordbot_backup_*"):
        shutil.rmtree(path)
    for path in demo.backup_dir.glob("backup_*"):
        when = demo.now - OLD - timedelta(days=30 if path.suffix == ".db" else 0)
        kind = path.name.split("_", 3)[3]
        old = path.rename(path.with_name(f"backup_{when:%Y%m%d_%H%M%S}_{kind}"))
        os.utime(old, (when.timestamp(), when.timestamp()))


def _move_database(demo: Demo, url: str) -> None:
    """Write `url` into `.env`, and move the database to where the bot opens it then."""
    source = demo.database
    lines = demo.env_file.read_text("utf-8").splitlines()
    changed = [f"DATABASE_URL={url}" if x.startswith("DATABASE_URL=") else x for x in lines]
    demo.env_file.write_text("\n".join(changed) + "\n", "utf-8")
    target = demo.database
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        path = source.with_name(source.name + suffix)
        if path.exists():
            path.rename(target.with_name(target.name + suffix))


def _segments(demo: Demo) -> list[Path]:
    """The directories of Chroma's VECTOR segments that hold an index."""
    with sample.connect(demo.chroma_dir / "chroma.sqlite3") as connection:
        rows = connection.execute("SELECT id FROM segments WHERE scope = 'VECTOR'").fetchall()
    paths = [demo.chroma_dir / key for (key,) in rows]
    return [path for path in paths if path.is_dir()]


def _persisted(demo: Demo) -> Path:
    """Return the directory of the collection's vectors, after Chroma has persisted them."""
    chroma_build.run(demo.chroma_dir, "persist", seed=demo.seed)
    directory: Path = _first(_segments(demo))
    return directory


def _first(found: Iterable[Any]) -> Any:
    """The first of what a fault is planted on; raise SettingsError if there is none."""
    for each in found:
        return each
    hint = "make one with more --vectors, or with this fault first"
    raise SettingsError("no vector is there to plant the fault on", hint)


def _named(*faults: tuple[Callable[[Demo], None], str]) -> dict[str, Fault]:
    names = [(plant.__name__.replace("_", "-"), plant, summary) for plant, summary in faults]
    return {name: Fault(name, summary, plant) for name, plant, summary in names}


FAULTS = _named(
    (three_slash_url, "the database lies off the volume, because DATABASE_URL has three slashes"),
    (query_string_file, "the query string of DATABASE_URL has become part of the file's name"),
    (wrong_dimension, "the collection takes vectors of 384 numbers, and the bot writes 768"),
    (lost_vectors, "the directory of the vectors is gone, and the documents are still counted"),
    (torn_copy, "the vectors are older than the rest of Chroma"),
    (truncated_pickle, "the id map of the vectors is cut in half"),
    (stale_vector, "an edited note still has its old text and vector in Chroma"),
    (leaked_deletion, "a deleted note is still found by search"),
    (orphan_segment, "a deleted collection has left its directory behind"),
    (sparse_bloat, "a sparse file claims 4 GB"),
    (corrupt_page, "half a page of the database is lost"),
    (orphan_sync_row, "a sync row names a note that does not exist"),
    (no_write_permission, "the volume's directories have no write permission"),
    (no_fts, "the search table does not exist, although its migration is recorded"),
    (large_wal, "24 MB of commits wait in the write-ahead log of a killed bot"),
    (old_backups_only, "the newest backup is two months old and has no vectors"),
)
