"""Every command at 0.6, 2.4 and 10 GB: is time linear and memory flat?

    python tests/bench/size.py [--sizes 0.6 2.4 10] [--dir DIR] [--only STEP...]

Half of each volume is SQLite (short notes, long transcriptions and edits), half Chroma. Building an
HNSW index of that size takes hours, so a real store of 2,500 records is built by chromadb in a
child process and enlarged: rows by SQL; elements of the index as copies of its own, each vector
moved by less than search can tell, linked as in the real graph. Labels, id map, counts and sequence
numbers join up, so every check has as much to look at as in a real store, and Chroma opens it.

Needs four times the largest size in DIR (default: TMPDIR). Each command runs once, in a process of
its own. Memory is the peak of the sum of PSS over the process tree, sampled every 50 ms; page cache
is not in it. Processor time is that of all processes of the tree. Results are kept in
DIR/results.json, so that sizes can be measured one by one; the table is made of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pickle
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import report
import workload

from nescord_ops import chroma, chroma_build, sample
from nescord_ops.sample_schema import MIGRATIONS, SCHEMA

BASE = 2500  # records of the real store
CHUNK = 20_000  # notes that are made in memory
NOTE_BYTES = 10_800  # of both stores together, measured
TOPICS = 97  # tags; the sample's vectors are clustered by them
NOISE = 0.008  # of a vector's length: a cosine distance of 0.00003, far below 0.0001
DAY = 0.005  # of the transcriptions are new in the next backup
_HEADER = struct.Struct("<i6QiI3QdQ")
_TICKS = os.sysconf("SC_CLK_TCK")
_STAMP = "2026-06-01 00:00:00"


@dataclasses.dataclass(frozen=True, slots=True)
class Volume:
    """A volume in a directory of its own: `app` is the bot's, `notes` are in both stores."""

    app: Path
    notes: int

    @property
    def database(self) -> Path:
        """The notes."""
        return self.app / "data" / "nescordbot.db"

    @property
    def chroma(self) -> Path:
        """Chroma's directory."""
        return self.app / "data" / "chromadb"


def build(app: Path, gigabytes: float) -> Volume:
    """Write a volume of about that size, healthy but for the search table that every bot lacks."""
    made = Volume(app, max(2, round(gigabytes * 1e9 / NOTE_BYTES / BASE)) * BASE)
    if (app / ".env").exists():
        return made
    made.chroma.mkdir(parents=True)
    with _fast(made.database) as database:
        database.execute("PRAGMA journal_mode=OFF").fetchall()
        database.executescript(SCHEMA)
        for version, name in enumerate(MIGRATIONS, 1):
            row = (version, name, name, name, _STAMP)
            database.execute("INSERT INTO schema_migrations VALUES (?,?,?,?,?)", row)
        _fill(database, 0, BASE, made.notes)
    with sample.connect(made.database) as database:
        chroma_build.run(made.chroma, "add", records=sample.records(database))
    chroma_build.run(made.chroma, "persist")
    with _fast(made.database) as database:
        database.execute("PRAGMA journal_mode=OFF").fetchall()
        for first in range(BASE, made.notes, CHUNK):
            _fill(database, first, min(first + CHUNK, made.notes), made.notes)
        database.execute("PRAGMA journal_mode=WAL").fetchall()
    with _fast(made.chroma / chroma.DATABASE) as vectors:
        vectors.execute("PRAGMA journal_mode=OFF").fetchall()
        vectors.execute("ATTACH ? AS bot", (str(made.database),))
        (segment,) = vectors.execute("SELECT id FROM segments WHERE scope = 'VECTOR'").fetchone()
        _enlarge_rows(vectors)
    _enlarge_index(made.chroma / segment, made)
    environment = sample.ENVIRONMENT.replace("VOLUME_GB=5", "VOLUME_GB=50")
    (app / ".env").write_text(environment, "utf-8")
    (app / ".env").chmod(0o600)
    return made


@contextlib.contextmanager
def _fast(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database that nobody else uses, in one transaction; indices fit into memory."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-1000000")
        yield connection


