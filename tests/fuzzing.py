"""What the volume holds, made by an enemy: one target for each family of parsers.

A target turns bytes into content, puts it where the package will read it, and reads it. Most are
structured: bytes choose values, names and damage for files that are otherwise right, since random
bytes go no deeper than the first check. What holds for every target, whatever the bytes, is in
`attempt`. `tests/bench/fuzz.py` runs them for hours, `test_hostile.py` for a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import html.parser
import io
import json
import os
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard
from pyrage import x25519

from nescord_ops import (
    capacity,
    chroma,
    copies,
    cost,
    database,
    deploy,
    freshness,
    graph,
    history,
    index,
    inventory,
    keys,
    legacy,
    logs,
    pages,
    proof,
    publish,
    readback,
    remote,
    render,
    settings,
    show,
    store,
    storefile,
    stores,
    stream,
    swap,
    troubleshoot,
    verify,
    waste,
)
from nescord_ops import demo as demos
from nescord_ops.checks import Status, fail, plain
from nescord_ops.errors import OpsError, VolumeError
from nescord_ops.snapshot import DATABASE, Snapshot

SECONDS, MEMORY_BYTES = 2.0, 96 << 20
NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
ID = "nescordbot_backup_20260801_120000"
BAIT = (
    "<script>window.__pwned=1</script>", "<img src=x onerror=alert(1)>", '" onmouseover="x',
    "../../climbed", "/etc/passwd", "..", "", "\0", "\x1b]0;x\x07", "\u202e", "\udcff", "\ud800",
    "2026-08-01T12:00:00", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00-14:00", "NaN", "1e999",
    "nescord_knowledge", "cosine", "{}", "[" * 5000, '{"a":' * 5000, "x" * 70_000, "9" * 5000,
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 1 << 31, (1 << 62) - 1, (1 << 63) - 1, -(1 << 63), 1e308, -0.5)


class Draw:
    """Choices made by bytes: the same bytes, the same choices; zeros when they run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def bytes(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def rest(self) -> bytes:
        return self.bytes(len(self.data))

    def number(self, width: int = 1) -> int:
        return int.from_bytes(self.bytes(width), "big")

    def pick(self, options: Any) -> Any:
        options = tuple(options) or ("x",)
        return options[self.number(2 if len(options) > 256 else 1) % len(options)]

    def blob(self) -> bytes:
        return self.bytes(self.number())

    def text(self) -> str:
        if self.number() % 2:
            return str(self.pick(BAIT))
        return self.blob().decode("utf-8", "surrogateescape")

    def cell(self) -> Any:
        """A value of any type that SQLite stores."""
        kind = self.number() % 5
        if kind == 0:
            return None
        if kind == 1:
            return self.pick(NUMBERS)
        if kind == 2:
            return self.blob()
        return self.text().encode("utf-8", "surrogatepass").decode("utf-8", "replace")

    def value(self, depth: int = 3) -> Any:
        """A JSON value."""
        kind = self.number() % 8
        if kind == 0:
            return None
        if kind == 1:
            return self.pick((True, False))
        if kind == 2:
            return self.pick(NUMBERS)
        if kind == 3 and depth:
            return [self.value(depth - 1) for _ in range(self.number() % 4)]
        if kind == 4 and depth:
            return {self.text(): self.value(depth - 1) for _ in range(self.number() % 4)}
        return self.text()

    def changed(self, document: Any) -> Any:
        """A JSON document with one value somewhere replaced, left out or added."""
        if isinstance(document, dict) and document and self.number() % 5:
            key = self.pick(document)
            action = self.number() % 8
            if action == 0:
                return {name: item for name, item in document.items() if name != key}
            if action == 1:
                return {**document, self.text(): self.value()}
            return {**document, key: self.changed(document[key])}
        if isinstance(document, list) and document and self.number() % 5:
            at = self.number() % len(document)
            if self.number() % 4 == 0:
                return document[:at] + document[at:] * 2
            return [*document[:at], self.changed(document[at]), *document[at + 1 :]]
        return self.value()

    def json(self, document: Any) -> bytes:
        """A JSON document as text, right but for some values, or not JSON at all."""
        if self.number() % 8 == 0:
            return self.rest() if self.number() % 2 else self.text().encode("utf-8", "replace")
        for _ in range(1 + self.number() % 3):
            document = self.changed(document)
        return json.dumps(document).encode()


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """Where a target works: `root` is its own and empty, `kit` what was made once for all runs."""

    root: Path
    kit: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A family of parsers: `run` reads what the bytes make; `seeds` are bytes to begin with."""

    name: str
    run: Callable[[bytes, Bench], None]
    seeds: Callable[[dict[str, Any]], list[bytes]]
    longest: int = 4096


class Defect(AssertionError):  # noqa: N818 - what was looked for
    """Something that must never happen; `where` tells one from another."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} ({where})")
        self.where = f"{what.split(':')[0]} {where}"


