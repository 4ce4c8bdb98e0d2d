"""Captures of both stores: whole at one moment while real writers work, or refused."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from conftest import MakeDemo, leave_journal

from nescord_ops import chroma, database, settings, snapshot, stores, volume
from nescord_ops.checks import Status
from nescord_ops.errors import CaptureError
from nescord_ops.verify import examine

WRITER = """
import sys, time
sys.modules.setdefault("rfc3987_syntax", None)
import chromadb, numpy
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
collection = client.get_collection("nescord_knowledge", embedding_function=None)
random = numpy.random.default_rng(0)
print("ready", flush=True)
for batch in range(10_000):
    ids = [f"note_live-{batch}-{i}" for i in range(20)]
    vectors = random.normal(size=(20, 768)).astype("float32")
    collection.add(ids=ids, embeddings=vectors, documents=ids)
    print(batch, flush=True)
"""


def capture(app: Path, **options: str) -> AbstractContextManager[snapshot.Snapshot]:
    return snapshot.capture(settings.load(app_dir=app, **options))


@pytest.fixture
def writer(demo: MakeDemo) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A volume whose Chroma store another process fills at full speed."""
    made = demo()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(made.chroma_dir)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    yield made.app_dir, child
    child.kill()
    child.wait()


def test_captures_are_whole_while_chroma_writes(
    writer: tuple[Path, subprocess.Popen[str]],
) -> None:
    """Across persists: no id without its vector, sequence numbers join up, every time."""
    app, child = writer
    found = settings.load(app_dir=app)
    counts = []
    for _ in range(5):
        with snapshot.capture(found) as taken, stores.join(taken, found) as joined:
            checks = {c.name: c for c in examine(taken, found) if c.name.startswith("chroma.")}
            assert [c for c in checks.values() if c.status is not Status.OK] == []
            counts.append(joined.count("SELECT count(*) FROM vec.embeddings"))
        assert taken.lock_seconds < 5, "the bot waits that long for a lock"
        time.sleep(0.3)
    assert child.poll() is None
    assert counts == sorted(counts)
    assert counts[-1] > 300


def test_both_stores_are_of_one_moment(demo: MakeDemo) -> None:
    """A writer that touches the notes first and Chroma second is never seen the other way round."""
    made = demo()
    found = settings.load(app_dir=made.app_dir)
    begun, stop = threading.Event(), threading.Event()

    def write() -> None:
        with (
            sqlite3.connect(made.database, timeout=30) as bot,
            sqlite3.connect(made.chroma_dir / chroma.DATABASE, timeout=30) as vectors,
        ):
            vectors.execute("CREATE TABLE pace(n)")
            bot.execute("CREATE TABLE pace(n)")
            for number in range(1_000_000):
                for connection in (bot, vectors):
                    connection.execute("INSERT INTO pace VALUES (?)", (number,))
                    connection.commit()
                begun.set()
                if stop.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert begun.wait(60)
        for _ in range(2):
            with snapshot.capture(found) as taken:
                assert taken.database
                assert taken.chroma
                newest = []
                for path in (taken.database, taken.chroma / chroma.DATABASE):
                    with database.open_copy(path) as copy:
                        newest.append(copy.execute("SELECT max(n) FROM pace").fetchone()[0])
                notes, vectors = newest
                assert vectors <= notes <= vectors + 1
    finally:
        stop.set()
        thread.join()


