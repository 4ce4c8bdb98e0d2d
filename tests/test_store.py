"""The store: what goes in comes out, a crash leaves what was there, and damage is found."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import leave_journal
from hypothesis import given, settings
from hypothesis import strategies as st

from nescord_ops import database, pages, readback, store, storefile
from nescord_ops.errors import StoreError

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROOT = Path(__file__).parent.parent
PAGE = pages.PAGE_BYTES


def plant(root: Path, tree: Mapping[str, bytes | None]) -> Path:
    """Write a tree: a name to its content, or to None for a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = root / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    return root


def seen(root: Path) -> dict[bytes, tuple[int, int, bytes | None]]:
    """Return everything below `root`: mode, mtime and content by name."""
    found = {}
    for directory, _, files in os.walk(os.fsencode(root)):
        for path in [b"/".join((directory, name)) for name in files] + [directory]:
            facts = os.lstat(path)
            content = None if path == directory else Path(os.fsdecode(path)).read_bytes()
            if path != os.fsencode(root):
                name = os.path.relpath(path, os.fsencode(root))
                found[name] = (facts.st_mode, facts.st_mtime_ns, content)
    return found


def put(path: Path, identity: str, root: Path, **evidence: object) -> store.Generation:
    """Store a tree, in a store that is made where there is none."""
    with store.open_store(path, create=True) as opened:
        return store.add(opened, identity, root, evidence, taken_at=NOON)


def take(path: Path, identity: str, to: Path) -> dict[bytes, tuple[int, int, bytes | None]]:
    """Extract a generation and return what it holds."""
    with store.open_store(path) as opened:
        store.extract(opened, identity, to)
    return seen(to)


def damage(path: Path, identity: str | None = None) -> list[store.Damage]:
    """Check a store."""
    with store.open_store(path) as opened:
        return store.check(opened, identity)