_watched: list[Path] = []  # while a target runs: its directory, outside of which nothing is written
_strayed: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every write outside the watched directory, every connection and every child process."""
    if not _watched:
        return
    if event in ("subprocess.Popen", "os.system", "socket.connect", "pickle.find_class", "os.exec"):
        _strayed.append(f"{event} {arguments[:1]!r}"[:200])
    named = arguments[:1]
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event in ("os.rename", "os.link", "os.symlink"):
        named = arguments[1:2] if event != "os.rename" else arguments[:2]
    elif event not in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime",
                       "shutil.rmtree", "os.chown"):  # fmt: skip
        return
    below = next((a for a in arguments[1:] if type(a) is int and a > 2), -1)  # a dir_fd
    base = f"/proc/self/fd/{below}" if event in ("os.remove", "os.rmdir") and below > 2 else "."
    for path in named:
        if isinstance(path, int):
            continue
        real = os.path.realpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118
        if real != "/dev/null" and not Path(real).is_relative_to(_watched[0]):
            _strayed.append(f"{event} {real}"[:200])


sys.addaudithook(_watch)


def attempt(target: Target, data: bytes, kit: dict[str, Any], home: Path) -> None:
    """Run a target on some bytes. Raise Defect unless it behaves.

    It returns or raises an OpsError, within SECONDS of CPU, growing by less than MEMORY_BYTES,
    writing nowhere but in its directory, starting nothing, connecting nowhere.
    """
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="run-", dir=home)))
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.process_time()
    _strayed.clear()
    tempfile.tempdir = str(root)
    _watched.append(root)
    try:
        target.run(data, Bench(root, kit))
    except OpsError as error:
        str(error).encode("utf-8", "strict")  # it can be printed
    except Defect:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/nescord_ops/" in f.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        raise Defect(f"{type(error).__name__}: {error!s:.200}", where) from error
    finally:
        took = time.process_time() - began
        _watched.clear()
        tempfile.tempdir = None
        for path, _, _ in os.walk(root):
            os.chmod(path, 0o700)  # noqa: PTH101
        shutil.rmtree(root)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss) * 1024
    if _strayed:
        raise Defect(f"strayed: {_strayed[0]}", target.name)
    if took > SECONDS:
        raise Defect(f"slow: {took:.1f} s", target.name)
    if grown > MEMORY_BYTES:
        raise Defect(f"large: {grown >> 20} MB", target.name)


def kit(home: Path) -> dict[str, Any]:
    """What the targets start from, made once: a small volume, a store, an off-site copy, a run."""
    made = demos.create(home / "app", notes=8, now=NOW)
    found = settings.load(app_dir=made.app_dir)
    tree, where = home / "tree", home / "store.sqlite3"
    (tree / "chromadb").mkdir(parents=True)
    (tree / DATABASE).write_bytes(b"notes " * 3000)
    (tree / "chromadb" / chroma.DATABASE).write_bytes(b"vectors")
    copy = Snapshot(made.app_dir, made.database, made.chroma_dir, {}, NOW, 0.0, 0.0, 1)
    evidence = {"kind": inventory.GENERATION, "keep": 3, "drill": False}
    evidence |= proof.witness(copy, found, verify.examine(copy, found))
    evidence["checked"] = {"at": NOW.isoformat(), "outcome": "ok", "reason": ""}
    evidence["drilled"] = {**evidence["checked"], "outcome": "failed", "reason": "x"}
    evidence["proven_at"] = NOW.isoformat()
    with storefile.open_store(where, create=True) as opened:
        store.add(opened, ID, tree, evidence, taken_at=NOW)
        (backup,) = [inventory._of_store(where, kept) for kept in store.generations(opened)]
        identity = x25519.Identity.generate()
        packed, sealed = io.BytesIO(), io.BytesIO()
        record = stream.pack(opened, backup, packed.write, None)
        stream.pack(opened, backup, sealed.write, [identity.to_public()])
        at = {"pushed_at": NOW, "checked_at": NOW, "proven_at": None}
        pushed = copies.Copy(ID, record, len(packed.getvalue()), "0" * 64, False, **at)
        store.note(opened, ID, {"offsite": {**pushed.facts, "url": "s3://x/y"}})
    document = verify.run(found, depth="quick", now=NOW).to_dict()
    rows = (history.PageRow("verify", "ok", "Healthy."),)
    history.record(home, history.RunRow("20260801T110000Z", NOW, "ok", False, rows), [document])
    return {
        "demo": made,
        "index": next(path for path in made.chroma_dir.iterdir() if path.is_dir()),
        "tree": tree,
        "settings": found,
        "store": where.read_bytes(),
        "record": {**pushed.facts, "record": record.to_dict()},
        "stream": packed.getvalue(),
        "tar": zstandard.ZstdDecompressor()
        .decompressobj(read_across_frames=True)
        .decompress(packed.getvalue()),
        "sealed": sealed.getvalue(),
        "identity": identity,
        "document": document,
        "history": (home / history.FILE_NAME).read_bytes(),
        "secret": b"not for anybody " * 9,
    }


def _place(bench: Bench, *parts: str) -> Path:
    """A copy of the small volume to do harm to: the whole of it, or the parts named."""
    app = bench.root / "app"
    for part in parts or ("data/nescordbot.db", "data/chromadb"):
        source, target = bench.kit["demo"].app_dir / part, app / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    return app


def _snapshot(app: Path) -> Snapshot:
    notes, vectors = app / "data" / DATABASE, app / "data" / "chromadb"
    return Snapshot(app, notes, vectors, {}, NOW, 0.0, 0.0, 1)


def _examined(app: Path, bench: Bench) -> None:
    """Read copies of both stores in every way; what is shown of them is HTML and JSON."""
    found = settings.load(app_dir=app, required=False)
    copy = _snapshot(app)
    checks = verify.examine(copy, found)
    _shown(checks)
    json.dumps(proof.witness(copy, found, checks))
    verify._tables(copy)
    capacity._read(copy, NOW)
    with (
        contextlib.suppress(sqlite3.DatabaseError, LookupError),
        stores.join(copy, found) as joined,
    ):
        for word in waste.WORDS.values():
            with contextlib.suppress(sqlite3.DatabaseError):
                word.measure(joined)
    [*proof._queue(copy, found)]


def _shown(checks: Any) -> None:
    text = show.checks_table("", Status.OK, checks)
    _harmless(text)
    json.dumps([plain(check) for check in checks]).encode()


class _Tags(html.parser.HTMLParser):
    """Raises Defect for an element or attribute that is not the package's own."""

    ELEMENTS = frozenset({
        "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "strong", "code",
        "p", "details", "summary", "small", "a", "time", "pre", "ul", "li", "img", "em", "header",
        "main", "h1", "h2", "h3", "h4", "footer", "section", "br", "sup", "i", "b", "svg", "path",
        "polyline", "circle", "rect", "g", "line", "title"})  # fmt: skip
    ATTRIBUTES = frozenset({
        "class", "scope", "title", "id", "href", "datetime", "tabindex", "alt", "src", "open",
        "role", "aria-label", "aria-labelledby", "aria-hidden", "viewbox", "preserveaspectratio",
        "width", "height", "d", "points", "cx", "cy", "r", "x", "y", "fill", "stroke", "colspan",
    })  # fmt: skip

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        strange = {name for name, _ in attrs} - self.ATTRIBUTES
        if tag not in self.ELEMENTS or strange:
            raise Defect(f"markup: <{tag} {strange or ''}>", "html")


