"""An enemy's volume: it costs no memory and no time, runs nothing, writes nothing elsewhere.

The targets of `fuzzing.py` run here for a moment; `tests/bench/fuzz.py` runs them for hours. Every
defect that was found so has its test here, in words rather than in bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from conftest import MakeDemo
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nescord_ops import (
    backup,
    chroma,
    compare,
    database,
    history,
    index,
    inventory,
    keys,
    offsite,
    publish,
    restore,
    settings,
    snapshot,
    store,
    storefile,
    swap,
    verify,
    volume,
)
from nescord_ops.checks import Status
from nescord_ops.demo import Demo
from nescord_ops.errors import OpsError, VolumeError

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user as well")
ENDLESS = (
    "ALTER TABLE {t} RENAME TO old_{t}; CREATE VIEW {t} AS WITH RECURSIVE n(i) AS"
    " (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT old_{t}.* FROM old_{t}, n"
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fuzzing.kit(tmp_path_factory.mktemp("kit"))


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_what_an_enemy_writes_is_read_or_refused(
    name: str, kit: dict[str, Any], tmp_path: Path
) -> None:
    target = fuzzing.TARGETS[name]

    @examples(
        max_examples=12,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.binary(max_size=300))
    def run(data: bytes) -> None:
        fuzzing.attempt(target, data, kit, tmp_path)

    for seed in target.seeds(kit)[:4]:
        fuzzing.attempt(target, seed, kit, tmp_path)
    run()


def test_what_strays_is_noticed(kit: dict[str, Any], tmp_path: Path) -> None:
    """The net has no hole: each kind of harm is a defect."""

    def stray(work: Callable[[Path], object]) -> None:
        def run(_: bytes, bench: fuzzing.Bench) -> None:
            work(bench.root)

        with pytest.raises(fuzzing.Defect):
            fuzzing.attempt(fuzzing.Target("x", run, lambda _: []), b"", kit, tmp_path)

    stray(lambda root: (root.parent / "climbed").write_text("x"))
    stray(lambda root: (root / ".." / "climbed").unlink())
    stray(lambda root: (root / "link").symlink_to(root.parent) or (root / "link/x").mkdir())
    stray(lambda _: subprocess.run(["true"], check=True))
    stray(lambda _: {}["x"])
    stray(lambda _: fuzzing._harmless("<b onclick=x>"))


# What was found.


def altered(demo: Demo, where: str, script: str, *values: object) -> None:
    path = demo.database if where == "notes" else demo.chroma_dir / chroma.DATABASE
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        if values:
            db.execute(script, values)
        else:
            db.executescript(script)


def copy_of(demo: Demo) -> snapshot.Snapshot:
    return snapshot.Snapshot(demo.app_dir, demo.database, demo.chroma_dir, {}, NOW, 0.0, 0.0, 1)


def examined(demo: Demo) -> dict[str, Status]:
    found = verify.examine(copy_of(demo), settings.load(app_dir=demo.app_dir))
    return {check.name: check.status for check in found}


@pytest.mark.parametrize("table", ["knowledge_notes", "schema_migrations"])
def test_a_view_that_never_ends_is_not_begun(table: str, demo: MakeDemo) -> None:
    made = demo()
    altered(made, "notes", ENDLESS.format(t=table))
    began = time.process_time()
    quick = verify.run(settings.load(app_dir=made.app_dir), depth="quick")
    assert quick.status.exit_code
    assert examined(made)
    with database.open_copy(made.database) as db, pytest.raises(sqlite3.DatabaseError):
        db.execute(f"SELECT count(*) FROM {table}")
    assert time.process_time() - began < 5


def test_a_value_that_would_fill_the_memory_is_refused(demo: MakeDemo) -> None:
    made = demo()
    size = database.VALUE_BYTES + 1
    altered(made, "notes", "UPDATE knowledge_notes SET content = zeroblob(?) WHERE rowid = 1", size)
    assert examined(made)["stores.stale"] is Status.UNKNOWN


# Rows of Chroma that no Chroma writes: each fails, or is said not to be known.
ROWS = {
    "a segment leads elsewhere": ("UPDATE segments SET id = '/etc' WHERE scope = 'VECTOR'",),
    "a segment climbs": ("UPDATE segments SET id = '../..' WHERE scope = 'VECTOR'",),
    "a sequence number is too long": ("UPDATE max_seq_id SET seq_id = ?", b"\xff" * 40),
    "a sequence number is text": ("UPDATE max_seq_id SET seq_id = ?", "1e5"),
    "a table has a column more": ("ALTER TABLE max_seq_id ADD COLUMN more",),
    "a dimension is text": ("UPDATE collections SET dimension = ?", "384"),
    "a name is a blob": ("UPDATE collections SET name = ?", b"nescord_knowledge"),
    "the configuration is a number": ("UPDATE collections SET config_json_str = ?", 5),
    "the queue has text for numbers": (
        "ALTER TABLE embeddings_queue RENAME TO q; CREATE TABLE embeddings_queue AS SELECT"
        " 'x' AS seq_id, created_at, operation, topic, id, vector, encoding, metadata FROM q",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_no_chroma_writes_are_findings(kind: str, demo: MakeDemo) -> None:
    made = demo()
    script, *values = ROWS[kind]
    altered(made, "chroma", script, *values)
    found = examined(made)
    harmless = kind in ("a table has a column more", "the configuration is a number")
    bad = {name for name, status in found.items() if status.exit_code}
    assert bad <= {"chroma.distance"} if harmless else bad


def test_an_element_without_room_for_its_label_is_damage(
    kit: dict[str, Any], tmp_path: Path
) -> None:
    index = tmp_path / "index"
    shutil.copytree(kit["index"], index)
    header = chroma.read_hnsw(index)
    facts = [*chroma._HEADER.unpack((index / "header.bin").read_bytes())]
    facts[4] = header.element_bytes - 1
    (index / "header.bin").write_bytes(chroma._HEADER.pack(*facts))
    with pytest.raises(VolumeError, match="is damaged"):
        chroma.read_hnsw(index)


def sealed(kit: dict[str, Any], directory: Path, script: str, *values: object) -> settings.Settings:
    """The store, altered by somebody who knows how it is sealed."""
    path = directory / "app" / "data" / "backups" / "store.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(kit["store"])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(script, values)
        for (number,) in db.execute("SELECT number FROM generation").fetchall():
            storefile.seal(db, number)
    return settings.load(app_dir=directory / "app", required=False)


RECORDS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "no JSON": ("evidence", lambda _: "{"),
    "no dictionary": ("evidence", lambda _: "[]"),
    "too deep": ("evidence", lambda _: "[" * 100_000),
    "no stores": ("evidence", lambda e: json.dumps({**e, "stores": 5})),
    "no store": ("evidence", lambda e: json.dumps({**e, "stores": []})),
    "one store twice": ("evidence", lambda e: json.dumps({**e, "stores": ["chroma", "chroma"]})),
    "a strange store": ("evidence", lambda e: json.dumps({**e, "stores": ["../x"]})),
    "no moment": ("evidence", lambda e: json.dumps({**e, "proven_at": "yesterday"})),
    "an empty moment": (
        "evidence",
        lambda e: json.dumps({**e, "drilled": {"at": "", "outcome": "failed", "reason": "x"}}),
    ),
    "a moment without a zone": (
        "evidence",
        lambda e: json.dumps({**e, "proven_at": "2026-08-01T12:00:00"}),
    ),
    "a moment before time": (
        "evidence",
        lambda e: json.dumps({**e, "proven_at": "0001-01-01T00:00:00+14:00"}),
    ),
    "a strange status": ("evidence", lambda e: json.dumps({**e, "findings": {"a": ["x", "y"]}})),
    "no copy": ("evidence", lambda e: json.dumps({**e, "offsite": {"url": 1}})),
    "a time without a date": ("taken_at", lambda _: "12:00"),
    "a name that is a command": ("id", lambda _: "x; rm -rf /"),
    "a name that climbs": ("id", lambda _: "../../x"),
    "a name that is markup": ("id", lambda _: "<img src=x onerror=alert(1)>"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_was_altered_and_sealed_anew_is_damage(
    kind: str, kit: dict[str, Any], tmp_path: Path
) -> None:
    column, make = RECORDS[kind]
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(kit["store"])
        (known,) = db.execute("SELECT evidence FROM generation").fetchone()
    value = make(json.loads(known))
    found = sealed(kit, tmp_path, f"UPDATE generation SET {column} = ?", value)
    (kept,) = inventory.listing(found).backups
    assert (kept.fault, kept.good, kept.status) == ("its record is damaged", False, Status.FAIL)
    assert inventory.listing(found).newest_good is None
    with pytest.raises(OpsError):
        inventory.materialise(found, kept.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["id", "taken_at", "evidence", "added_bytes", "digest"])
@pytest.mark.parametrize("value", [None, b"\xff", 5])
def test_a_record_of_types_that_its_table_forbids_is_damage(
    column: str, value: object, kit: dict[str, Any], tmp_path: Path
) -> None:
    """A flipped bit in a row's header makes a value of another type, or none."""
    found = sealed(kit, tmp_path, "UPDATE generation SET number = number")
    path = found.backup_dir / "store.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        loose = "UPDATE sqlite_schema SET sql = replace(replace(sql, 'NOT NULL', ''), 'STRICT', '')"
        db.execute(f"{loose} WHERE name = 'generation'")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE generation SET {column} = ?", (value,))
    (kept,) = inventory.listing(found).backups
    assert kept.status is Status.FAIL
    with storefile.open_store(path) as opened:
        assert store.check(opened)