def ids(path: Path) -> list[str]:
    """Return the ids of a store's generations."""
    with store.open_store(path) as opened:
        return [generation.id for generation in store.generations(opened)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A store with two generations: half a megabyte, then two changed bytes and a new file."""
    noise = random.Random(5)
    content = noise.randbytes(5 * PAGE) + b"words and " * 20_000
    plant(tmp_path / "a", {"notes.db": content, "chromadb/x/data.bin": noise.randbytes(PAGE)})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with (tmp_path / "b/notes.db").open("r+b") as file:
        file.seek(PAGE + 10)
        file.write(b"!!")
    (tmp_path / "b/new").write_bytes(b"new")
    put(tmp_path / "store.sqlite3", "a", tmp_path / "a")
    put(tmp_path / "store.sqlite3", "b", tmp_path / "b")
    return tmp_path / "store.sqlite3"


# What goes in comes out ---------------------------------------------------------------------------


def test_a_tree_comes_out_as_it_went_in(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "in",
        {
            "empty": b"",
            "hollow/": None,
            "page": b"x" * PAGE,
            "page and one": bytes(PAGE) + b"x",
            "zeros": bytes(3 * PAGE - 1),
            "日本語/メモ": os.urandom(3 * PAGE + 7),
        },
    )
    Path(os.fsdecode(os.fsencode(root) + b"/not utf-8: \xff")).write_bytes(b"\0\xff")
    (root / "page").chmod(0o751)  # setuid and the like are not given back
    (root / "hollow").chmod(0o500)
    os.utime(root / "hollow", ns=(1, 1_700_000_000_123_456_789))
    generation = put(tmp_path / "store.sqlite3", "one", root, rows={"notes": 3})
    assert take(tmp_path / "store.sqlite3", "one", tmp_path / "out") == seen(root)
    assert (generation.id, generation.taken_at, generation.files) == ("one", NOON, 6)
    assert generation.size_bytes == sum(len(content or b"") for *_, content in seen(root).values())
    assert generation.evidence == {"rows": {"notes": 3}}
    assert generation.intact


names = st.text("ab.é", min_size=1, max_size=3).filter(lambda name: name.strip("."))
contents = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda seed, pages_, extra: random.Random(seed).randbytes(pages_ * PAGE) + extra,
        st.integers(0, 3),
        st.integers(0, 3),
        st.binary(max_size=9),
    ),
    st.builds(
        lambda before, after: bytes(before) + b"x" + bytes(after), *[st.integers(0, 200_000)] * 2
    ),
)
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), contents, max_size=5
).filter(lambda tree: not any(a != b and b.startswith(f"{a}/") for a in tree for b in tree))


@settings(max_examples=40)
@given(tree=trees)
def test_any_tree_comes_out_as_it_went_in(tree: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = plant(Path(scratch, "in"), tree)
        put(Path(scratch, "s"), "one", root)
        assert take(Path(scratch, "s"), "one", Path(scratch, "out")) == seen(root)
        assert damage(Path(scratch, "s")) == []


@settings(max_examples=20)
@given(steps=st.lists(st.one_of(trees, st.integers(0, 5)), max_size=6))
def test_any_sequence_of_adding_and_removing_leaves_the_rest_whole(
    steps: list[dict[str, bytes] | int],
) -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        opened = stack.enter_context(store.open_store(Path(scratch, "s"), create=True))
        alive: dict[str, Path] = {}
        for count, step in enumerate(steps):
            if isinstance(step, dict):
                alive[str(count)] = plant(Path(scratch, f"in{count}"), step)
                store.add(opened, str(count), alive[str(count)], {}, taken_at=NOON)
            elif alive:
                gone = sorted(alive)[step % len(alive)]
                store.remove(opened, [gone])
                del alive[gone]
        assert store.check(opened) == []
        for identity, root in alive.items():
            store.extract(opened, identity, Path(scratch, f"out{identity}"))
            assert seen(Path(scratch, f"out{identity}")) == seen(root)


def test_a_sparse_file_costs_what_it_holds_and_stays_sparse(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", {})
    with (root / "link_lists.bin").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"here")
    generation = put(tmp_path / "s", "one", root)
    with store.open_store(tmp_path / "s") as opened:
        store.extract(opened, "one", tmp_path / "out")
    facts = (tmp_path / "out/link_lists.bin").stat()
    assert (facts.st_size, generation.size_bytes) == (1 << 40, 1 << 40)
    assert facts.st_blocks * 512 <= PAGE
    with (tmp_path / "out/link_lists.bin").open("rb") as file:
        file.seek(1 << 39)
        assert file.read(4) == b"here"


# What it costs ------------------------------------------------------------------------------------


def test_the_same_content_is_stored_once(tmp_path: Path) -> None:
    noise = os.urandom(20 * PAGE)
    first = put(tmp_path / "s", "1", plant(tmp_path / "a", {"x": noise, "y": noise}))
    again = put(tmp_path / "s", "2", plant(tmp_path / "b", {"renamed/x": noise}))
    assert first.added_bytes < len(noise) + 1000
    assert again.added_bytes == 0


def test_a_changed_row_costs_its_difference_and_no_page(tmp_path: Path) -> None:
    noise = bytearray(os.urandom(20 * PAGE))
    put(tmp_path / "s", "0", plant(tmp_path / "in", {"x": bytes(noise)}))
    for number in range(1, 4):
        noise[number * PAGE : number * PAGE + 400] = os.urandom(400)
        added = put(tmp_path / "s", str(number), plant(tmp_path / "in", {"x": bytes(noise)}))
        assert 400 < added.added_bytes < 600
    assert take(tmp_path / "s", "3", tmp_path / "out")[b"x"][2] == bytes(noise)


def test_a_difference_is_taken_from_the_newest_file_of_that_name(tmp_path: Path) -> None:
    noise = os.urandom(5 * PAGE)
    put(tmp_path / "s", "1", plant(tmp_path / "a", {"x": noise}))
    put(tmp_path / "s", "adopted", plant(tmp_path / "b", {"y": b"other"}))
    added = put(tmp_path / "s", "2", plant(tmp_path / "a", {"x": b"!" + noise[1:]}))
    assert added.added_bytes < 200


def test_removing_gives_the_space_back_and_touches_no_other_generation(tmp_path: Path) -> None:
    path = tmp_path / "s"
    base = os.urandom(30 * PAGE)
    trees = {
        "1": {"x": base},
        "2": {"x": b"!" + base[1:], "big": os.urandom(100 * PAGE)},
        "3": {"x": b"?" + base[1:]},
    }
    for identity, tree in trees.items():
        put(path, identity, plant(tmp_path / identity, tree))
    full = path.stat().st_size
    with store.open_store(path) as opened:
        counted = store.remove(opened, ["1", "2"], dry_run=True)
        assert (path.stat().st_size, len(store.generations(opened))) == (full, 3)
        freed = store.remove(opened, ["1", "2"])
    assert path.stat().st_size == full - freed
    assert 100 * PAGE <= counted <= freed
    assert damage(path) == []
    assert take(path, "3", tmp_path / "out") == seen(tmp_path / "3")
    with store.open_store(path) as opened:
        store.remove(opened, ["3"])
    assert path.stat().st_size <= 64 * 1024


def test_removing_four_times_the_pages_takes_four_times_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_STEP", 8)
    work = []
    for count in (150, 600):
        for sign in ("+", "-"):
            tree = {str(number): f"{sign}{number}".encode() for number in range(count)}
            put(tmp_path / f"s{count}", sign, plant(tmp_path / f"in{count}", tree))
        with store.open_store(tmp_path / f"s{count}") as opened:
            steps = itertools.count()
            opened.connection.set_progress_handler(lambda steps=steps: next(steps) < 0, 100)
            store.remove(opened, ["+"])
            work.append(next(steps))
    assert work[1] < 6 * work[0]


def test_a_page_that_is_needed_again_while_others_are_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_STEP", 1)
    path, root = tmp_path / "s", plant(tmp_path / "in", {"x": os.urandom(9 * PAGE)})
    put(path, "one", root)
    begun = itertools.count()

    def meanwhile(statement: str) -> None:
        if statement == "BEGIN EXCLUSIVE" and next(begun) == 3:  # not locked just now
            put(path, "two", root)

    with store.open_store(path) as opened:
        opened.connection.set_trace_callback(meanwhile)
        store.remove(opened, ["one"])
    assert damage(path) == []
    assert take(path, "two", tmp_path / "out") == seen(root)


_MEMORY = """
import re, sys
from datetime import UTC, datetime
from pathlib import Path
from nescord_ops import store
with store.open_store(Path(sys.argv[1]), create=True) as opened:
    store.add(opened, "one", Path(sys.argv[2]), {}, taken_at=datetime.now(UTC))
    store.check(opened)
    store.extract(opened, "one", Path(sys.argv[3]))
# ru_maxrss would count what the parent had before it started this process
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_stays_flat_at_four_times_the_data(tmp_path: Path) -> None:
    peaks = []
    for size in (32, 128):
        root = plant(tmp_path / f"in{size}", {"x": b"", "y": b"y"})
        with (root / "x").open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1 << 20))
        arguments = [tmp_path / f"s{size}", root, tmp_path / f"out{size}"]
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, *arguments], check=True, capture_output=True
        )
        peaks.append(int(done.stdout) * 1024)
    assert max(peaks) < 150_000_000
    assert peaks[1] < peaks[0] + 15_000_000