def _harmless(text: str) -> None:
    parser = _Tags()
    parser.feed(text)
    parser.close()


def damaged_database(data: bytes, bench: Bench) -> None:
    """Bytes of a SQLite file, changed anywhere, as the bot's database and as Chroma's."""
    draw = Draw(data)
    app = _place(bench)
    path = app / "data" / draw.pick((DATABASE, "chromadb/chroma.sqlite3"))
    content = bytearray(path.read_bytes())
    for _ in range(1 + draw.number() % 8):
        at = draw.number(3) % len(content)
        if draw.number() % 3 == 0:
            at %= 200  # the header, and the root of the schema
        new = draw.bytes(1 + draw.number() % 8)
        content[at : at + len(new)] = new
    if draw.number() % 16 == 0:
        del content[draw.number(3) % (len(content) + 1) :]
    path.write_bytes(content)
    with contextlib.suppress(VolumeError):
        database.read_header(path)
    _examined(app, bench)


_DDL = (
    "DROP TABLE {t}", "ALTER TABLE {t} DROP COLUMN {c}", "ALTER TABLE {t} ADD COLUMN more",
    "ALTER TABLE {t} RENAME TO old_{t}; CREATE VIEW {t} AS SELECT * FROM old_{t}",
    "ALTER TABLE {t} RENAME TO old_{t}; CREATE TABLE {t} (a, b, c, d, e, f, g, h)",
    "ALTER TABLE {t} RENAME TO old_{t}; CREATE TABLE {t} AS SELECT * FROM old_{t}",
    "CREATE TRIGGER spoil BEFORE UPDATE ON {t} BEGIN SELECT load_extension('x'); END",
    "DELETE FROM {t}", "INSERT OR IGNORE INTO {t} SELECT * FROM {t}",
    "ALTER TABLE {t} RENAME TO old_{t}; CREATE VIEW {t} AS WITH RECURSIVE n(i) AS"
    " (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT old_{t}.* FROM old_{t}, n",
)  # fmt: skip