def test_the_record_itself_is_sound(kit: dict[str, Any], tmp_path: Path) -> None:
    found = sealed(kit, tmp_path, "UPDATE generation SET number = number")
    (kept,) = inventory.listing(found).backups
    assert kept.evidence
    assert inventory.materialise(found, kept.id, tmp_path / "out").database


def test_a_view_in_the_store_is_not_read(kit: dict[str, Any], tmp_path: Path) -> None:
    found = sealed(kit, tmp_path, "UPDATE generation SET number = number")
    with contextlib.closing(sqlite3.connect(found.backup_dir / "store.sqlite3")) as db:
        db.executescript(ENDLESS.format(t="generation"))
    assert "prohibited" in inventory.listing(found).problem


def test_a_stored_program_is_no_more_a_privileged_one(kit: dict[str, Any], tmp_path: Path) -> None:
    found = sealed(kit, tmp_path, "UPDATE file SET mode = 4095")  # 07777
    (kept,) = inventory.listing(found).backups
    inventory.materialise(found, kept.id, tmp_path / "out")
    modes = {path.lstat().st_mode & 0o7000 for path in (tmp_path / "out").rglob("*")}
    assert modes == {0}


@pytest.mark.parametrize("name", [b"../climbed", b"/climbed", b"a/../../climbed", b""])
def test_a_name_that_leads_out_stops_every_way_out_of_the_store(
    name: bytes, kit: dict[str, Any], tmp_path: Path
) -> None:
    """The package's, and the script of the README."""
    script = "UPDATE file SET path = ? WHERE number = (SELECT max(number) FROM file)"
    found = sealed(kit, tmp_path, script, name)
    with pytest.raises(OpsError, match="leads elsewhere"):
        inventory.materialise(found, fuzzing.ID, tmp_path / "out")
    readme = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")
    code = readme.split("## The store's format\n")[1].split("```python\n")[1].split("```")[0]
    given = (found.backup_dir / "store.sqlite3", fuzzing.ID, tmp_path / "in" / "out")
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, check=False)
    assert done.stderr == b"a name leads elsewhere\n"
    assert not [*tmp_path.rglob("climbed")]