def _fill(database: sqlite3.Connection, first: int, last: int, notes: int) -> None:
    """Insert some of the notes, synced, each with a transcription and an edit."""
    draw = random.Random(first)
    text = workload._Text(draw)
    passages = [text.content(draw) for _ in range(4000)]
    short = [text.content(draw, 1) for _ in range(4000)]
    start = datetime.now(UTC) - timedelta(days=240)

    def note(number: int) -> tuple[object, ...]:
        title, content = draw.choice(short)[:60], draw.choice(short)
        tags = f'["会議", "{number % TOPICS}"]'
        key = sample.note_id(0, number)
        at = f"{start + timedelta(seconds=number * 20_000_000 / notes):%Y-%m-%dT%H:%M:%S}"
        hashed = sample.embedding_hash(title, content, tags)
        return key, title, content, tags, at, hashed, *draw.choices(passages, k=2)

    database.execute("BEGIN")
    database.execute("CREATE TEMP TABLE made(id, title, content, tags, at, hash, spoken, after)")
    database.executemany("INSERT INTO made VALUES (?,?,?,?,?,?,?,?)", map(note, range(first, last)))
    database.execute(
        "INSERT INTO knowledge_notes SELECT id, title, content, tags, 'voice', 'message-' || rowid,"
        " '7', '8', '9', at, at, NULL FROM made ORDER BY rowid"
    )
    database.execute(
        "INSERT INTO sync_metadata(note_id, last_synced_at, sync_status, chromadb_doc_id,"
        " embedding_hash) SELECT id, at, 'synced', 'note_' || id, hash FROM made ORDER BY rowid"
    )
    database.execute(
        "INSERT INTO transcriptions(user_id, transcript, summary, note_id, tags)"
        " SELECT '7', spoken, content, id, tags FROM made ORDER BY rowid"
    )
    database.execute(
        "INSERT INTO note_history(note_id, title_before, content_before, title_after,"
        " content_after, user_id) SELECT id, title, content, title, after, '7' FROM made"
        " ORDER BY rowid"
    )
    database.execute("COMMIT")
    database.execute("DROP TABLE temp.made")


def _enlarge_rows(vectors: sqlite3.Connection) -> None:
    """Give every note without one its record, as Chroma writes it, and join the sequences up."""
    index = "embedding_metadata_string_value"
    (sql,) = vectors.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
    (segment,) = vectors.execute("SELECT id FROM segments WHERE scope = 'METADATA'").fetchone()
    (last,) = vectors.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()
    (held,) = vectors.execute("SELECT max(id) FROM embeddings").fetchone()
    assert held == BASE, held
    vectors.create_function("document", 3, sample.document, deterministic=True)
    vectors.execute("BEGIN")
    vectors.execute(f"DROP INDEX {index}")
    vectors.execute(
        "INSERT INTO embeddings(id, segment_id, embedding_id, seq_id) SELECT rowid, ?,"
        " 'note_' || id, ? + rowid FROM bot.knowledge_notes WHERE rowid > ? ORDER BY rowid",
        (segment, last - BASE, held),
    )
    keys = {
        "chroma:document": "document(title, content, tags)", "content_type": "'note'",
        "created_at": "created_at", "source": "source_type", "tags": "tags", "title": "title",
        "updated_at": "updated_at", "user_id": "user_id",
    }  # fmt: skip
    values = " ".join(f"WHEN '{key}' THEN {value}" for key, value in keys.items())
    vectors.execute(
        "INSERT INTO embedding_metadata(id, key, string_value) SELECT n.rowid, k.value,"
        f" CASE k.value {values} END FROM bot.knowledge_notes n CROSS JOIN json_each(?) k"
        " WHERE n.rowid > ? ORDER BY n.rowid",
        (json.dumps([*keys]), held),
    )
    vectors.execute(
        "INSERT INTO embedding_fulltext_search(rowid, string_value) SELECT id, string_value"
        " FROM embedding_metadata WHERE key = 'chroma:document' AND id > ? ORDER BY id",
        (held,),
    )
    (newest,) = vectors.execute("SELECT max(seq_id) FROM embeddings").fetchone()
    newest = max(newest, last)
    vectors.execute("UPDATE max_seq_id SET seq_id = ?", (newest,))
    vectors.execute("DELETE FROM embeddings_queue WHERE seq_id < ?", (last,))
    vectors.execute("UPDATE embeddings_queue SET seq_id = ?", (newest,))
    vectors.execute(sql)
    vectors.execute("COMMIT")