def hostile_rows(data: bytes, bench: Bench) -> None:
    """Values of any type in any column of both stores, tables dropped, made anew, or views."""
    draw = Draw(data)
    app = _place(bench)
    for _ in range(1 + draw.number() % 3):
        path = app / "data" / draw.pick((DATABASE, "chromadb/chroma.sqlite3"))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript("PRAGMA synchronous=OFF; PRAGMA ignore_check_constraints=ON;")
            tables = sorted(database.table_names(db) - {"sqlite_sequence"})
            table = draw.pick([t for t in tables if "fts" not in t and "fulltext" not in t])
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            column = draw.pick(columns or ["a"])
            with contextlib.suppress(sqlite3.Error, ValueError):
                if draw.number() % 5 == 0:
                    db.executescript(draw.pick(_DDL).format(t=table, c=column))
                    continue
                strict = draw.number() % 2 == 0
                if strict:  # whatever the column's type and constraints
                    names = ", ".join(columns)
                    db.executescript(
                        f"ALTER TABLE {table} RENAME TO old; CREATE TABLE {table} ({names});"
                        f"INSERT INTO {table} SELECT * FROM old; DROP TABLE old"
                    )
                where = "" if draw.number() % 2 else f" WHERE rowid = {1 + draw.number() % 4}"
                db.execute(f"UPDATE {table} SET {column} = ?{where}", (draw.cell(),))
    _examined(app, bench)


def hnsw_files(data: bytes, bench: Bench) -> None:
    """A vector index: its header, its id map and its elements, each right or any bytes."""
    draw = Draw(data)
    directory = bench.root / "index"
    directory.mkdir()
    header = bytearray((bench.kit["index"] / "header.bin").read_bytes())
    for _ in range(draw.number() % 4):
        at = draw.number() % len(header)
        new = draw.bytes(1 + draw.number() % 8)
        header[at : at + len(new)] = new
    (directory / "header.bin").write_bytes(header if draw.number() % 8 else draw.blob())
    shutil.copyfile(bench.kit["index"] / "data_level0.bin", directory / "data_level0.bin")
    shutil.copyfile(bench.kit["index"] / "link_lists.bin", directory / "link_lists.bin")
    for name in ("data_level0.bin", "link_lists.bin"):
        with (directory / name).open("r+b") as file:
            for _ in range(draw.number() % 4):
                file.seek(draw.number(3) % max(1, (directory / name).stat().st_size))
                file.write(draw.bytes(1 + draw.number() % 8))
        if draw.number() % 4 == 0:
            os.truncate(directory / name, draw.number(3))
    (directory / chroma.PICKLE).write_bytes(draw.rest())
    found: list[tuple[str, int]] = []
    with contextlib.suppress(VolumeError):
        found = [*chroma.id_map(directory)]
    assert all(type(key) is str and type(label) is int for key, label in found)
    shown = chroma.read_hnsw(directory)
    with contextlib.suppress(VolumeError):
        chroma.read_vectors(directory, shown, (label for _, label in found), unit=True)
    if shown.elements:
        with graph.opened(directory, shown, "cosine") as index:
            for number in index.sample(3):
                index.leads_to(number)


def _pickles(kit: dict[str, Any]) -> list[bytes]:
    import pickle

    labels = {f"note_{n}": n for n in range(20)}
    document = {"dimensionality": 384, "total_elements_added": 20, "max_seq_id": None,
                "id_to_label": labels, "label_to_id": {n: i for i, n in labels.items()},
                "id_to_seq_id": {}}  # fmt: skip
    return [bytes(4) + pickle.dumps(document, protocol=p) for p in (2, 4, 5)]