def index_of(reports_dir: Path) -> str:
    """The index of all that the history knows, as if every run were still there."""
    runs = history.runs(reports_dir)
    return index.page(runs, {run.stamp: f"{run.stamp}/index.html" for run in runs}, reports_dir)


HISTORIES = {
    "a view": ENDLESS.format(t="runs"),
    "no time": "UPDATE runs SET generated_at = 'never'",
    "a time that is a number": "UPDATE runs SET generated_at = 5",
    "the last second": "UPDATE runs SET generated_at = '9999-12-31T23:59:59-14:00'",
    "the last month": "UPDATE runs SET generated_at = '9999-12-05T00:00:00+00:00'",
    "the first year": "UPDATE runs SET generated_at = '0001-02-01T00:00:00+00:00', demo = 0",
    "the first second": "UPDATE runs SET generated_at = '0001-01-01T00:00:00+14:00', demo = 0",
    "a strange status": "UPDATE runs SET status = '<b>'; UPDATE pages SET status = '<b>'",
    "no headline": "UPDATE pages SET headline = x'ff00'",
    "no number": "UPDATE measurements SET value = 'x'",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM runs; END",
}


@pytest.mark.parametrize("kind", HISTORIES)
def test_a_history_that_nobody_of_us_wrote_stops_no_report(
    kind: str, kit: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / history.FILE_NAME
    file.write_bytes(kit["history"])
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.executescript(HISTORIES[kind])
    index_of(tmp_path)
    compare.changes(tmp_path, kit["document"], NOW)
    history.series(tmp_path, "capacity.free")
    row = history.RunRow("20260802T120000Z", NOW, "ok", False, ())
    history.record(tmp_path, row, [])
    assert row.stamp in {run.stamp for run in history.runs(tmp_path)}


def test_a_history_that_is_a_link_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / history.FILE_NAME).symlink_to(tmp_path / "elsewhere")
    row = history.RunRow("20260802T120000Z", NOW, "ok", False, ())
    history.record(tmp_path / "reports", row, [])
    assert not (tmp_path / "elsewhere").exists()
    assert [run.stamp for run in history.runs(tmp_path / "reports")] == [row.stamp]


