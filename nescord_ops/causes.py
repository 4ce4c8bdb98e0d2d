"""What can be wrong, how it shows, and how it is put right: a catalogue, read as data.

A message is what a program says about itself, founded on its source. A cause is one thing that is
wrong: the checks of verify and the messages that speak for it, each with a weight, and its fix, a
shell script whose names `fixes` fills in for an installation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nescord_ops.checks import ABSENT


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A known line of a log: a regular expression without digits, and who says it where.

    A `general` one counts only where no other is in the line: it passes on another's message.
    """

    name: str
    pattern: str
    source: str
    general: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Sign:
    """A check that speaks for a cause when it is not ok, if its summary has `text` (a regex)."""

    check: str
    weight: int
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """One thing that can be wrong: `symptoms` are how it shows, `says` what it is in a sentence.

    `messages` weighs names of MESSAGES. A line of `fix` whose names are empty is left out; the
    lines are run in order, with `#` before what a shell cannot do.
    """

    name: str
    symptoms: tuple[str, ...]
    says: str
    signs: tuple[Sign, ...]
    messages: Mapping[str, int]
    fix: tuple[str, ...]


SYMPTOMS: Mapping[str, str] = {
    "mount": "the volume is not where the bot writes",
    "permission": "permission denied",
    "database": "the database cannot be opened or is damaged",
    "vectors": "Chroma's data is gone or damaged",
    "stale": "search finds deleted notes or old text",
    "unsearchable": "search does not find notes that are there",
    "full": "the volume is full",
    "locked": "the database is locked",
    "crash-loop": "the bot starts again and again",
    "backup": "a backup is missing or cannot be restored",
}

_SQLITE = "SQLite, sqlite.org/rescode.html"
_CHROMA = "chromadb 1.5.9"
_BOT = "NescordBot, September 2025"
MESSAGES = (
    Message("started", "Starting NescordBot", f"{_BOT}: main.py"),
    Message("stopped", "Received SIGTERM", f"{_BOT}: main.py; Railway ends containers so"),
    Message("ended", "Bot exited with code|Unexpected error during bot", f"{_BOT}: main.py", True),
    Message("settings", "Environment validation failed", f"{_BOT}: main.py"),
    Message("login", "Improper token has been passed", "discord.py: http.py"),
    Message("no_embedding", "Gemini API key not configured|EmbeddingService not available"
            "|Gemini API not available", f"{_BOT}: embedding.py, sync_manager.py"),
    Message("embedding", "Gemini API (?:error|rate limit):", f"{_BOT}: embedding.py"),
    Message("persist_missing", "Persist directory does not exist", "the deployment guide"),
    Message("dimension", "expecting embedding with dimension of"
            "|does not match collection dimensionality", _CHROMA),
    Message("index", r"Error (?:loading|creating|constructing|reading from) hnsw|Error finding id"
            "|hnsw segment (?:reader|writer)|Nothing found on disk|deserializing pickle", _CHROMA),
    Message("chroma_version", "Unapplied migrations in|Inconsistent (?:migration versions|hashes)"
            "|Could not connect to tenant|no such table: (?:tenants|collections)", _CHROMA),
    Message("locked", "database (?:table )?is locked", _SQLITE),
    Message("disk_io", "disk I/O error", _SQLITE),
    Message("malformed", "database disk image is malformed|file is not a database", _SQLITE),
    Message("cannot_open", "unable to open database file", _SQLITE),
    Message("read_only", "attempt to write a readonly database", _SQLITE),
    Message("no_space", "database or disk is full|No space left on device", f"{_SQLITE}; errno(3)"),
    Message("denied", "Permission denied|Read-only file system", "errno(3)"),
    Message("memory", r"MemoryError|Cannot allocate memory|[Oo]ut of memory|OOMKilled|^Killed$",
            "Python; errno(3); the kernel, and what runs containers"),
    Message("sync_failed", "Failed to (?:sync note|add document)", f"{_BOT}: services", True),
)  # fmt: skip

