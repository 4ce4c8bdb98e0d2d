"""A bot under full load for ten minutes, while every command runs in a loop beside it.

    pip install aiosqlite                       (the bot's own; not needed otherwise)
    python tests/bench/busy.py [--seconds 600] [--alone 60] [--dir DIR]

The stand-in bot writes as NescordBot does: aiosqlite with its five seconds of patience and WAL,
one PersistentClient, a note first, then its vector, then its row in `sync_metadata`; now and then
it edits, deletes and searches. It never pauses. For the first `--alone` seconds nothing runs beside
it. Fails if the bot sees an error, if a command ends otherwise than it should, or if a note or a
vector that was acknowledged before a backup began is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from nescord_ops import backup, chroma, database, demo, keys, settings
from nescord_ops.agreement import expected_hash, expected_text

_INSERT = "INSERT INTO knowledge_notes(id, title, content, tags, user_id) VALUES (?, ?, ?, ?, '1')"
_EDIT = "UPDATE knowledge_notes SET updated_at = CURRENT_TIMESTAMP WHERE id = ?"
_SYNCED = """
INSERT INTO sync_metadata(note_id, last_synced_at, sync_status, chromadb_doc_id, embedding_hash)
VALUES (?, CURRENT_TIMESTAMP, 'synced', ?, ?)
"""


@dataclasses.dataclass(slots=True)
class Bot:
    """What the stand-in bot said so far: a line a write."""

    process: subprocess.Popen[str]
    began: float = dataclasses.field(default_factory=time.monotonic)
    acknowledged: list[str] = dataclasses.field(default_factory=list)
    deleted: set[str] = dataclasses.field(default_factory=set)
    writes: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    def listen(self) -> None:
        """Take the bot's lines until it ends."""
        assert self.process.stdout
        for line in self.process.stdout:
            said = json.loads(line)
            if "error" in said:
                self.errors.append(said["error"])
                continue
            if said["kind"] == "delete":
                self.deleted.add(said["id"])
            elif said["kind"] == "add":
                self.acknowledged.append(said["id"])
            at = time.monotonic() - self.began
            self.writes.append((at, said["note_ms"], said["vector_ms"]))


def main() -> int:
    """Run the bot, run the commands, and judge both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--alone", type=float, default=60)
    parser.add_argument("--dir", type=Path, help="where to work; 2 GB")
    parser.add_argument("--bot", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bot:
        asyncio.run(_write(options.bot))
        return 0
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        return _run(Path(made), options.seconds, options.alone)


def _run(root: Path, seconds: float, alone: float) -> int:
    volume = demo.create(root / "app")
    environment = {
        **os.environ,
        "TMPDIR": str(_made(root / "scratch")),
        "NESCORD_OPS_AGE_RECIPIENT": keys.keygen(root / "key"),
        "NESCORD_OPS_OFFSITE_URL": str(_made(root / "place")),
        "NESCORD_OPS_REPORTS_DIR": str(root / "reports"),
    }
    found = settings.load(app_dir=volume.app_dir)
    command = [sys.executable, "-W", "ignore", __file__, "--bot", str(volume.app_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    bot = Bot(process)
    listener = threading.Thread(target=bot.listen, daemon=True)
    listener.start()
    ends: Counter[tuple[str, int]] = Counter()
    lost, complaints = 0, []

    def ours(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "nescord_ops", "--json", "--app-dir", volume.app_dir, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        ends[" ".join(words[:2]), done.returncode] += 1
        if done.returncode or "Traceback" in done.stderr:
            complaints.append(f"{words}: {done.returncode}: {done.stdout[-600:]}{done.stderr}")
        return json.loads(done.stdout)

    try:
        time.sleep(alone)
        while time.monotonic() < bot.began + seconds and process.poll() is None:
            known = list(bot.acknowledged)
            identity = ours("backup", "create")["data"]["backup"]["id"]
            gone = set(bot.deleted)
            lost += len({*known} - gone - _held(found, identity, root / "laid-out"))
            ours("backup", "check", identity)
            ours("backup", "drill", identity)
            ours("offsite", "push", identity)
            ours("backup", "prune", "--keep", "3")
            ours("report", "--keep", "3")
    finally:
        ended = process.poll()
        process.kill()
        listener.join()

    print(f"{len(bot.acknowledged):,} notes and vectors, {len(bot.deleted):,} deleted again")
    print("| the bot's slowest writes, ms | writes | median | 99 % | slowest note | vector |")
    print("|---|---|---|---|---|---|")
    for name, first, last in (("alone", 0.0, alone), ("beside us", alone, seconds)):
        rows = [write for write in bot.writes if first <= write[0] < last]
        whole = sorted(note + vector for _, note, vector in rows)
        shown = (statistics.median(whole), whole[len(whole) * 99 // 100])
        shown += (max(row[1] for row in rows), max(row[2] for row in rows))
        print(f"| {name} | {len(rows):,} | " + " | ".join(f"{ms:.0f}" for ms in shown) + " |")
    print("runs:", ", ".join(f"{what} {count}x = {code}" for (what, code), count in ends.items()))
    print(f"errors of the bot: {len(bot.errors)}; acknowledged and not in the backup: {lost}")
    print(*bot.errors[:5], *complaints[:10], sep="\n")
    return int(bool(bot.errors or lost or complaints or ended is not None))


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _held(found: settings.Settings, identity: str, directory: Path) -> set[str]:
    """The notes of a backup that have a vector's record too."""
    copy = backup.materialise(found, identity, directory)
    assert copy.chroma
    assert copy.database
    with database.open_copy(copy.chroma / chroma.DATABASE) as db:
        records = {name for (name,) in db.execute("SELECT embedding_id FROM embeddings")}
        queued = db.execute("SELECT id FROM embeddings_queue WHERE operation IN (0, 2)")
        records |= {name for (name,) in queued}
    with database.open_copy(copy.database) as db:
        notes = {name for (name,) in db.execute("SELECT id FROM knowledge_notes")}
    shutil.rmtree(directory)
    return {note for note in notes if f"note_{note}" in records}