@AS_ROOT
def test_a_history_of_somebody_else_costs_the_trends_and_nothing_else(tmp_path: Path) -> None:
    tmp_path.joinpath("private").mkdir(mode=0o700)
    reader = os.fork()
    if not reader:
        code = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            code = len(history.series(tmp_path / "private", "used_bytes"))
        os._exit(code)
    assert os.waitpid(reader, 0)[1] == 0


DOCUMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "too deep": lambda _: "[" * 100_000,
    "no data": lambda d: {**d, "data": None},
    "strange checks": lambda d: {**d, "checks": [{**d["checks"][0], "name": {"a": 1}}]},
    "half a character": lambda d: {**d, "data": {**d["data"], "\ud800": 5}},
    "a number without end": lambda d: {**d, "checks": [{**d["checks"][0], "value": 10**400}]},
    "a strange path": lambda d: {**d, "settings": {"database": "/\0"}},
    "a path that is none": lambda d: {**d, "settings": {"database": ["x"]}},
    "a time before all time": lambda d: {
        **d,
        "changes": {
            "previous": "0001-01-01T00:00:00+14:00",
            "warned": {check["name"]: "0001-01-01T00:00:00+14:00" for check in d["checks"]},
        },
    },
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_json_of_an_earlier_run_is_not_believed(
    kind: str, kit: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "20260801T120000Z"
    run.mkdir()
    (tmp_path / "20269999T999999Z").mkdir()
    document = DOCUMENTS[kind](kit["document"])
    text = document if isinstance(document, str) else json.dumps(document)
    (run / "verify.json").write_text(text)
    publish._adopt(tmp_path, publish._present(tmp_path))
    row = history.RunRow(run.name, NOW, "ok", False, (history.PageRow("verify", "ok", "Healthy."),))
    history.record(tmp_path, row, [kit["document"]])
    assert compare.changes(tmp_path, kit["document"], NOW)["previous_run"] == run.name
    assert "<script" not in index_of(tmp_path)


# Bombs.

BOMBS = """
import gzip, io, json, os, resource, struct, sys
from pathlib import Path
import zstandard
from nescord_ops import chroma, copies, legacy, logs, pages, remote, settings, stream
from nescord_ops.errors import OpsError
root = Path(sys.argv[1])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def refused(work, *kinds):
    try:
        result = work()
    except kinds:
        return
    raise SystemExit(f"not refused: {result!r:.80}")

def frame(size):  # one frame of zeros
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.flush()])

def index(name, head, size):
    directory = root / name
    directory.mkdir()
    (directory / chroma.PICKLE).write_bytes(head)
    os.truncate(directory / chroma.PICKLE, size)
    return lambda: [*chroma.id_map(directory)]

before = peak()
bomb = frame(64 << 20)
sized = zstandard.ZstdCompressor().compress(bytes(16 << 20))
for packed in (bomb, sized, b"\\x28\\xb5\\x2f\\xfd" + bytes(9)):
    refused(lambda packed=packed: pages.unpack(packed, None, b""), ValueError)
refused(lambda: pages.unpack(frame(1 << 20), bomb, b""), ValueError)
for head in (b"X\\xff\\xff\\xff\\x7f", b"\\x8d" + (1 << 31).to_bytes(8, "little"), b"V", b"I",
             b"\\x8b\\xff\\xff\\xff\\x7f", b"B\\xff\\xff\\xff\\x7f", b"}(" * 400000):
    refused(index(head[:1].hex(), b"\\x80\\x02" + head, 3 << 30), OpsError)
wide = root / "wide"
wide.mkdir()
(wide / "header.bin").touch()
os.truncate(wide / "header.bin", 8 << 30)
refused(lambda: chroma.read_hnsw(wide), OpsError)
entry = struct.pack("<4s6H3L5H2L", b"PK\\1\\2", *[0] * 9, 1, 0, 0, 0, 0, 0, 0) + b"x"
packed = root / "data" / "backups" / "backup_20260102_030405_auto.db.zip"
packed.parent.mkdir(parents=True)
end = struct.pack("<4s4H2LH", b"PK\\5\\6", 0, 0, 65535, 65535, len(entry) * 800_000, 0, 0)
packed.write_bytes(entry * 800_000 + end)
refused(lambda: legacy.unpacked_bytes(legacy.recognise(packed)), OpsError)
log = root / "bot.log"
log.touch()
os.truncate(log, 256 << 20)
assert logs.read([log]).cut_lines == 1
with gzip.open(log, "wb", 1) as file:
    for _ in range(32):
        file.write(bytes(1 << 20))
assert logs.read([log]).cut_lines == 1
log.write_text("\\n".join(["[" * 60_000, '{"message":' * 5000, '{"message": ' + "[" * 50_000]))
assert logs.read([log]).lines == 3
record = stream.record(json.loads((root / "record.json").read_text()), %r)
for content in (bomb, b"\\x28\\xb5\\x2f\\xfd\\x00\\xff" + bytes(30)):
    source = io.BytesIO(content)
    to = root / f"to{len(content)}"
    refused(lambda: stream.unpack(source.read, to, record, None), OpsError)
place = root / "place"
place.mkdir()
for text in (b"[" * (4 << 20), b'{"a":' * (1 << 20), b"1" * (3 << 20), b"[" + b"[]," * (1 << 20)):
    (place / "%s.json").write_bytes(text)
    (copy,) = copies.every(remote.connect(str(place)))
    assert copy.fault
(place / "%s.json").touch()
os.truncate(place / "%s.json", 4 << 30)
(copy,) = copies.every(remote.connect(str(place)))
assert copy.fault
(root / ".env").touch()
os.truncate(root / ".env", 1 << 30)
refused(lambda: settings.load(app_dir=root), OpsError)
print(before, peak(), sum(path.stat().st_blocks * 512 for path in root.glob("to*/**/*")))
""" % ((fuzzing.ID,) + (fuzzing.ID,) * 3)


def test_bombs_take_no_memory_and_no_room(kit: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(kit["record"]["record"]))
    command = [sys.executable, "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    before, after, written = map(int, done.stdout.split())
    assert after - before < 160
    assert written < 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "A0=xxxxxxxxxx\n" + "".join(f"A{n + 1}=${{A{n}}}${{A{n}}}\n" for n in range(60)),
        "A=" + "${B:-" * 18_000,
        "A=${B}" + "}" * 5000,
    ],
)
def test_a_variable_that_grows_by_its_references_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(text)
    began = time.process_time()
    with pytest.raises(OpsError, match="too long for a value that refers to others"):
        settings.load(app_dir=tmp_path, required=False)
    assert time.process_time() - began < 2