def test_a_store_lies_where_the_name_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 ?#%41")) / "store.sqlite3"
    put(path, "a", plant(tmp_path / "in", {"x": b"x"}))
    assert ids(path) == ["a"]
    assert take(path, "a", tmp_path / "out") == seen(tmp_path / "in")


def test_evidence_that_could_not_be_read_back_is_not_stored(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not be read back"):
        put(kept, "c", tmp_path / "a", rows="x" * (5 << 20))
    assert ids(kept) == ["a", "b"]
    assert damage(kept) == []


def test_a_journal_that_names_another_file_has_it_not_deleted(kept: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious\0")
    leave_journal(kept, "UPDATE page SET data = CAST(data || 'x' AS BLOB)", mine)
    with pytest.raises(StoreError, match="names another file"):
        ids(kept)
    assert mine.exists()
    database.beside(kept, "-journal").rename(tmp_path / "seen")
    assert (tmp_path / "seen").stat().st_size > 1000, "there was something to roll back"


def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "backups/store.sqlite3"
    put(path, "one", plant(tmp_path / "in", {"x": b"x"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [left.name for left in path.parent.iterdir()] == [path.name]


# Crashes ------------------------------------------------------------------------------------------

_BUSY_CHILD = """
import itertools, sys
from datetime import UTC, datetime
from pathlib import Path
from nescord_ops import store
path, *trees = map(Path, sys.argv[1:])
print("ready", flush=True)
with store.open_store(path, create=True) as opened:
    for number in itertools.count(len(store.generations(opened))):
        store.add(opened, f"k{number}", trees[number % 2], {}, taken_at=datetime.now(UTC))
        print(f"k{number}", flush=True)
        if number % 3 == 2:
            print(f"removing k{number - 2}", flush=True)
            store.remove(opened, [f"k{number - 2}"])
"""


def _kill(tmp_path: Path, times: int, seed: int) -> None:
    rng = random.Random(seed)
    noise = rng.randbytes(60 * PAGE)
    plant(tmp_path / "a", {"x": noise, "d/y": rng.randbytes(99)})
    plant(tmp_path / "b", {"x": noise[: 30 * PAGE] + rng.randbytes(30 * PAGE)})
    for attempt in range(times):
        path = tmp_path / f"s{attempt // 3}"  # every third run meets an absent store
        command = [sys.executable, "-c", _BUSY_CHILD, path, tmp_path / "a", tmp_path / "b"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.35))
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().splitlines()
        if not path.exists():
            assert said == []
            continue
        removing = {line.removeprefix("removing ") for line in said if " " in line}
        alive = ids(path)
        assert {line for line in said if " " not in line} - removing <= set(alive)
        assert damage(path) == []
        for identity in alive:
            out = tmp_path / f"out-{attempt}-{identity}"
            assert take(path, identity, out) == seen(tmp_path / "ab"[int(identity[1:]) % 2])
            shutil.rmtree(out)
        with store.open_store(path) as opened:  # what a removal left undone is done by the next
            store.remove(opened, [])
            if not alive:
                assert path.stat().st_size <= 64 * 1024


def test_killed_at_any_moment_every_earlier_generation_is_whole(tmp_path: Path) -> None:
    _kill(tmp_path, 10, seed=int(time.time()))


@pytest.mark.slow
def test_killed_a_hundred_times_every_earlier_generation_is_whole(tmp_path: Path) -> None:
    _kill(tmp_path, 100, seed=int(time.time()))


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", {"x": os.urandom(40 * PAGE)})
    others: list[threading.Thread] = []

    def meanwhile(_done: int, _all: int) -> None:
        if not others:
            others.append(threading.Thread(target=put, args=(tmp_path / "s", "second", root)))
            others[0].start()
            time.sleep(0.2)

    with store.open_store(tmp_path / "s", create=True) as opened:
        store.add(opened, "first", root, {}, taken_at=NOON, progress=meanwhile)
    others[0].join()
    assert ids(tmp_path / "s") == ["first", "second"]


def test_a_second_writer_gives_up_with_a_reason(kept: Path, tmp_path: Path) -> None:
    with store.open_store(kept) as first, store.open_store(kept, busy_seconds=0.1) as second:
        with (
            storefile.transaction(first, "EXCLUSIVE"),
            pytest.raises(StoreError, match="locked") as caught,
        ):
            store.add(second, "c", tmp_path / "a", {}, taken_at=NOON)
        assert "another backup" in caught.value.hint


def test_two_at_once_make_one_store(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", {"x": b"x"})
    threads = [
        threading.Thread(target=put, args=(tmp_path / "d/s", str(number), root))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(tmp_path / "d/s")) == list("012345")


# Damage -------------------------------------------------------------------------------------------


def _flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def _unused(path: Path) -> set[int]:
    """Return the offsets that nothing reads, in SQLite's own words (sqlite.org/fileformat2)."""
    whole, size = path.read_bytes(), 4096
    unused = {*range(24, 28), *range(40, 52), *range(72, 100)}  # counters, versions, reserved
    known = set()
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT pageno, pagetype, unused FROM dbstat").fetchall()
    for number, kind, count in rows:
        start = (number - 1) * size
        known.add(number)
        if kind == "overflow":
            unused |= set(range(start + size - count, start + size))
            continue
        head = start + (100 if number == 1 else 0)
        free, cells, content = (
            int.from_bytes(whole[head + at : head + at + 2], "big") for at in (1, 3, 5)
        )
        pointers = head + (8 if whole[head] in (10, 13) else 12) + 2 * cells
        unused |= set(range(pointers, start + content))
        while free:
            after, length = (
                int.from_bytes(whole[start + free + at : start + free + at + 2], "big")
                for at in (0, 2)
            )
            unused |= set(range(start + free + 4, start + free + length))
            free = after
    assert set(range(2, len(whole) // size + 1)) - known == {2}  # the pointer map: no free pages
    return unused | set(range(size + 5 * (len(whole) // size - 2), 2 * size))


def _flips(kept: Path, tmp_path: Path, times: int) -> None:
    """Flip one byte after another: found, or without any effect on what comes out."""
    rng = random.Random(times)
    whole, unused = kept.read_bytes(), _unused(kept)
    trees = {name: seen(tmp_path / name) for name in "ab"}
    unseen = []
    for attempt in range(times):
        offset, mask = rng.randrange(len(whole)), rng.randrange(1, 256)
        kept.write_bytes(whole)
        _flip(kept, offset, mask)
        out = tmp_path / f"out{attempt}"
        try:
            found = damage(kept)
        except StoreError:
            continue
        if not found and offset not in unused:
            unseen.append((offset, mask))
        harmed = {item.generation_id for item in found}
        for identity, tree in trees.items():
            try:
                assert take(kept, identity, out / identity) == tree
            except StoreError:
                assert harmed & {identity, ""}
        shutil.rmtree(out, ignore_errors=True)
    assert unseen == []


def test_a_flipped_byte_is_found_and_never_changes_what_comes_out(
    kept: Path, tmp_path: Path
) -> None:
    _flips(kept, tmp_path, 150)


@pytest.mark.slow
def test_three_thousand_flipped_bytes_are_found(kept: Path, tmp_path: Path) -> None:
    _flips(kept, tmp_path, 3000)


def _break_page(path: Path, place: str, generation: str) -> None:
    """Flip a byte in the packed page that lies at a place of a generation's `notes.db`."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (data,) = db.execute(
            "SELECT data FROM page JOIN place ON page = page.number JOIN file ON file = file.number"
            " JOIN generation ON generation = generation.number"
            " WHERE path = ? AND position = ? AND id = ?",
            (b"notes.db", place, generation),
        ).fetchone()
    offset = path.read_bytes().index(data[:60])
    _flip(path, offset + min(50, len(data) // 2), 0x55)


def test_only_the_generations_that_use_a_damaged_page_are_named(kept: Path, tmp_path: Path) -> None:
    _break_page(kept, "1", "b")
    assert [(item.generation_id, item.path) for item in damage(kept)] == [("b", "notes.db")]
    assert damage(kept, "a") == []
    with pytest.raises(StoreError, match=r"notes\.db is damaged"):
        take(kept, "b", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert take(kept, "a", tmp_path / "out") == seen(tmp_path / "a")


def test_a_damaged_page_that_others_build_on_harms_them_too(kept: Path) -> None:
    _break_page(kept, "1", "a")
    assert {item.generation_id for item in damage(kept)} == {"a", "b"}
    assert {item.generation_id for item in damage(kept, "b")} == {"b"}


def test_the_next_backup_mends_what_a_check_found_damaged(kept: Path, tmp_path: Path) -> None:
    for position in ("0", "1", "6"):
        _break_page(kept, position, "a")
    assert damage(kept)
    put(kept, "c", tmp_path / "a")
    assert damage(kept) == []
    for identity, tree in {"a": "a", "b": "b", "c": "a"}.items():
        assert take(kept, identity, tmp_path / f"out{identity}") == seen(tmp_path / tree)


def test_a_check_unpacks_each_page_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(kept, "again", kept.parent / "a")
    counted: list[bytes] = []
    unpack = pages.unpack

    def counting(packed: bytes, base: bytes | None, expected: bytes) -> bytes:
        counted.append(expected)
        return unpack(packed, base, expected)

    monkeypatch.setattr(pages, "unpack", counting)
    assert damage(kept) == []
    assert len(counted) == len(set(counted)) == 12


def test_a_changed_record_is_found(kept: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(kept, isolation_level=None)) as db:
        db.execute("UPDATE generation SET taken_at = '2020-01-01T00:00:00+00:00' WHERE id = 'a'")
        db.execute("UPDATE file SET mode = 511 WHERE generation = 2")
    assert {item.generation_id for item in damage(kept)} == {"a", "b"}
    with store.open_store(kept) as opened:
        assert [generation.intact for generation in store.generations(opened)] == [False, False]
        with pytest.raises(StoreError, match="record of a is damaged"):
            store.note(opened, "a", {"checked_at": "now"})
    with pytest.raises(StoreError, match="record of a is damaged"):
        take(kept, "a", tmp_path / "out")


@pytest.mark.parametrize("column", ["page.data", "page.name", "file.path"])
def test_a_value_that_is_gone_is_damage(kept: Path, tmp_path: Path, column: str) -> None:
    """As where the disk gives zeros for a part of a record."""
    table, name = column.split(".")
    strict = storefile.SCHEMA[storefile.SCHEMA.index(f"CREATE TABLE {table}") :].split(";")[0]
    for definition in (strict.replace(" NOT NULL", ""), strict):
        with contextlib.closing(sqlite3.connect(kept)) as db, db:
            if definition == strict:
                db.execute(f"UPDATE {table} SET {name} = NULL WHERE number = 3")
            db.execute("PRAGMA writable_schema=ON")
            db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (definition, table))
    found = damage(kept)
    assert "a" in {each.generation_id for each in found}
    with store.open_store(kept) as opened, pytest.raises(StoreError):
        store.extract(opened, "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_page_is_found(kept: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(kept, isolation_level=None)) as db:
        db.execute("DELETE FROM page WHERE number = 1")
    assert {item.generation_id for item in damage(kept)} == {"a", "b"}
    with pytest.raises(StoreError, match="missing"):
        take(kept, "a", tmp_path / "out")


# Bad input ----------------------------------------------------------------------------------------


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=2")


def _foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (id)")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_newer, "has version 2"),
        (_foreign, "no store"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"PK\3\4" * 9999), "damaged or no store"),
        (Path.unlink, "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "unable to open|disk I/O"),
    ],
)
def test_what_is_no_store_is_refused_with_a_hint(kept: Path, spoil: object, message: str) -> None:
    spoil(kept)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message) as caught, store.open_store(kept):
        pass
    assert caught.value.hint


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_store_is_found_damaged(kept: Path, share: float) -> None:
    os.truncate(kept, int(kept.stat().st_size * share) // 4096 * 4096)
    with contextlib.suppress(StoreError):
        assert damage(kept)


@pytest.mark.parametrize("identity", ["nothing", "../a", "a/../a", "", "a\0"])
def test_an_id_that_does_not_exist_is_refused(kept: Path, tmp_path: Path, identity: str) -> None:
    with store.open_store(kept) as opened:
        for action in (
            lambda: store.check(opened, identity),
            lambda: store.extract(opened, identity, tmp_path / "out"),
            lambda: store.remove(opened, ["a", identity]),
            lambda: store.note(opened, identity, {}),
        ):
            with pytest.raises(StoreError, match="there is no generation"):
                action()
    assert ids(kept) == ["a", "b"]


@pytest.mark.parametrize("identity", ["", "a", "../c", "c\n"])
def test_an_id_that_is_taken_or_no_id_is_refused(kept: Path, tmp_path: Path, identity: str) -> None:
    with pytest.raises(StoreError):
        put(kept, identity, tmp_path / "a")
    assert ids(kept) == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b"short"),
        lambda file: file.write_bytes(os.urandom(41 * PAGE)),
        lambda file: file.write_bytes(os.urandom(40 * PAGE)),
    ],
)
def test_a_file_that_changes_while_it_is_read_stores_nothing(
    kept: Path, tmp_path: Path, change: object
) -> None:
    root = plant(tmp_path / "in", {"x": os.urandom(40 * PAGE)})
    before = kept.read_bytes()

    def meanwhile(done: int, _all: int) -> None:
        if done == 5 * PAGE:
            change(root / "x")  # type: ignore[operator]

    with (
        store.open_store(kept) as opened,
        pytest.raises(StoreError, match="changed while it was read"),
    ):
        store.add(opened, "c", root, {}, taken_at=NOON, progress=meanwhile)
    assert kept.read_bytes() == before


def test_a_file_that_vanishes_stores_nothing(kept: Path, tmp_path: Path) -> None:
    root = plant(tmp_path / "in", {"x": b"x", "y": b"y"})
    with store.open_store(kept) as opened, pytest.raises(StoreError, match="No such file"):
        store.add(
            opened,
            "c",
            root,
            {},
            taken_at=NOON,
            progress=lambda *_: (root / "y").unlink(missing_ok=True),
        )
    assert ids(kept) == ["a", "b"]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    (plant(tmp_path / "in", {}) / "link").symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="neither a file nor a directory"):
        put(tmp_path / "s", "one", tmp_path / "in")
    (tmp_path / "in/link").unlink()
    os.mkfifo(tmp_path / "in/pipe")
    with pytest.raises(StoreError, match="neither a file nor a directory"):
        put(tmp_path / "s", "one", tmp_path / "in")


def test_a_full_disk_is_said_and_leaves_the_store_whole(kept: Path, tmp_path: Path) -> None:
    root = plant(tmp_path / "in", {"x": os.urandom(90 * PAGE)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kept.stat().st_size + 20 * PAGE, hard))
    try:
        with pytest.raises(StoreError) as caught:
            put(kept, "c", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.hint
    assert ids(kept) == ["a", "b"]
    assert damage(kept) == []


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_read_only_store_is_readable_and_says_that_it_takes_no_writes(
    kept: Path, common: Path
) -> None:
    shutil.copytree(kept.parent, common / "d")
    (common / "d").chmod(0o755)
    (common / "d/store.sqlite3").chmod(0o644)
    before = (common / "d/store.sqlite3").read_bytes()
    child = os.fork()
    if not child:  # pragma: no cover - in the child
        os.setgid(65534)
        os.setuid(65534)
        try:
            path = common / "d/store.sqlite3"
            assert (ids(path), damage(path)) == (["a", "b"], [])
            with pytest.raises(StoreError, match="readonly") as caught:
                put(path, "c", common / "d/a")
            assert "writable" in caught.value.hint
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (common / "d/store.sqlite3").read_bytes() == before


# Extracting ---------------------------------------------------------------------------------------


def test_extracting_refuses_a_place_that_holds_something(kept: Path, tmp_path: Path) -> None:
    plant(tmp_path / "out", {"mine": b"mine"})
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "out", tmp_path / "out/mine", tmp_path / "link"):
        with pytest.raises(StoreError, match="there already"):
            take(kept, "a", place)
    assert (tmp_path / "out/mine").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    assert take(kept, "a", tmp_path / "empty") == seen(tmp_path / "a")


@pytest.mark.parametrize("name", [b"../x", b"/etc/x", b"d/../../x", b"a\0b", b"", b".", b"d//x"])
def test_a_name_that_leads_out_is_refused(kept: Path, tmp_path: Path, name: bytes) -> None:
    with store.open_store(kept) as opened:
        opened.connection.execute(
            "UPDATE file SET path = ? WHERE path = ? AND generation = 2", (name, b"new")
        )
        storefile.seal(opened.connection, 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="leads elsewhere"):
        take(kept, "b", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_notes_are_kept_with_the_evidence(kept: Path) -> None:
    with store.open_store(kept) as opened:
        store.note(opened, "a", {"drilled_at": "today", "drill": "ok"})
        store.note(opened, "a", {"drill": "failed"})
    with store.open_store(kept) as opened:
        first, second = store.generations(opened)
    assert first.evidence == {"drilled_at": "today", "drill": "failed"}
    assert second.evidence == {}
    assert damage(kept) == []


def test_the_script_of_the_readme_restores_without_this_package(kept: Path, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("\n## The store's format\n")[1]
    found = re.search(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    assert found
    script = found[1]
    assert len(script.splitlines()) <= 25
    assert "nescord" not in script
    (tmp_path / "restore.py").write_text(textwrap.dedent(script))
    command = [sys.executable, tmp_path / "restore.py", kept, "b", tmp_path / "out"]
    subprocess.run(command, check=True)
    assert seen(tmp_path / "out") == seen(tmp_path / "b")
    _break_page(kept, "1", "b")
    shutil.rmtree(tmp_path / "out")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_nothing_lower_imports_anything_higher() -> None:
    assert readback.Damage is store.Damage
    assert "nescord_ops.store " not in Path(readback.__file__).read_text("utf-8")
