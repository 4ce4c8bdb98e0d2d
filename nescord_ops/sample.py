"""One healthy volume, as a NescordBot leaves it that has run for eight months without trouble.

Every note is a pure function of the seed and its number, so a volume of any size is written in
constant memory and comes out the same each time; only the ids that Chroma draws differ.
Source of schema and formats: NescordBot of September 2025.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import sqlite3
import uuid
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nescord_ops import chroma_build
from nescord_ops.agreement import EMBEDDING_MODEL
from nescord_ops.results import Result
from nescord_ops.sample_schema import MIGRATIONS, SCHEMA, SEARCH
from nescord_ops.sample_text import TOPICS, Topic
from nescord_ops.settings import opened_by_bot

SPAN = timedelta(days=240)
QUIET = timedelta(hours=3)  # since the last note
SYNC_DELAY = timedelta(seconds=40)
USER, CHANNEL, GUILD = "100000000000000001", "200000000000000002", "300000000000000003"

ENVIRONMENT = """\
# Settings of a sample volume. The keys are none; they only begin as the bot demands.
DISCORD_TOKEN=MT-not-a-token
OPENAI_API_KEY=sk-not-a-key
GEMINI_API_KEY=API-not-a-key
DATABASE_URL=sqlite:///data/nescordbot.db
CHROMADB_PERSIST_DIRECTORY=data/chromadb
CHROMADB_COLLECTION_NAME=nescord_knowledge
CHROMADB_DISTANCE_METRIC=cosine
EMBEDDING_DIMENSION=768
PKM_ENABLED=true
NESCORD_OPS_VOLUME_GB=5
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Demo(Result):
    """A sample volume: `notes` in the database, the oldest `vectors` of them in Chroma too."""

    app_dir: Path
    notes: int
    vectors: int
    note_bytes: int
    now: datetime
    seed: int

    @property
    def env_file(self) -> Path:
        """The bot's `.env`, its paths relative to `app_dir`, so that the volume can be moved."""
        return self.app_dir / ".env"

    @property
    def database(self) -> Path:
        """The file that the bot opens, given the DATABASE_URL that `.env` holds now."""
        from dotenv import dotenv_values

        url = dotenv_values(self.env_file)["DATABASE_URL"] or ""
        return opened_by_bot(url, self.app_dir)[0]

    @property
    def data_dir(self) -> Path:
        """The volume's mount point on Railway."""
        return self.app_dir / "data"

    @property
    def chroma_dir(self) -> Path:
        """Where Chroma persists."""
        return self.data_dir / "chromadb"

    @property
    def backup_dir(self) -> Path:
        """Where the bot keeps its own backups."""
        return self.data_dir / "backups"

    @property
    def log_file(self) -> Path:
        """The bot's log."""
        return self.app_dir / "logs" / "bot.log"

    def created_at(self, number: int) -> datetime:
        """Given a note's number, return when it was written: a little more often every month."""
        jitter = random.Random(f"when {self.seed} {number}").random()  # noqa: S311
        part: float = ((number + jitter) / self.notes) ** 0.8
        return self.now - QUIET - SPAN * (1 - part)

    def note(self, number: int) -> tuple[Any, ...]:
        """Given a note's number, return its row of `knowledge_notes`.

        Every seventh note was edited, a few minutes after it was written.
        """
        draw = random.Random(f"note {self.seed} {number}")  # noqa: S311
        topic = draw.choice(TOPICS)
        created = self.created_at(number)
        edited = created + timedelta(minutes=7 if number % 7 == 0 else 0)
        title = f"{draw.choice(topic.titles)} #{number + 1}"
        content = _content(draw, topic, round(self.note_bytes * draw.uniform(0.5, 1.5)))
        tags = json.dumps(topic.tags, ensure_ascii=False)
        source = ("voice", "text", "manual", "text", "text")[number % 5]
        return (
            note_id(self.seed, number), title, content, tags, source, f"message-{number}",
            USER, CHANNEL, GUILD, _iso(created), _iso(edited),
        )  # fmt: skip