def hostile_store(data: bytes, bench: Bench) -> None:
    """Our own store, sealed anew by whoever altered what it says."""
    draw = Draw(data)
    directory = bench.root / "app" / "data" / "backups"
    directory.mkdir(parents=True)
    path = directory / "store.sqlite3"
    path.write_bytes(bench.kit["store"])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        evidence = json.loads(db.execute("SELECT evidence FROM generation").fetchone()[0])
        for _ in range(1 + draw.number() % 3):
            kind = draw.number() % 6
            with contextlib.suppress(sqlite3.Error, ValueError):
                if kind < 2:
                    text = draw.json(evidence).decode("utf-8", "replace")
                    db.execute("UPDATE generation SET evidence = ?", (text,))
                elif kind == 2:
                    column = draw.pick(("id", "taken_at", "added_bytes", "number"))
                    db.execute(f"UPDATE generation SET {column} = ?", (draw.cell(),))
                elif kind == 3:
                    column = draw.pick(("path", "mode", "mtime_ns", "size", "digest"))
                    path_of = draw.number() % 4
                    value = (
                        draw.text().encode("utf-8", "surrogateescape")
                        if not path_of
                        else draw.cell()
                    )
                    db.execute(
                        f"UPDATE file SET {column} = ? WHERE number = 1 + ?", (value, path_of)
                    )
                elif kind == 4:
                    column = draw.pick(("name", "base", "data"))
                    packed = zstandard.ZstdCompressor().compress(bytes(draw.number(3)))
                    value = packed if draw.number() % 2 else draw.cell()
                    db.execute(f"UPDATE page SET {column} = ?", (value,))
                else:
                    column = draw.pick(("position", "page", "file"))
                    db.execute(f"UPDATE place SET {column} = ?", (draw.cell(),))
        for (number,) in db.execute("SELECT number FROM generation").fetchall():
            with contextlib.suppress(Exception):
                storefile.seal(db, number)
    found = settings.load(app_dir=bench.root / "app", required=False)
    _shown([*freshness.health(found, NOW)])
    known = inventory.listing(found)
    _harmless(known._repr_html_())
    json.dumps(known.to_dict())
    _shown(cost._generations(found, cost.GUIDE_PRICE))
    for backup in known.generations:
        str(backup.status), backup.summary, backup.proven_at
    with storefile.open_store(path) as opened:
        readback.check(opened)
        for backup in known.generations:
            with contextlib.suppress(OpsError):
                for entry in readback.entries(opened, backup.id):
                    for piece, _ in entry.content:
                        assert len(piece) <= pages.PAGE_BYTES
    for number, backup in enumerate(known.generations):
        with contextlib.suppress(OpsError):
            inventory.materialise(found, backup.id, bench.root / f"out{number}")


def offsite_record(data: bytes, bench: Bench) -> None:
    """The JSON beside an off-site copy, and the names of what lies there."""
    draw = Draw(data)
    place = bench.root / "place"
    place.mkdir()
    name = draw.pick((ID, "nescordbot_backup_20260801_120000_2", "../x", "nescordbot_backup_x"))
    if "/" not in name:
        (place / f"{name}.json").write_bytes(draw.json(bench.kit["record"]))
    size = bench.kit["record"]["stream_bytes"]
    (place / f"{ID}.tar.zst").write_bytes(bytes(size if draw.number() % 4 else draw.number()))
    there = remote.connect(str(place))
    found = settings.load(app_dir=bench.kit["demo"].app_dir)
    for copy in copies.every(there):
        str(copy.status), copy.summary, json.dumps(copy.facts)
        if copy.record:
            from nescord_ops import offsite

            backup = offsite._as_backup(found, copy.record)
            backup.summary, backup.status, json.dumps(backup.to_dict())
            json.dumps(offsite._evidence(copy.record, copy.facts))
            inventory.room_bytes(backup)
            for file in copy.record.files:
                assert {"..", "/"}.isdisjoint(Path(file.path).parts)
    copies.look(there, name, remote.names(there))