async def _write(app: Path) -> None:
    """Be the bot: write as fast as the two stores take it, until killed."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # a slow import
    import aiosqlite
    import chromadb
    import numpy as np
    from chromadb.config import Settings

    found = settings.load(app_dir=app)
    client = chromadb.PersistentClient(
        str(found.chroma_dir), settings=Settings(anonymized_telemetry=False)
    )
    collection = client.get_collection(found.collection, embedding_function=None)
    chance, noise = random.Random(1), np.random.default_rng(1)
    living: list[str] = []
    while True:
        kind = chance.choices(("add", "edit", "delete"), (18, 1, 1))[0] if living else "add"
        note = str(uuid.uuid4()) if kind == "add" else living.pop(chance.randrange(len(living)))
        title, content = f"Note {note[:8]}", " ".join(chance.choices(_WORDS, k=120))
        text = expected_text(title, content, "[]")
        try:
            began = time.monotonic()
            async with aiosqlite.connect(found.database, timeout=5) as db:
                await db.execute("PRAGMA journal_mode = WAL")
                if kind == "add":
                    await db.execute(_INSERT, (note, title, content, "[]"))
                elif kind == "edit":
                    update = (
                        "UPDATE knowledge_notes SET updated_at = CURRENT_TIMESTAMP WHERE id = ?"
                    )
                    await db.execute(update, (note,))
                else:
                    await db.execute("DELETE FROM sync_metadata WHERE note_id = ?", (note,))
                    await db.execute("DELETE FROM knowledge_notes WHERE id = ?", (note,))
                await db.commit()
            middle = time.monotonic()
            if kind == "delete":
                collection.delete(ids=[f"note_{note}"])
            elif kind == "add":
                vector = noise.standard_normal((1, 768), dtype=np.float32)
                collection.add(ids=[f"note_{note}"], embeddings=vector, documents=[text])
                async with aiosqlite.connect(found.database, timeout=5) as db:
                    row = (note, f"note_{note}", expected_hash(text))
                    await db.execute(_SYNCED, row)
                    await db.commit()
            else:
                vector = noise.standard_normal((1, 768), dtype=np.float32)
                collection.query(query_embeddings=vector, n_results=5)
            end = time.monotonic()
        except Exception as error:
            _say(error=f"{type(error).__name__}: {error}")
            continue
        if kind != "delete":
            living.append(note)
        ms = {"note_ms": (middle - began) * 1000, "vector_ms": (end - middle) * 1000}
        _say(kind=kind, id=note, **ms)


def _say(**said: object) -> None:
    print(json.dumps(said), flush=True)


_WORDS = ("note", "会議", "idea", "restore", "検索", "volume", "記録", "todo", "vector", "予定")

if __name__ == "__main__":
    sys.exit(main())