@examples(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ABC"),
            st.text(st.sampled_from("ABC${}:-x '\"\\#é"), max_size=12),
        ),
        max_size=8,
    )
)
def test_the_env_file_is_read_as_the_bot_reads_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    from dotenv import dotenv_values

    file = tmp_path_factory.getbasetemp() / ".env"
    file.write_text("".join(f"{name}={value}\n" for name, value in lines), "utf-8")
    assert settings._written(file) == dotenv_values(file, encoding="utf-8")


# Who may read and write what is written.


@contextlib.contextmanager
def masked(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def strangers(root: Path) -> dict[str, str]:
    """What others than the owner may enter, read or write, directories that are shut left out."""
    found = {}
    for path, seen in volume.walk(root):
        shut = any(not above.stat().st_mode & 0o011 for above in path.parents)
        if seen and seen.st_mode & 0o077 and not shut and not stat.S_ISLNK(seen.st_mode):
            found[str(path.relative_to(root))] = oct(seen.st_mode)
    return found


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that everybody may enter, as /tmp is; pytest shuts its own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("mask", [0, pytest.param(0o077, marks=pytest.mark.slow)])
def test_backups_keys_and_copies_are_for_their_owner_only(
    mask: int, demo: MakeDemo, open_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo(directory=open_home / "app")
    temporary = open_home / "tmp"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    found = settings.load(app_dir=made.app_dir, backup_dir=open_home / "ours" / "backups")
    (open_home / "place").mkdir()
    (open_home / "place").chmod(0o777)
    with masked(mask):
        created = backup.create(found).backup
        assert created
        backup.export(found, created.id, open_home / "exported")
        restore.run(found, created.id, to=open_home / "new" / "restored")
        keys.keygen(open_home / "identity")
        offsite.push(found, created.id, url=str(open_home / "place"), plain=True)
        offsite.pull(found, created.id, url=str(open_home / "place"), to=open_home / "pulled")
        for bot in inventory.bots(found):
            with snapshot.scratch(1) as root:
                inventory.unpack(bot, found, root / "copy")
                assert strangers(root) == {}
        with snapshot.capture(found) as copy:
            assert strangers(copy.root) == {}
            modes = {stat.S_IMODE(seen.st_mode) for _, seen in volume.walk(copy.root) if seen}
            assert modes == {0o600, 0o700}
    assert stat.S_IMODE((open_home / "ours" / "backups").stat().st_mode) == 0o700
    for name in ("ours/backups", "exported/" + created.id, "new/restored", "identity", "pulled"):
        assert strangers(open_home / name) == {}
    assert strangers(open_home / "place").keys() == {"."}
    assert [*temporary.iterdir()] == []


def test_the_command_line_lets_nobody_else_write(tmp_path: Path) -> None:
    code = "import os; os.umask(0); from nescord_ops.cli import main; main()"
    command = [sys.executable, "-c", code, "deploy", "--write", str(tmp_path / "new")]
    subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    modes = [seen.st_mode & 0o022 for _, seen in volume.walk(tmp_path / "new") if seen]
    assert len(modes) > 2
    assert set(modes) == {0}


# Somebody else who writes in the same directory.

ATTACKER = """
import os, sys
base, loot = sys.argv[1:]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
read = 0
print("at work", flush=True)
while True:
    for name in os.listdir(base):
        path = f"{base}/{name}"
        for work in (
            lambda: [open(f"{path}/{below}").read(1) for below in os.listdir(path)],
            lambda: open(path).read(1),
            lambda: (os.rename(path, f"{loot}/{os.urandom(4).hex()}"), os.symlink(loot, path)),
            lambda: (os.unlink(path), os.symlink(loot, path)),
            lambda: open(f"{path}/planted", "w").close(),
            lambda: os.symlink(loot, f"{path}/copy"),
        ):
            try:
                work()
            except OSError:
                pass
            else:
                print("did it", name, flush=True)
"""


@contextlib.contextmanager
def attacker(base: Path, loot: Path) -> Iterator[list[str]]:
    """Another user at work in a directory; what he managed to do is in the list afterwards."""
    said: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", ATTACKER, base, loot], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        yield said
    finally:
        process.kill()
        said += process.communicate()[0].splitlines()


@AS_ROOT
def test_another_user_of_the_scratch_directory_gets_and_changes_nothing(
    base_demo: Demo, open_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, loot = open_home / "tmp", open_home / "loot"
    shared.mkdir()
    shared.chmod(0o1777)
    loot.mkdir()
    loot.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    found = settings.load(app_dir=base_demo.app_dir)
    with attacker(shared, loot) as did:
        for _ in range(8):
            with snapshot.capture(found) as copy:
                assert copy.database
                assert copy.chroma
                with database.open_copy(copy.database) as db:
                    assert database.integrity(db, quick=True) == []
    assert did == []
    assert [*loot.iterdir()] == []


@AS_ROOT
def test_another_user_of_the_off_site_directory_cannot_point_us_elsewhere(
    kit: dict[str, Any], open_home: Path
) -> None:
    """He may remove what is there and put links in its place: we follow none."""
    place, loot = open_home / "place", open_home / "loot"
    for path in (place, loot):
        path.mkdir()
        path.chmod(0o777)
    victim = loot / "victim"
    victim.write_text("mine")
    victim.chmod(0o644)
    found = sealed(kit, open_home, "UPDATE generation SET number = number")
    names = [f"{fuzzing.ID}.tar.zst.part", f"{fuzzing.ID}.json.part"]
    stop = threading.Event()

    def swaps() -> None:
        while not stop.is_set():
            for name in names:
                with contextlib.suppress(OSError):
                    (place / name).symlink_to(victim)

    thread = threading.Thread(target=swaps)
    thread.start()
    try:
        for _ in range(10):
            with contextlib.suppress(OpsError):
                offsite.push(found, fuzzing.ID, url=str(place), plain=True)
    finally:
        stop.set()
        thread.join()
    assert victim.read_text() == "mine"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644


@pytest.mark.parametrize("what", ["link", "open"])
def test_a_directory_that_somebody_put_in_our_way_is_not_used(what: str, tmp_path: Path) -> None:
    way, loot = tmp_path / "replaced_20260801_120000", tmp_path / "loot"
    loot.mkdir(mode=0o700)
    if what == "link":
        way.symlink_to(loot)
    else:
        way.mkdir()
        way.chmod(0o755)
    with pytest.raises(VolumeError, match="not as this program makes it"):
        volume.private_directory(way)
    live, staged = tmp_path / "notes.db", tmp_path / "staged"
    live.write_text("live")
    staged.write_text("new")
    with pytest.raises(VolumeError):
        swap._exchange(swap.Swap("database", live, staged, way))
    assert (live.read_text(), staged.read_text()) == ("live", "new")
    assert [*loot.iterdir()] == []


def test_a_restore_writes_through_no_link(demo: MakeDemo, tmp_path: Path) -> None:
    """Its names follow from the time, so whoever may write on the volume can guess them."""
    made = demo()
    found = settings.load(app_dir=made.app_dir)
    created = backup.create(found, now=NOW).backup
    assert created
    loot = tmp_path / "loot"
    loot.mkdir(mode=0o777)
    (loot / "keep").touch()
    left = made.database.parent / ".nescord-ops-restore-20260731_120000"
    left.symlink_to(loot)
    kept = made.database.parent / "replaced_20260801_120000"
    before = made.database.read_bytes()

    def plant(said: str) -> None:
        if not os.path.lexists(kept):
            kept.symlink_to(loot)

    with pytest.raises(VolumeError, match="not as this program makes it"):
        restore.run(found, created.id, now=NOW, progress=plant)
    assert not os.path.lexists(left)
    assert [path.name for path in loot.iterdir()] == ["keep"]
    assert made.database.read_bytes() == before


NOTES: dict[str, Callable[[Path], object]] = {
    "deep": lambda note: note.write_text("[" * 60_000),
    "large": lambda note: note.touch() or os.truncate(note, 8 << 30),
    "a pipe": lambda note: os.mkfifo(note),
    "a link": lambda note: note.symlink_to("/dev/zero"),
    "of no store": lambda note: note.write_text(
        json.dumps({"purpose": "x", "stamp": "20260801_120000", "places": {"x": "None"}})
    ),
    "of nothing": lambda note: note.write_text(
        json.dumps({"purpose": "x", "stamp": "20260801_120000", "places": {}})
    ),
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_of_a_swap_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    NOTES[kind](tmp_path / "data" / swap.INTENT)
    with pytest.raises(VolumeError, match="is no note of a swap"):
        swap.recover(settings.load(app_dir=tmp_path, required=False))


def test_stale_scratch_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Somebody may rename a directory of ours to the name of scratch: its mode tells."""
    mine = tmp_path / f"{snapshot.SCRATCH_PREFIX}abcdefgh"
    mine.mkdir()
    mine.chmod(0o755)
    (mine / "chroma.sqlite3").write_text("live")
    os.utime(mine, (0, 0))
    stale = tmp_path / f"{snapshot.SCRATCH_PREFIX}hgfedcba"
    stale.mkdir(mode=0o700)
    os.utime(stale, (0, 0))
    with snapshot.scratch(1, tmp_path):
        assert (mine / "chroma.sqlite3").read_text() == "live"
        assert not stale.exists()