_RESTORE = ("{stop}", "{restore}", "{start}")
_VECTORS = ("{stop}", "{restore_vectors}", "{start}")  # the notes stay as they are
_CLEAN = ("{stop}", "{tool} clean WHAT --apply", "{start}")


def _clean(what: str) -> tuple[str, ...]:
    return tuple(line.replace("WHAT", what) for line in _CLEAN)


CAUSES = (
    Cause(
        "url-slashes", ("mount", "database"),
        "DATABASE_URL has three slashes where an absolute path takes four: the bot opens another"
        " file",
        (Sign("location.url", 5, r"opens [^?]*, not"), Sign("location.database", 1),
         Sign("location.strays", 1)),
        {}, ("{move_database}",),
    ),
    Cause(
        "url-query", ("mount", "database"),
        "the query string of DATABASE_URL has become part of the file's name",
        (Sign("location.url", 5, r"opens .*\?.*, not"), Sign("location.strays", 1)),
        {}, ("{move_database}",),
    ),
    Cause(
        "interrupted-swap", ("database", "vectors"),
        "a restore or clean-up was interrupted, or is at work: the stores may be of two moments",
        (Sign("location.swap", 5),), {},
        ("{stop}", "# run the command that was interrupted again: it says what becomes of it",
         "{start}"),
    ),
    Cause(
        "off-volume", ("mount", "vectors"), "data lies off the volume and is lost at a deploy",
        (Sign("location.database", 3), Sign("location.chroma", 5)),
        {}, ("{move_stores}",),
    ),
    Cause(
        "not-mounted", ("mount",), "no volume is mounted where the bot expects it",
        (Sign("location.volume", 5, "no volume"), Sign("access.volume", 1, "missing")),
        {"persist_missing": 2},
        ("# attach a volume at {mount} to the service in Railway's dashboard, then:",
         "railway volume list", "{restart}"),
    ),
    Cause(
        "stray-database", ("database", "unsearchable"),
        "a second database lies about: the notes may be in that one",
        (Sign("location.strays", 4),), {},
        ("# see which one holds your notes before anything else:",
         "{tool} verify --depth quick", "{tool} clean strays"),
    ),
    Cause(
        "no-permission", ("permission", "mount", "database"),
        "the bot cannot write to its directories",
        (Sign("access.volume", 4, "forbids writing"), Sign("access.chroma", 4, "forbids writing"),
         Sign("access.volume_write", 4), Sign("access.chroma_write", 4),
         Sign("location.volume", 3, "read-only")),
        {"read_only": 3, "denied": 3, "cannot_open": 1},
        ("{run_as_root}", "chmod u+rwx -- {data} {chroma}"),
    ),
    Cause(
        "open-to-all", ("permission",), "everyone may write to the bot's directories",
        (Sign("access.volume", 4, "everyone"), Sign("access.chroma", 4, "everyone")),
        {}, ("chmod o-w -- {data} {chroma}",),
    ),
    Cause(
        "no-data", ("mount", "database", "vectors"),
        "the bot's files are not there: a new volume, or a setting that names another place",
        (Sign("access.database", 9, "missing"),),
        {"cannot_open": 1, "persist_missing": 2},
        ("# if DATABASE_URL and CHROMADB_PERSIST_DIRECTORY are right:", *_RESTORE),
    ),
    Cause(
        "wrong-database", ("database",), "the file is not the bot's database, or half migrated",
        (Sign("database.schema", 5), Sign("database.migrations", 4)), {},
        ("# start the bot once: it migrates by itself; if the message stays:", *_RESTORE),
    ),
    Cause(
        "database-damaged", ("database",), "the database is damaged",
        (Sign("database.integrity", 5), Sign("database.file", 5)),
        {"malformed": 3, "disk_io": 2}, _RESTORE,
    ),
    Cause(
        "chroma-missing", ("vectors", "mount"),
        "Chroma's store is missing: it is gone, or a setting names another place",
        (Sign("chroma.integrity", 5, ABSENT), Sign("chroma.file", 5, ABSENT),
         Sign("access.chroma", 1, ABSENT)),
        {"persist_missing": 1}, ("# if CHROMADB_PERSIST_DIRECTORY is right:", *_VECTORS),
    ),
    Cause(
        "chroma-damaged", ("vectors",), "Chroma's own database is damaged, or not Chroma's",
        (Sign("chroma.integrity", 5, rf"^(?!.*(?:{ABSENT}))"),
         Sign("chroma.file", 5, rf"^(?!.*(?:{ABSENT}))")),
        {"malformed": 1, "disk_io": 1}, _VECTORS,
    ),
    Cause(
        "index-lost", ("vectors", "unsearchable"),
        "the directory of the vectors is gone: search finds nothing",
        (Sign("chroma.index", 8, "is gone"), Sign("chroma.vectors", 1), Sign("chroma.sequence", 1)),
        {"index": 1}, _VECTORS,
    ),
    Cause(
        "index-damaged", ("vectors", "unsearchable"), "the files of the vectors are damaged",
        (Sign("chroma.index", 7, r"^(?!.*is gone)"), Sign("chroma.vectors", 1)),
        {"index": 2}, _VECTORS,
    ),
    Cause(
        "torn-store", ("vectors", "unsearchable"),
        "the vectors are older than the rest of Chroma: a copy or a kill tore the store",
        (Sign("chroma.vectors", 5), Sign("chroma.sequence", 2)),
        {"index": 1}, _VECTORS,
    ),
    Cause(
        "collection", ("vectors", "unsearchable"),
        "the bot's collection is not in Chroma, or measures distance in another way",
        (Sign("chroma.collection", 5), Sign("chroma.distance", 5)), {},
        ("# compare CHROMADB_COLLECTION_NAME and CHROMADB_DISTANCE_METRIC with what verify shows:",
         "{tool} verify"),
    ),
    Cause(
        "dimension", ("unsearchable", "vectors"),
        "the collection takes vectors of another length than the bot writes: every write fails",
        (Sign("chroma.dimension", 5), Sign("stores.backlog", 1)),
        {"dimension": 3, "sync_failed": 1}, _VECTORS,
    ),
    Cause(
        "chroma-version", ("vectors", "crash-loop"),
        "another version of chromadb has migrated the store",
        (), {"chroma_version": 4},
        ("# pin the bot's chromadb to the version that wrote the store; if it stays:", *_VECTORS),
    ),
    Cause(
        "stale-text", ("stale",), "edited notes are found by their old text (the bot adds only)",
        (Sign("stores.stale", 5), Sign("stores.hashes", 2)), {}, _clean("stale"),
    ),
    Cause(
        "leaked-deletions", ("stale",), "deleted notes are found (a known bug of the bot)",
        (Sign("stores.deleted", 5),), {}, _clean("deletions"),
    ),
    Cause(
        "residue", ("stale",), "test documents of the bot's own check are found; harmless",
        (Sign("stores.residue", 5),), {}, _clean("residue"),
    ),
    Cause(
        "foreign-writer", ("stale",), "another program writes to this Chroma directory",
        (Sign("stores.foreign", 5),), {},
        ("# end that program, or give it a directory of its own; then:", "{tool} verify"),
    ),
    Cause(
        "orphan-sync-rows", ("stale",), "the bot's sync rows name notes that are gone; harmless",
        (Sign("stores.sync", 5), Sign("database.foreign_keys", 1)), {}, _clean("sync"),
    ),
    Cause(
        "not-synced", ("unsearchable",),
        "notes are not in Chroma, and the bot no longer tries to add them",
        (Sign("stores.lost", 5), Sign("stores.backlog", 3), Sign("stores.interrupted", 3)),
        {"sync_failed": 2}, _clean("unsynced"),
    ),
    Cause(
        "no-embedding", ("unsearchable",), "the service that makes the vectors does not answer",
        (Sign("stores.backlog", 1),), {"no_embedding": 4, "embedding": 3},
        ("# see that GEMINI_API_KEY is set, and that the model in the log still exists; then:",
         "{restart}"),
    ),
    Cause(
        "no-keyword-search", ("unsearchable",),
        "a known defect of the bot: keyword search finds nothing; no data is in danger",
        (Sign("database.search", 5, "although"),), {},
        ("# nothing to do: use search by meaning until the bot's migration is corrected",),
    ),
    Cause(
        "large-wal", ("database", "full"),
        "normal after a kill: the newest notes wait in the -wal file; no data is in danger",
        (Sign("database.wal", 5),), {},
        ("# never delete the -wal file: it holds notes. The bot folds it in when it starts:",
         "{restart}"),
    ),
    Cause(
        "no-room", ("full", "database"), "the volume is full or nearly so",
        (Sign("access.space", 5),), {"no_space": 5},
        ("{tool} capacity", "{tool} backup prune --keep 2", "{stop}",
         "{tool} clean segments pages queue --apply", "{start}",
         "# if that is not enough, grow the volume in Railway's dashboard"),
    ),
    Cause(
        "orphan-segments", ("full",), "directories of deleted collections take room; dead weight",
        (Sign("chroma.orphans", 5),), {}, _clean("segments"),
    ),
    Cause(
        "sparse-files", ("full",),
        "a sparse file claims room that it does not take and that is not billed; no data is in "
        "danger, but a plain copy would fill the volume",
        (Sign("chroma.bloat", 5),), {},
        ("# not urgent: copy it with tools that keep holes (cp --sparse=always); to be rid of it:",
         *_VECTORS),
    ),
    Cause(
        "locked", ("locked",), "another program has the database open and writes to it",
        (Sign("bot.holders", 4), Sign("database.journal", 3)), {"locked": 5},
        ("# one bot only: end every other program that this shows, then restart the bot",
         "ls -l /proc/[0-9]*/fd/* 2>/dev/null | grep -F -- {database} || true", "{restart}"),
    ),
    Cause(
        "settings", ("crash-loop",), "the bot ends at once: a variable is missing or wrong",
        (Sign("logs.loops", 2),), {"settings": 5, "login": 5},
        ("# set DISCORD_TOKEN and OPENAI_API_KEY, both, in the service's variables; then:",
         "{restart}"),
    ),
    Cause(
        "memory", ("crash-loop",), "the bot runs out of memory and is killed",
        (Sign("logs.loops", 2),), {"memory": 5},
        ("# give the service more memory in Railway's dashboard, then:", "{restart}"),
    ),
    Cause(
        "crashes", ("crash-loop",), "the bot starts again and again",
        (Sign("logs.loops", 4),), {"ended": 3},
        ("# see the first error behind each start, and the other causes here:",
         "railway logs"),
    ),
    Cause(
        "no-backup", ("backup",), "there is no good and recent backup",
        (Sign("backups.age", 5),), {}, ("{tool} backup create --drill",),
    ),
    Cause(
        "backup-damaged", ("backup",), "a backup is damaged, or the store of backups is",
        (Sign("backups.damage", 5), Sign("backups.age", 1, "store|damaged")), {},
        ("{tool} backup create --drill", "{tool} backup check"),
    ),
    Cause(
        "backup-unproven", ("backup",), "no good backup was restored lately to prove it",
        (Sign("backups.drill", 5),), {}, ("{tool} backup create --drill",),
    ),
    Cause(
        "not-off-site", ("backup",), "no recent copy of a backup is known to be off the volume",
        (Sign("offsite.age", 5), Sign("backups.place", 3)), {},
        ("# the variables NESCORD_OPS_OFFSITE_URL and NESCORD_OPS_AGE_RECIPIENT say where to:",
         "{tool} backup create --drill --push"),
    ),
    Cause(
        "off-site-unchecked", ("backup",), "no copy off the volume was read back lately",
        (Sign("offsite.checked", 5),), {},
        ("{tool} offsite list", "# then, with the id of the newest: offsite check ID"),
    ),
)  # fmt: skip