def _enlarge_index(directory: Path, made: Volume) -> None:
    """Repeat the real index, each time with labels and links of its own and vectors moved a bit."""
    import numpy

    header = [*_HEADER.unpack((directory / "header.bin").read_bytes())]
    held, size, label, data = header[3], header[4], header[5], header[6]
    with (directory / chroma.PICKLE).open("rb") as file:
        known = pickle.load(file)  # chromadb's, made above
    assert held == BASE == len(known["id_to_label"]), (held, len(known["id_to_label"]))
    element = numpy.dtype(
        {
            "names": ["count", "links", "vector", "label"],
            "formats": ["<u4", "(32,)<u4", f"({(label - data) // 4},)<f4", "<u8"],
            "offsets": [0, 4, data, label],
            "itemsize": size,
        }
    )
    base = numpy.fromfile(directory / "data_level0.bin", element)
    linked = numpy.arange(32) < (base["count"] & 0xFFFF)[:, None]
    noise = numpy.random.default_rng(0)
    blocks = made.notes // BASE
    with (directory / "data_level0.bin").open("ab") as file:
        for number in range(1, blocks):
            block = base.copy()
            block["links"] += (linked * number * BASE).astype("u4")
            block["label"] += number * BASE
            moved = noise.standard_normal(base["vector"].shape, dtype="f4")
            moved *= NOISE / base["vector"].shape[1] ** 0.5
            moved += base["vector"]
            block["vector"] = moved / numpy.linalg.norm(moved, axis=1, keepdims=True)
            block.tofile(file)
    with (directory / "length.bin").open("ab") as file:
        file.write((directory / "length.bin").read_bytes() * (blocks - 1))
    with (directory / "link_lists.bin").open("ab") as file:  # none above the lowest level
        file.write(bytes(4 * BASE * (blocks - 1)))
    header[2] = header[3] = made.notes
    (directory / "header.bin").write_bytes(_HEADER.pack(*header))
    order = sorted(known["label_to_id"])
    labels = {**known["id_to_label"]}
    for number in range(1, blocks):
        for at, old in enumerate(order):
            labels[f"note_{sample.note_id(0, number * BASE + at)}"] = old + number * BASE
    known["id_to_label"] = labels
    known["label_to_id"] = {value: key for key, value in labels.items()}
    known["total_elements_added"] = made.notes
    with (directory / chroma.PICKLE).open("wb") as file:
        pickler = pickle.Pickler(file, 3)
        pickler.fast = True  # no memo, as Chroma's
        pickler.dump(known)