def offsite_stream(data: bytes, bench: Bench) -> None:
    """A stream: tar, zstd and age, each made right around damage further in, or any bytes."""
    draw = Draw(data)
    tar = bytearray(bench.kit["tar"])
    kind = draw.number() % 6
    sealed = False
    for _ in range(draw.number() % 6):
        at = draw.number(2) % len(tar)
        if draw.number() % 2:
            at = at % 512 + 512 * (at // 512 % 6)  # a header's
        new = draw.bytes(1 + draw.number() % 16)
        tar[at : at + len(new)] = new
        block = at - at % 512
        head = bytes(tar[block : block + 148]) + b" " * 8 + bytes(tar[block + 156 : block + 512])
        tar[block + 148 : block + 156] = b"%06o\0 " % (sum(head) % 0o1000000)
    if kind == 0:
        plain_stream = draw.rest()
    elif kind == 1:
        plain_stream = zstandard.ZstdCompressor().compress(draw.rest())
    elif kind == 2:
        plain_stream = bytearray(zstandard.ZstdCompressor().compress(bytes(tar)))
        plain_stream[draw.number(2) % len(plain_stream)] ^= 1 + draw.number() % 255
    elif kind == 3:
        plain_stream, sealed = draw.rest(), True
    elif kind == 4:
        content = bytearray(bench.kit["sealed"])
        content[draw.number(2) % len(content)] ^= 1 + draw.number() % 255
        plain_stream, sealed = content, True
    else:
        plain_stream = zstandard.ZstdCompressor().compress(bytes(tar))
    source = io.BytesIO(bytes(plain_stream))
    record = stream.record(bench.kit["record"]["record"], ID)
    to = bench.root / "to"
    stream.unpack(source.read, to, record, [bench.kit["identity"]] if sealed else None)
    for file in record.files:  # it was believed: then it is what was pushed
        if file.size is not None:
            assert (to / file.path).read_bytes() == (bench.kit["tree"] / file.path).read_bytes()


def bot_archive(data: bytes, bench: Bench) -> None:
    """The bot's backups: a zip with any names and sizes, a directory with links, any bytes."""
    draw = Draw(data)
    directory = bench.root / "app" / "data" / "backups"
    directory.mkdir(parents=True)
    kind = draw.number() % 5
    path = directory / "backup_20260102_030405_auto.db.zip"
    if kind == 0:
        path.write_bytes(draw.rest())
    elif kind < 3:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", draw.pick((0, 8, 12, 14))) as packed:
            for _ in range(draw.number() % 3 or 1):
                name = draw.text() if draw.number() % 2 else "database_20260102_030405.db"
                info = zipfile.ZipInfo(name[:1000].encode("utf-8", "replace").decode() or "x")
                info.external_attr = draw.number(4)
                info.compress_type = draw.pick((0, 8))
                with contextlib.suppress(ValueError):
                    packed.writestr(info, draw.blob() * (1 + draw.number(2)))
        whole = bytearray(content.getvalue())
        for _ in range(draw.number() % 4):
            whole[draw.number(2) % len(whole)] = draw.number()
        path.write_bytes(whole)
    else:
        path = directory / "nescordbot_backup_20260102_030405"
        _linked(draw, path, bench)
    found = settings.load(app_dir=bench.root / "app", required=False)
    known = inventory.listing(found)
    _harmless(known._repr_html_())
    for backup in known.backups:
        legacy.unpacked_bytes(inventory._bot_backup(backup))
        inventory.materialise(found, backup.id, bench.root / "out")
    secret = bench.kit["secret"]
    for place, _, names in os.walk(bench.root / "out"):
        assert all(Path(place, name).read_bytes() != secret for name in names)


def _linked(draw: Draw, path: Path, bench: Bench) -> None:
    """A backup directory in which anything may be a link, a pipe, a directory or a file."""
    outside = bench.root / "secret"
    outside.write_bytes(bench.kit["secret"])
    segment = "0f0e0d0c-0b0a-4908-8706-050403020100"
    vectors = legacy.CHROMA
    for name in ("", DATABASE, f"{DATABASE}-wal", vectors, f"{vectors}/chroma.sqlite3",
                 f"{vectors}/{segment}", f"{vectors}/{segment}/header.bin"):  # fmt: skip
        place, kind = path / name, draw.number() % 8
        parent = place.parent
        if os.path.realpath(parent) != str(parent) or not parent.is_dir():
            continue  # harm is done here only
        if os.path.lexists(place):
            continue
        if kind == 0 and name:
            place.symlink_to(draw.pick((outside, bench.root, "/", ".", "x")))
        elif kind == 1 and name:
            os.mkfifo(place)
        elif "." in name and kind != 2:
            source = bench.kit["demo"].database if name == DATABASE else outside
            place.write_bytes(draw.blob() if kind == 3 else source.read_bytes() if name == DATABASE
                              else b"")  # fmt: skip
        else:
            place.mkdir()


def log_lines(data: bytes, bench: Bench) -> None:
    """A log of any bytes, plain or packed; every line of a plain one is counted."""
    draw = Draw(data)
    path = bench.root / "bot.log"
    kind = draw.number() % 6
    content = draw.rest()
    if kind == 0:
        content = b"\x1f\x8b" + content
    elif kind == 1:
        content = gzip.compress(content, 1)
    elif kind == 2:  # the same again and again
        content = content * (1 + (1 << 16) // (len(content) + 1))
    elif kind == 3:
        message = content.decode("utf-8", "replace")
        rows = [{"message": m, "timestamp": "2026-08-01T12:00:01Z", "severity": "error"}
                for m in message.split("|||")]  # fmt: skip
        content = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(content)
    found = logs.read([path])
    if kind > 1 and not content.startswith(b"\x1f\x8b"):
        assert found.lines == (len(content.removesuffix(b"\n").split(b"\n")) if content else 0)
    checks = tuple(troubleshoot._of_logs(found, True))
    told = troubleshoot.Troubleshooting(bench.kit["settings"], checks, "", (), found)
    _harmless(told.groups().html)
    json.dumps(told.to_dict())
    _shown(checks)
    assert all(len(group.example) <= 300 for group in found.groups)


def deployment(data: bytes, bench: Bench) -> None:
    """A checkout in which one or two files are any text."""
    repo = bench.root / "repo"
    (repo / ".railway").mkdir(parents=True)
    (repo / "docs").mkdir()
    names = (*_CHECKOUT, ".git/index")
    half = len(data) // 2
    for content in (data[1:half], data[half:]):
        name = names[(content[:1] or b"\0")[0] % len(names)]
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_bytes(content[1:])
    found = deploy.run(bench.kit["settings"], repo=repo, now=NOW)
    _shown(found.checks)
    _harmless(found.findings_table().html)
    json.dumps(found.to_dict())


_CHECKOUT = ("railway.json", "railway.toml", "nixpacks.toml", ".env", ".env.example", "Procfile",
             ".railway/railway.ts", "Dockerfile", "docs/guide.md", "Makefile")  # fmt: skip


def _deployments(kit: dict[str, Any]) -> list[bytes]:
    from nescord_ops import deploy as package

    templates = Path(package.__file__).with_name("templates") / "deploy"
    texts = [path.read_bytes()[:1500] for path in sorted(templates.rglob("*")) if path.is_file()]
    texts += [
        b'{"build": {"builder": "NIXPACKS"}, "deploy": {"startCommand": "python src/main.py",'
        b' "numReplicas": 2}, "volumes": [{"name": "x"}]}',
        b'[deploy]\nstartCommand = "sleep infinity"\n[build]\nbuilder = "NIXPACKS"\n',
        b'FROM python:3.11\nENV A=1 B="2 3"\nRUN <<EOF\nchown nobody /app/data\nEOF\nVOLUME /x\n',
        b"DATABASE_URL=sqlite:///app/data/nescordbot.db?timeout=20\nDISCORD_TOKEN='abc'\n",
    ]
    return [b"\0" + bytes([n % 11]) + text + bytes([(n + 3) % 11]) + text
            for n, text in enumerate(texts)]  # fmt: skip


def operators_text(data: bytes, bench: Bench) -> None:
    """`.env`, URLs, recipients, identities, and the note of an interrupted swap."""
    draw = Draw(data)
    app = bench.root / "app"
    (app / "data").mkdir(parents=True)
    kind = draw.number() % 5
    if kind == 0:
        (app / ".env").write_bytes(draw.rest())
        found = settings.load(app_dir=app, required=False)
        _harmless(found._repr_html_())
        json.dumps(found.to_dict())
    elif kind == 1:
        url = draw.text() if draw.number() % 2 else f"sqlite:///{draw.rest().decode('latin-1')}"
        opened, _ = settings.opened_by_bot(url, app)
        assert opened.is_absolute()
    elif kind == 2:
        rest = draw.rest().decode("utf-8", "replace")
        url = f"{draw.pick(('file', 'memory', 'local', 'nosuch', 's9', ''))}://user:pa55word@{rest}"
        assert "pa55word" not in settings.masked(url)
        with contextlib.suppress(OpsError):
            assert "pa55word" not in remote.connect(url).url or url.startswith(
                ("://", "file", "local")
            )
    elif kind == 3:
        file = app / "identity"
        file.write_bytes(draw.rest())
        text = file.read_bytes().decode("latin-1")
        with contextlib.suppress(OpsError):
            keys.recipients(text)
        keys.identities(file)
    else:
        found = settings.load(app_dir=app, required=False)
        places = {"database": str(found.database), "chroma": str(found.chroma_dir)}
        document = {"purpose": "restore of x", "stamp": "20260801_120000", "places": places}
        (app / "data" / swap.INTENT).write_bytes(draw.json(document))
        swap.recover(found, dry_run=draw.number() % 2 == 0)


def hostile_history(data: bytes, bench: Bench) -> None:
    """history.sqlite3 and the JSON of earlier runs, as they are read for the index."""
    draw = Draw(data)
    target = bench.root / "reports"
    stamps = ("20260801T120000Z", "20260731T120000Z-2", "20269999T999999Z", "00000000T000000Z")
    for _ in range(1 + draw.number() % 2):
        run = target / draw.pick(stamps)
        run.mkdir(parents=True, exist_ok=True)
        name = draw.pick(("verify", "<b>", "cost", "x y"))
        (run / f"{name}.json").write_bytes(draw.json(bench.kit["document"]))
    if draw.number() % 2:
        file = target / history.FILE_NAME
        file.write_bytes(bench.kit["history"])
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
            for _ in range(1 + draw.number() % 3):
                table = draw.pick(("runs", "pages", "measurements"))
                columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
                with contextlib.suppress(sqlite3.Error):
                    if draw.number() % 6 == 0:
                        db.executescript(draw.pick(_DDL).format(t=table, c=draw.pick(columns)))
                    else:
                        db.execute(f"UPDATE {table} SET {draw.pick(columns)} = ?", (draw.cell(),))
    elif draw.number() % 4 == 0:
        (target / history.FILE_NAME).write_bytes(draw.blob())
    publish._adopt(target, publish._present(target))
    runs = history.runs(target)
    text = index.page(runs, {run.stamp: f"{run.stamp}/index.html" for run in runs}, target)
    _harmless(text.partition("<body>")[2])
    for key in ("used_bytes", "capacity.free"):
        series = history.series(target, key)
        from nescord_ops import growth

        growth.from_history(series, 1000, NOW)


def shown_text(data: bytes, bench: Bench) -> None:
    """Text of any kind in everything that makes HTML or prints: it stays text."""
    draw = Draw(data)
    texts = [draw.text() for _ in range(4)]
    texts.append(draw.rest().decode("utf-8", "surrogateescape"))
    one, two, three, four, five = texts
    printed = show.printable(five)
    printed.encode()
    assert not {*printed} & {*map(chr, range(9)), "\x1b", "\x7f", "\u202e", "\x9b", "\r"}
    checks = [fail(one, two, three, value=four, unit=five, limit=one)]
    _shown(checks)
    _harmless(show.table((one, two), [(three, four), (five, 1)], caption=four, css="x"))
    _harmless(show.badge(Status.OK, one) + show.amount(1, five).exact.replace("<", "&lt;"))
    _harmless(render._plain(five) + render._plain(one))
    facts = {"name": one, "settings": {"database": two}, "tool_version": three}
    facts |= {"data": {}, "status": "fail", "generated_at": NOW.isoformat()}
    render._banner({**facts, "checks": [plain(check) for check in checks]})


def _seeds(*rows: bytes) -> Callable[[dict[str, Any]], list[bytes]]:
    return lambda _: [bytes(64), bytes(range(256)), *rows]


TARGETS = {
    target.name: target
    for target in (
        Target("database", damaged_database, _seeds()),
        Target("rows", hostile_rows, _seeds(b"\1\0\7\1\1\3\5<script>")),
        Target("hnsw", hnsw_files, _pickles, 8192),
        Target("store", hostile_store, _seeds(b"\0\0\1\1\1\1\1\1")),
        Target("record", offsite_record, _seeds(b"\0\1\1\1\1\1\1\1")),
        Target("stream", offsite_stream, lambda kit: [
            b"\5\0", b"\0\0" + kit["stream"], b"\3\0" + kit["sealed"], b"\1\0" + kit["tar"][:4000],
            b"\5\2\0\0\1\7ustar  \0"], 8192),
        Target("archive", bot_archive, _seeds(b"\1\1\1\1\0\0\0\0\0\5\3\3", b"\4\3\3\3\3\3\3\3")),
        Target("logs", log_lines, lambda kit: [
            b"\4" + kit["demo"].log_file.read_bytes()[:2000],
            b"\4ERROR: x\nTraceback (most recent call last):\n  File\nValueError: y\n",
            b'\4{"message": "x", "timestamp": "2026-08-01T12:00:01Z"}\n'], 8192),
        Target("deploy", deployment, _deployments, 8192),
        Target("text", operators_text, lambda kit: [
            b"\0" + kit["demo"].env_file.read_bytes(), b"\2\0://[::1]:x/%zz", b"\4\0\1\1\1"]),
        Target("history", hostile_history, _seeds(b"\1\0\0\0\1\1\1\1")),
        Target("shown", shown_text, _seeds(b"\0\5<b>\x1b[1m", b"\1" * 20)),
    )
}  # fmt: skip