def test_a_store_that_never_holds_still_is_refused(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo()
    (index,) = chroma.segment_directories(made.chroma_dir)
    begun, stop = threading.Event(), threading.Event()

    def touch() -> None:
        while not stop.wait(0.005):
            os.utime(index / "header.bin")
            begun.set()

    # far longer than a busy machine keeps the thread waiting
    monkeypatch.setattr(snapshot, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(snapshot, "QUIET_LIMIT_SECONDS", 0.5)
    thread = threading.Thread(target=touch)
    thread.start()
    begun.wait()
    try:
        with (
            pytest.raises(CaptureError, match="changed during each of"),
            snapshot.capture(settings.load(app_dir=made.app_dir)),
        ):
            pass
    finally:
        stop.set()
        thread.join()


def test_a_bot_that_holds_chromas_lock_is_waited_for(demo: MakeDemo) -> None:
    made = demo()
    blocker = sqlite3.connect(made.chroma_dir / chroma.DATABASE, check_same_thread=False)
    blocker.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, blocker.rollback)
    timer.start()
    with snapshot.capture(settings.load(app_dir=made.app_dir)) as taken:
        assert taken.chroma
    timer.join()
    blocker.close()


def test_a_hot_journal_is_rolled_back_in_the_copy_only(demo: MakeDemo) -> None:
    """A bot killed in the middle of a write leaves a journal; the live file stays as it is."""
    made = demo()
    file = made.chroma_dir / chroma.DATABASE
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size=5'); c.execute('BEGIN IMMEDIATE');"
        "c.execute('UPDATE embedding_metadata SET string_value = string_value || 1');"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    journal = database.beside(file, "-journal")
    assert journal.stat().st_size > 0
    before = file.read_bytes(), journal.read_bytes()
    found = settings.load(app_dir=made.app_dir)
    with snapshot.capture(found) as taken:
        assert taken.chroma
        assert not database.beside(taken.chroma / chroma.DATABASE, "-journal").exists()
        assert {c.status for c in examine(taken, found)} == {Status.OK}
    assert (file.read_bytes(), journal.read_bytes()) == before


def test_a_journal_that_names_another_file_has_it_not_deleted(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made, mine = demo(), tmp_path / "mine"
    mine.write_bytes(b"precious\0")
    change = "UPDATE embedding_metadata SET string_value = string_value || 1"
    leave_journal(made.chroma_dir / chroma.DATABASE, change, mine)
    with pytest.raises(CaptureError, match="names another file"), capture(made.app_dir):
        pass
    assert mine.exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_index_that_cannot_be_listed_is_not_left_out(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    made = demo()
    (index,) = chroma.segment_directories(made.chroma_dir)
    real = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path == index:
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(CaptureError, match=f"{index} cannot be read"), capture(made.app_dir):
        pass


def test_a_file_of_the_future_hides_none_that_is_being_written(
    demo: MakeDemo, tmp_path: Path
) -> None:
    future, now = tmp_path / "future", tmp_path / "now"
    for path in (future, now):
        path.write_text("")
    os.utime(future, (time.time() + 3600,) * 2)
    found = settings.load(app_dir=demo().app_dir)
    now.write_text("new")
    snapshot._quiet(found, [future, now], 5.0)
    assert time.time() - now.stat().st_mtime >= snapshot.QUIET_SECONDS


def test_the_newest_notes_in_the_wal_are_captured(demo: MakeDemo) -> None:
    made = demo("large-wal")
    with sqlite3.connect(made.database) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("INSERT INTO kv_store(key, value) VALUES ('newest', 'here')")
        connection.commit()
        with snapshot.capture(settings.load(app_dir=made.app_dir)) as taken:
            assert taken.database
            with database.open_copy(taken.database) as copy:
                rows = copy.execute("SELECT value FROM kv_store WHERE key = 'newest'").fetchall()
    assert rows == [("here",)]


def test_holes_stay_holes_and_links_are_not_followed(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo("sparse-bloat")
    (index,) = chroma.segment_directories(made.chroma_dir)
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    (index / "link.bin").symlink_to(secret)
    os.mkfifo(index / "pipe.bin")
    with snapshot.capture(settings.load(app_dir=made.app_dir)) as taken:
        assert taken.chroma
        copied = volume.usage(taken.chroma)
        names = {path.name for path in (taken.chroma / index.name).iterdir()}
        assert copied.apparent_bytes > 3_000_000_000
        assert copied.allocated_bytes < 200_000_000
    assert {"link.bin", "pipe.bin"}.isdisjoint(names)


def test_no_room_is_refused_before_anything_is_written(
    demo: MakeDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False
    ).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(small))
        with (
            pytest.raises(CaptureError, match="bytes free and") as caught,
            snapshot.capture(settings.load(app_dir=demo().app_dir)),
        ):
            pass
        assert "TMPDIR" in caught.value.hint
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_a_killed_run_left_is_swept_and_a_running_ones_is_not(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f"{snapshot.SCRATCH_PREFIX}{name}" for name in ("dead", "alive"))
    for path in (dead, alive):
        path.mkdir(mode=0o700)
        os.utime(path, (0, 0))
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with snapshot.scratch(0, tmp_path) as root:
        assert root.stat().st_mode & 0o777 == 0o700
        assert not dead.exists()
        assert alive.exists()
    assert not root.exists()
    os.close(handle)


def test_a_missing_store_is_left_out_with_its_reason(demo: MakeDemo) -> None:
    made = demo()
    shutil.rmtree(made.chroma_dir)
    with snapshot.capture(settings.load(app_dir=made.app_dir)) as taken:
        assert taken.chroma is None
        assert "cannot be opened" in taken.problems["chroma"]
        assert taken.database


def test_scratch_that_cannot_be_locked_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refused(path: Path, *arguments: int, **options: int) -> int:
        if snapshot.SCRATCH_PREFIX in str(path):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CaptureError, match="Too many open files"), snapshot.scratch(0, tmp_path):
        pass
    assert not list(tmp_path.iterdir())