def build(demo: Demo, *, backups: bool = True) -> None:
    """Write a healthy volume into `demo.app_dir`: both stores, logs, `.env`, the bot's backups."""
    for directory in (demo.data_dir, demo.chroma_dir, demo.backup_dir, demo.log_file.parent):
        directory.mkdir(parents=True)
    demo.env_file.write_text(ENVIRONMENT, "utf-8")
    with connect(demo.database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        _fill(demo, connection)
    with connect(demo.database) as connection:
        chroma_build.run(demo.chroma_dir, "add", seed=demo.seed, records=records(connection))
    _write_log(demo)
    if backups:
        _back_up(demo)
    _set_modes(demo)


@contextlib.contextmanager
def connect(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a sample database, commit at the end and close it, which empties its WAL."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def note_id(seed: int, number: int) -> str:
    """Given a seed and a note's number, return an id that looks like uuid4's."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest, version=4))


def document(title: str, content: str, tags: str) -> str:
    """Given a note, return the text that the bot embeds and stores in Chroma."""
    parts = (f"Title: {title}" if title else "", content, f"Tags: {tags}" if tags else "")
    return "\n\n".join(part for part in parts if part)


def embedding_hash(title: str, content: str, tags: str) -> str:
    """Given a note, return `sync_metadata.embedding_hash` as the bot computes it."""
    text = f"{document(title, content, tags)}:{EMBEDDING_MODEL}"
    return hashlib.sha256(text.encode()).hexdigest()


def records(connection: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Yield the Chroma record of every note that is synced, oldest first, as the bot writes it."""
    rows = connection.execute(
        "SELECT id, title, content, tags, source_type, n.created_at, n.updated_at, user_id"
        " FROM knowledge_notes n JOIN sync_metadata ON note_id = id"
        " WHERE sync_status = 'synced' ORDER BY n.rowid"
    )
    for key, title, content, tags, source, created_at, updated_at, user_id in rows:
        metadata = {
            "title": title,
            "source": source,
            "created_at": created_at,
            "updated_at": updated_at,
            "user_id": user_id,
            "content_type": "note",
            "tags": tags,
        }
        text = document(title, content, tags)
        yield {"id": f"note_{key}", "document": text, "metadata": metadata}


def _fill(demo: Demo, connection: sqlite3.Connection) -> None:
    """Write every table; rows are generated while they are inserted."""
    connection.executescript(SCHEMA)
    connection.create_function("embedding_hash", 3, embedding_hash, deterministic=True)
    numbers = range(demo.notes)
    _insert(connection, "knowledge_notes", 11, (demo.note(number) for number in numbers))
    born = _stamp(demo.now - QUIET - SPAN)
    _insert(connection, "schema_migrations", 5, (
        (version, name, name.replace("_", " "), hashlib.sha256(name.encode()).hexdigest(), born)
        for version, name in enumerate(MIGRATIONS, 1)
    ))  # fmt: skip
    _insert(connection, "kv_store", 4, (
        ("bot_status", '{"state": "ready"}', born, _stamp(demo.now)),
        (f"guild_settings:{GUILD}", '{"language": "ja"}', born, born),
    ))  # fmt: skip
    _insert(
        connection, "note_links", 4, _links(demo), "from_note_id, to_note_id, link_type, created_at"
    )
    connection.execute(
        "INSERT INTO note_history(note_id, title_before, content_before, tags_before, title_after,"
        " content_after, tags_after, user_id, timestamp) SELECT id, title, substr(content, 1,"
        " length(content) / 2), tags, title, content, tags, user_id, datetime(updated_at)"
        " FROM knowledge_notes WHERE updated_at > created_at ORDER BY rowid"
    )
    connection.execute(
        "INSERT INTO transcriptions(user_id, audio_file, transcript, summary, timestamp, note_id,"
        " tags) SELECT user_id, 'voice-' || rowid || '.ogg', content, substr(content, 1, 80),"
        " datetime(created_at), id, tags FROM knowledge_notes WHERE source_type = 'voice'"
        " ORDER BY rowid"
    )
    connection.execute(
        "INSERT INTO token_usage(provider, model, input_tokens, cost_usd, user_id, request_type,"
        " timestamp) SELECT 'gemini', ?, length(content) / 3, 0, user_id, 'embedding',"
        " datetime(created_at) FROM knowledge_notes ORDER BY rowid",
        (EMBEDDING_MODEL,),
    )
    connection.execute(
        "INSERT INTO search_history SELECT 'search-' || rowid, user_id, substr(title, 1, 12),"
        " rowid % 9, 20 + rowid % 60, datetime(created_at) FROM knowledge_notes"
        " WHERE rowid % 3 = 0 ORDER BY rowid"
    )
    connection.execute(
        "INSERT INTO review_cache(user_id, period, content, created_at) SELECT user_id,"
        " strftime('%Y-%m', created_at), count(*) || ' notes', min(datetime(created_at))"
        " FROM knowledge_notes GROUP BY 1, 2"
    )
    _insert_sync_rows(demo, connection)
    connection.executescript(SEARCH)


def _insert(
    connection: sqlite3.Connection, table: str, width: int, rows: Any, columns: str = ""
) -> None:
    """Insert rows as they are generated; without `columns`, into the table's first ones."""
    if not columns:
        known = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        columns = ", ".join(known[:width])
    marks = ", ".join("?" * width)
    connection.executemany(f"INSERT INTO {table}({columns}) VALUES ({marks})", rows)


def _insert_sync_rows(demo: Demo, connection: sqlite3.Connection) -> None:
    """The oldest `vectors` notes are synced, the others wait."""
    synced = f"strftime('%Y-%m-%dT%H:%M:%S', updated_at, '+{SYNC_DELAY.seconds} seconds')"
    connection.execute(
        "INSERT INTO sync_metadata(note_id, last_synced_at, sync_status, chromadb_doc_id,"
        f" embedding_hash, created_at, updated_at) SELECT id, {synced}, 'synced', 'note_' || id,"
        f" embedding_hash(title, content, tags), datetime(created_at), datetime({synced})"
        " FROM knowledge_notes WHERE rowid <= ? ORDER BY rowid",
        (demo.vectors,),
    )
    connection.execute(
        "INSERT INTO sync_metadata(note_id, created_at, updated_at) SELECT id,"
        " datetime(created_at), datetime(created_at) FROM knowledge_notes WHERE rowid > ?"
        " ORDER BY rowid",
        (demo.vectors,),
    )


def _links(demo: Demo) -> Iterator[tuple[str, str, str, str]]:
    """Every third note links to an earlier one."""
    for number in range(3, demo.notes, 3):
        target = random.Random(f"link {demo.seed} {number}").randrange(number)  # noqa: S311
        yield (
            note_id(demo.seed, number),
            note_id(demo.seed, target),
            "reference",
            _stamp(demo.created_at(number)),
        )


def _content(draw: random.Random, topic: Topic, size: int) -> str:
    """Return sentences on a topic, Japanese and English mixed, of about `size` bytes of UTF-8."""
    lines: list[str] = []
    while size > 0:
        line = draw.choice(topic.sentences).format(draw.randrange(2, 90))
        size -= len(line.encode()) + 1
        lines.append(line)
    return "\n".join(lines)


def _iso(when: datetime) -> str:
    """The bot's own stamps: naive local time (UTC on Railway), ISO 8601."""
    return when.replace(tzinfo=None, microsecond=0).isoformat()


def _stamp(when: datetime) -> str:
    """SQLite's CURRENT_TIMESTAMP."""
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _write_log(demo: Demo) -> None:
    """Write the last notes' lines in the format of the bot's log file."""
    services = "nescordbot.services"
    start = demo.now - QUIET - timedelta(days=30)
    lines = [(start, "nescordbot.runner", "run_bot:148", "Starting NescordBot...")]
    for number in range(max(0, demo.notes - 200), demo.notes):
        when, key = demo.created_at(number), note_id(demo.seed, number)
        created = f"Created note: {key}"
        added = f"Document added successfully: note_{key}"
        lines.append((when, f"{services}.knowledge_manager", "create_note:150", created))
        when += SYNC_DELAY
        lines.append((when, f"{services}.chromadb_service", "add_document:121", added))
    with demo.log_file.open("w", encoding="utf-8") as file:
        for when, logger, where, text in sorted(lines):
            file.write(f"{_stamp(when)} | INFO     | {logger} | {where} | {text}\n")


def _back_up(demo: Demo) -> None:
    """Leave one backup of each kind that the bot makes, taken while nothing was written."""
    first, second, third = (demo.now - timedelta(minutes=m) for m in (100, 80, 60))
    whole = demo.backup_dir / f"nescordbot_backup_{first:%Y%m%d_%H%M%S}"
    shutil.copytree(demo.chroma_dir, whole / "chromadb_data")
    shutil.copy2(demo.database, whole / "nescordbot.db")
    manifest = {
        "backup_id": whole.name,
        "timestamp": f"{first:%Y%m%d_%H%M%S}",
        "config": {
            "chromadb_persist_directory": "data/chromadb",
            "database_url": "sqlite:///data/nescordbot.db",
            "chromadb_collection_name": chroma_build.COLLECTION,
        },
        "files": {
            "chromadb": "chromadb_data",
            "sqlite": "nescordbot.db",
            "manifest": "manifest.json",
        },
    }
    (whole / "manifest.json").write_text(json.dumps(manifest, indent=2), "utf-8")
    plain = demo.backup_dir / f"backup_{second:%Y%m%d_%H%M%S}_manual.db"
    shutil.copy2(demo.database, plain)
    packed = demo.backup_dir / f"backup_{third:%Y%m%d_%H%M%S}_auto.db.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(demo.database, f"database_{third:%Y%m%d_%H%M%S}.db")
    for path, when in ((whole, first), (plain, second), (packed, third)):
        os.utime(path, (when.timestamp(), when.timestamp()))


def _set_modes(demo: Demo) -> None:
    """Give the volume the guide's permissions, whatever the umask: 755, and 750 for Chroma.

    The keys are for their owner.
    """
    for folder, _, files in os.walk(demo.app_dir):
        Path(folder).chmod(0o755)
        for name in files:
            Path(folder, name).chmod(0o644)
    demo.chroma_dir.chmod(0o750)
    demo.env_file.chmod(0o600)