def change(made: Volume) -> None:
    """Let a day pass: new transcriptions, at the end of the file, and edits all over it."""
    with _fast(made.database) as database:
        database.execute("BEGIN")
        count = round(made.notes * DAY)
        database.execute(
            "INSERT INTO transcriptions(user_id, transcript, summary, note_id, tags)"
            " SELECT user_id, transcript || rowid, summary, note_id, tags FROM transcriptions"
            " LIMIT ?",
            (count,),
        )
        database.execute(
            "UPDATE transcriptions SET transcript = transcript || '!' WHERE rowid % 500 = 0"
        )
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def run(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command; return what it took and printed."""
    used: dict[int, float] = {}
    peak = 0
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.DEVNULL)
        done = status = 0
        while not done:
            peak = max(peak, _look(process.pid, used))
            time.sleep(0.05)
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        out.seek(0)
        printed = out.read().decode()
    waited = usage.ru_utime + usage.ru_stime
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": max(waited, sum(used.values())),
        "peak_bytes": peak,
        "load": load,
        "code": code,
        "printed": printed,
    }


def _look(root: int, used: dict[int, float]) -> int:
    """Note the processor time of each process of a tree; return the memory of all of them."""
    total = 0
    for pid in report.tree(root):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


class Bench:
    """One size: its volume, its places and what each command took."""

    def __init__(self, root: Path, gigabytes: float, only: list[str], kept: Path) -> None:
        self.root, self.only, self.kept = root, only, kept
        self.size = f"{gigabytes:g}"
        began = time.monotonic()
        self.volume = build(root / "app", gigabytes)
        self.bytes = sum(p.stat().st_size for p in (root / "app").rglob("*") if p.is_file())
        print(
            f"{self.bytes / 1e9:.2f} GB, {self.volume.notes:,} notes,"
            f" made in {time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
        for name in ("scratch", "reports", "offsite"):
            (root / name).mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "TMPDIR": str(root / "scratch"),
            "NESCORD_OPS_REPORTS_DIR": str(root / "reports"),
            "NESCORD_OPS_OFFSITE_URL": str(root / "offsite"),
        }
        if not (root / "recipient").exists():
            made = json.loads(self.ask("offsite", "keygen", str(root / "key")))
            (root / "recipient").write_text(made["recipient"])
        self.environment["NESCORD_OPS_AGE_RECIPIENT"] = (root / "recipient").read_text()

    def command(self, *words: str) -> list[str]:
        """The command line of a command."""
        ours = [sys.executable, "-m", "nescord_ops", "--app-dir", str(self.volume.app), "--json"]
        return [*ours, *words]

    def ask(self, *words: str) -> str:
        """Run a command that is not measured and return what it prints."""
        run = subprocess.run(
            self.command(*words), env=self.environment, check=True, capture_output=True, text=True
        )
        return run.stdout

    def measure(self, step: str, *words: str) -> None:
        """Run one command and keep what it took, unless it was not asked for."""
        if self.only and step not in self.only:
            return
        taken = run(self.command(*words), self.environment)
        printed = taken.pop("printed")
        results = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        mine = results.setdefault(self.size, {"bytes": self.bytes, "steps": {}})
        mine["steps"][step] = taken
        self.kept.write_text(json.dumps(results, indent=1))
        bad = [
            f"{c['name']}: {c['status']}, {c['summary']}"
            for c in (json.loads(printed) if printed.startswith("{") else {}).get("checks", ())
            if c["status"] != "ok"
        ]
        print(
            f"  {step:22} {taken['seconds']:7.1f} s {taken['cpu_seconds']:7.1f} CPU s"
            f" {taken['peak_bytes'] / 1e6:5.0f} MB  load {taken['load']:.1f}  exit {taken['code']}",
            *(bad if os.environ.get("SIZE_VERBOSE") else ()),
            sep="\n      ",
            file=sys.stderr,
            flush=True,
        )

    def ids(self) -> list[str]:
        """The backups, newest first."""
        return [each["id"] for each in json.loads(self.ask("backup", "list"))["backups"]]

    def everything(self) -> None:
        """Every command, one after the other; what no other needs of what it left is removed."""
        self.measure("backup create, first", "backup", "create")
        self.measure("verify quick", "verify", "--depth", "quick")
        self.measure("verify full", "verify")
        self.measure("capacity", "capacity")
        self.measure("cost", "cost")
        self.measure("troubleshoot", "troubleshoot")
        self.measure("deploy", "deploy")
        self.measure("clean (dry run)", "clean")
        self.measure("report of six", "report", "--timeout", "3600")
        if "backup create, next" in (self.only or ["backup create, next"]):
            change(self.volume)
        self.measure("backup create, next", "backup", "create")
        self.measure("backup list", "backup", "list")
        newest = self.ids()[0] if self.ids() else ""
        self.measure("backup check", "backup", "check")
        self.measure("backup drill", "backup", "drill", newest)
        beside, key = self.root / "beside", str(self.root / "key")
        self.measure("backup export", "backup", "export", newest, str(beside))
        shutil.rmtree(beside, ignore_errors=True)
        self.measure("restore --to", "restore", newest, "--to", str(beside))
        shutil.rmtree(beside, ignore_errors=True)
        self.measure("offsite push", "offsite", "push", newest)
        self.measure("offsite check", "offsite", "check", newest, "--identity", key)
        pull = ("offsite", "pull", newest, "--identity", key, "--to", str(beside))
        self.measure("offsite pull --to", *pull)
        shutil.rmtree(beside, ignore_errors=True)
        self.measure("offsite prune", "offsite", "prune", "--keep", "1")
        self.measure("backup prune", "backup", "prune", "--keep", "1")


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table in Markdown, a column a size."""
    sizes = sorted(results, key=float)
    heads = [f"{results[size]['bytes'] / 1e9:.1f} GB" for size in sizes]
    lines = [
        f"| seconds / CPU seconds / MB | {' | '.join(heads)} | CPU a GB, last / first | load |"
    ]
    lines.append("|---" * (len(sizes) + 3) + "|")
    steps = list(dict.fromkeys(step for size in sizes for step in results[size]["steps"]))
    for step in steps:
        cells, a_gigabyte, loads = [], [], []
        for size in sizes:
            one = results[size]["steps"].get(step)
            if not one:
                cells.append("")
                continue
            mark = "" if one["code"] == 0 else f" (exit {one['code']})"
            cells.append(
                f"{one['seconds']:.1f} / {one['cpu_seconds']:.1f} /"
                f" {one['peak_bytes'] / 1e6:.0f}{mark}"
            )
            a_gigabyte.append(one["cpu_seconds"] / results[size]["bytes"])
            loads.append(f"{one['load']:.0f}")
        ratio = f"{a_gigabyte[-1] / a_gigabyte[0]:.2f}" if len(a_gigabyte) > 1 else ""
        lines.append(f"| {step} | {' | '.join(cells)} | {ratio} | {', '.join(loads)} |")
    return "\n".join(lines)


def main() -> None:
    """Build each size, run every command on it, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="*", type=float, default=[0.6, 2.4, 10], metavar="GB")
    parser.add_argument("--only", nargs="*", default=[], metavar="STEP")
    parser.add_argument("--keep", action="store_true", help="leave the volumes for another run")
    parser.add_argument("--dir", type=Path, help="where to work, and where results.json is kept")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(exist_ok=True)
        kept = root / "results.json"
        for size in options.sizes:
            where = root.absolute() / f"{size:g}"
            where.mkdir(exist_ok=True)
            Bench(where, size, options.only, kept).everything()
            if not options.keep:
                shutil.rmtree(where)
        results = json.loads(kept.read_text())
        print(table(results))


if __name__ == "__main__":
    main()
