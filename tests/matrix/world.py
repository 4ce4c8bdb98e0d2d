"""A volume with backups and copies off it, and what lies in it before and after a command."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from nescord_ops import backup, keys, offsite, settings, store
from nescord_ops import demo as demos
from nescord_ops.demo import Demo
from nescord_ops.footprint import STORE
from nescord_ops.settings import Settings

HEALTHY = "healthy"


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A volume with backups A, B (proven) and C, copies B and P off it, and places for results."""

    root: Path
    ids: dict[str, str]
    demo: Demo

    @property
    def app(self) -> Path:
        return self.root / "app"

    @property
    def settings(self) -> Settings:
        return settings.load(app_dir=self.app)

    @property
    def url(self) -> str:
        return str(self.root / "offsite")

    @property
    def recipient(self) -> str:
        return (self.root / "key").read_text().split("public key: ")[1].split()[0]

    def beside(self, suffix: str) -> Path:
        """A file of the matrix's own, outside of what the commands see."""
        return self.root.with_name(self.root.name + suffix)

    def copy(self, root: Path) -> World:
        """Copy the world; it knows no absolute path."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.root, root], check=True)
        return dataclasses.replace(
            self, root=root, demo=dataclasses.replace(self.demo, app_dir=root / "app")
        )


def build(root: Path, made: Demo | None = None) -> World:
    """Make the healthy world, of a small demo or, with nothing proven, of a copy of one given."""
    for name in ("offsite", "tmp", "out"):
        (root / name).mkdir(parents=True)
    app, now = root / "app", datetime.now(UTC)
    prove = made is None
    if made:
        shutil.copytree(made.app_dir, app)
        made = dataclasses.replace(made, app_dir=app)
    else:
        made = demos.create(app, notes=40, vectors=30, now=now)
    found = dataclasses.replace(
        settings.load(app_dir=app),
        offsite_url=str(root / "offsite"),
        age_recipient=keys.keygen(root / "key"),
    )
    ids = {}
    for hours, name in enumerate("PABC"):
        taken = backup.create(
            found, now=now - timedelta(hours=5 - hours), drill=prove and name == "B"
        )
        assert taken.backup
        ids[name] = taken.backup.id
        if name in "BP":
            offsite.push(found, ids[name])
    with store.open_store(found.backup_dir / STORE) as opened:
        store.remove(opened, [ids["P"]])
    with contextlib.closing(sqlite3.connect(found.database)) as db:
        db.execute("INSERT INTO kv_store(key, value) VALUES ('later', 'than every backup')")
        db.commit()
    with contextlib.closing(sqlite3.connect(found.chroma_dir / "chroma.sqlite3")) as db:
        db.execute("CREATE TABLE later_than_every_backup(n)")
        db.commit()
    return World(root, ids, made)


def files(root: Path, skip: Callable[[Path], bool] = lambda _: False) -> dict[str, str]:
    """Digest, mode and mtime of every file below a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or skip(path):
            continue
        seen = path.stat()
        content = f"{seen.st_size} sparse" if seen.st_size > 1 << 30 else _digest(path)
        found[str(path.relative_to(root))] = f"{content} {seen.st_mode:o} {seen.st_mtime_ns}"
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def bytes_of(found: dict[str, str]) -> dict[str, str]:
    """Only the digests: a restored file has a new time."""
    return {name: said.split()[0] for name, said in found.items()}


def stores(world: World) -> dict[str, dict[str, str]]:
    """Both live stores: the database with what lies beside it but the `-shm`, and Chroma."""
    found = world.settings
    names = [found.database.name + suffix for suffix in ("", "-wal", "-journal")]
    notes = files(found.database.parent, lambda path: path.name not in names)
    notes = {name: said for name, said in notes.items() if name in names}
    probe = ".nescord-ops-probe-"  # what is left behind is complained of elsewhere
    vectors = files(found.chroma_dir, lambda path: path.name.startswith(probe))
    return {"database": notes, "chroma": vectors}


def others(world: World) -> dict[str, str]:
    """All else of the bot's: settings, logs, its own backups."""
    found = world.settings
    ours = found.backup_dir / STORE

    def skip(path: Path) -> bool:
        return (
            path.is_relative_to(found.chroma_dir)
            or ".nescord-ops-" in str(path)  # what is left behind is complained of elsewhere
            or (path.parent == ours.parent and path.name.startswith(ours.name))
            or (path.parent == found.database.parent and path.name.startswith(found.database.name))
            or any(part.startswith("replaced_") for part in path.parts)
            or "reports" in path.parts
        )

    return files(world.app, skip)


def logical(world: World) -> dict[str, str]:
    """What both stores say, by table, whichever pages it lies in; "" for one that is missing."""
    found, said = world.settings, {}
    for name, path in (
        ("database", found.database),
        ("chroma", found.chroma_dir / "chroma.sqlite3"),
    ):
        digest = hashlib.sha256()
        with tempfile.TemporaryDirectory() as scratch:
            for suffix in ("", "-wal", "-journal"):
                beside = path.with_name(path.name + suffix)
                if beside.exists():
                    shutil.copy(beside, Path(scratch, "copy" + suffix))
            if not path.exists():
                said[name] = ""
                continue
            with contextlib.closing(sqlite3.connect(Path(scratch, "copy"))) as db:
                db.text_factory = bytes
                try:
                    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage"
                    tables = db.execute(f"{query} ORDER BY name").fetchall()
                    for (table,) in tables:
                        if table.startswith((b"sqlite_", b"maintenance")):
                            continue
                        # Chroma dates a deletion in its queue
                        chosen = "seq_id, operation, id" if table == b"embeddings_queue" else "*"
                        rows = db.execute(f'SELECT {chosen} FROM "{table.decode()}"').fetchall()
                        digest.update(repr((table, sorted(map(repr, rows)))).encode())
                except sqlite3.DatabaseError as error:
                    digest.update(str(error).encode())
        if name == "chroma":
            digest.update(repr(sorted(p.name for p in found.chroma_dir.iterdir())).encode())
        said[name] = digest.hexdigest()[:16]
    return said


def generations(world: World) -> tuple[dict[str, str], list[str]]:
    """The backups in the store by id, with a digest of what each holds; and what is damaged."""
    path = world.settings.backup_dir / STORE
    if not path.exists():
        return {}, ["the store is gone"]
    found = {}
    try:
        with store.open_store(path) as opened:
            damage = store.check(opened)
            rows = opened.connection.execute(
                "SELECT id, path, size, file.digest FROM generation JOIN file"
                " ON generation = generation.number ORDER BY id, path"
            )
            for identity, name, size, digest in rows:
                line = f"{found.get(identity, '')}{name!r} {size} {digest!r}"
                found[identity] = hashlib.sha256(line.encode()).hexdigest()
    except store.StoreError as error:
        return found, [str(error)]
    return found, [f"{each.generation_id} {each.path}: {each.problem}" for each in damage]


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """All that lies in a world at one moment."""

    stores: dict[str, dict[str, str]]
    others: dict[str, str]
    generations: dict[str, str]
    damage: list[str]
    copies: dict[str, str]
    logical: dict[str, str]
    sound: bool


def look(world: World) -> Seen:
    """See what lies in a world."""
    copies = files(world.root / "offsite")
    seen = (stores(world), others(world), *generations(world), copies, logical(world))
    return Seen(*seen, integrity(world.settings.database) == "ok")


def integrity(path: Path) -> str:
    """SQLite's first complaint of a file that nobody has open, or ok."""
    uri = f"file:{quote(str(path))}?immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        return str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
