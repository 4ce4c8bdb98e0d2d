"""The two stores against each other: the invariants I1 to I6.

A Chroma record's id is `note_` + the note's id, its document is the note's text, and
`sync_metadata` is what the bot believes. Source: NescordBot of September 2025
(`sync_manager.py`: the hash covers text and model name; it adds, never updates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nescord_ops import show
from nescord_ops.checks import RESTORE_PROVEN, Check, Status, none_of, ok
from nescord_ops.stores import Stores

EMBEDDING_MODEL = "models/text-embedding-004"
PROBE_RESIDUE = "persistence_test_doc"
SETTLING_MINUTES = 10  # a note younger than this may still be on its way to Chroma
_OLD = "julianday(?) - coalesce(julianday({column}), 0) > ? / 1440.0"
_IS_NOTE = "substr(e.embedding_id, 1, 5) = 'note_'"
# Records (e) and rows of sync_metadata (m) that break I2 and I3.
LEAKED = (
    f"{_IS_NOTE} AND NOT EXISTS"
    " (SELECT 1 FROM bot.knowledge_notes n WHERE n.id = substr(e.embedding_id, 6))"
)
RESIDUE = f"e.embedding_id = '{PROBE_RESIDUE}'"
# A note has no record in the collection whose segment is the parameter.
_NO_RECORD = (
    "NOT EXISTS (SELECT 1 FROM vec.embeddings e"
    " WHERE e.segment_id = ? AND e.embedding_id = 'note_' || {note})"
)
# Notes (m) that are not in Chroma, and that the bot no longer tries to add.
UNSYNCED = (
    "(m.sync_status IS NOT 'pending' OR m.retry_count IS NOT 0)"
    " AND EXISTS (SELECT 1 FROM bot.knowledge_notes n WHERE n.id = m.note_id)"
    f" AND {_NO_RECORD.format(note='m.note_id')}"
)
ORPHAN_SYNC = (
    "NOT EXISTS (SELECT 1 FROM bot.knowledge_notes n WHERE n.id = m.note_id)"
    " OR m.chromadb_doc_id <> 'note_' || m.note_id"
)


def lost(stores: Stores) -> Iterator[Check]:
    """I1: every note that the bot believes synced is in Chroma; the others are backlog."""
    mine = stores.collection
    if not mine:
        return
    status, join = "NULL", ""
    if stores.has_sync:
        status, join = "m.sync_status", "LEFT JOIN bot.sync_metadata m ON m.note_id = n.id"
    absent = (
        f"FROM bot.knowledge_notes n {join} WHERE {_NO_RECORD.format(note='n.id')}"
        f" AND (coalesce({status}, '') = 'synced') = ?"
    )
    example = stores.example(f"SELECT n.id {absent}", mine.metadata_segment, True)
    yield none_of(
        "stores.lost",
        stores.count(f"SELECT count(*) {absent}", mine.metadata_segment, True),
        "notes",
        good="every synced note is in Chroma",
        bad=f"notes are marked synced and are not in Chroma, such as {example}",
        one=f"note is marked synced and is not in Chroma: {example}",
        hint=f"{RESTORE_PROVEN}; or, with the bot stopped: nescord-ops clean unsynced --apply",
        severity=Status.FAIL,
    )
    old = f" AND {_OLD.format(column='n.created_at')}"
    values = (mine.metadata_segment, False, _moment(stores), SETTLING_MINUTES)
    yield none_of(
        "stores.backlog",
        stores.count(f"SELECT count(*) {absent}{old}", *values),
        "notes",
        good="no note waits for its vector",
        bad="notes are not in Chroma yet: search by meaning does not find them",
        one="note is not in Chroma yet: search by meaning does not find it",
        hint="look for sync errors in the log; the bot retries a failed note 3 times only",
    )


def deleted(stores: Stores) -> Iterator[Check]:
    """I2: every record in Chroma is a living note's."""
    mine = stores.collection
    if not mine:
        return
    kinds = (
        (
            "stores.deleted",
            LEAKED,
            "deleted notes are found by search",
            "deleted note is found by search",
            "a known bug of the bot; with the bot stopped: nescord-ops clean deletions --apply",
        ),
        (
            "stores.residue",
            RESIDUE,
            "test documents of the bot's own persistence check were left behind",
            "test document of the bot's own persistence check was left behind",
            "harmless; with the bot stopped: nescord-ops clean residue --apply",
        ),
        (
            "stores.foreign",
            f"NOT {_IS_NOTE} AND NOT {RESIDUE}",
            "records in Chroma are not the bot's",
            "record in Chroma is not the bot's",
            "find out which other program writes to this Chroma directory",
        ),
    )
    for name, kind, what, single, hint in kinds:
        query = f"FROM vec.embeddings e WHERE e.segment_id = ? AND {kind}"
        count = stores.count(f"SELECT count(*) {query}", mine.metadata_segment)
        example = stores.example(f"SELECT e.embedding_id {query}", mine.metadata_segment)
        good, bad, one = f"no {what}", f"{what}, such as {example}", f"{single}: {example}"
        yield none_of(name, count, "records", good=good, bad=bad, one=one, hint=hint)


def sync(stores: Stores) -> Iterator[Check]:
    """I3 and I6: the bot's book-keeping points at notes, and no sync hangs."""
    if not stores.has_sync:
        for name in ("stores.sync", "stores.interrupted"):
            yield ok(name, "the bot has not synced yet (there is no sync_metadata)")
        return
    yield none_of(
        "stores.sync",
        stores.count(f"SELECT count(*) FROM bot.sync_metadata m WHERE {ORPHAN_SYNC}"),
        "rows",
        good="every row of sync_metadata belongs to its note",
        bad="rows of sync_metadata belong to no note, or to another one",
        one="row of sync_metadata belongs to no note, or to another one",
        hint="harmless; with the bot stopped: nescord-ops clean sync --apply",
    )
    hanging = stores.count(
        "SELECT count(*) FROM bot.sync_metadata m WHERE m.sync_status = 'syncing' AND "
        + _OLD.format(column="m.updated_at"),
        *(_moment(stores), SETTLING_MINUTES),
    )
    behind = stores.count(
        "SELECT count(*) FROM bot.sync_metadata m JOIN bot.knowledge_notes n ON n.id = m.note_id"
        " WHERE m.sync_status = 'synced'"
        " AND julianday(n.updated_at) - julianday(m.last_synced_at) > 1 / 86400.0 AND "
        + _OLD.format(column="n.updated_at"),
        *(_moment(stores), SETTLING_MINUTES),
    )
    yield none_of(
        "stores.interrupted",
        hanging + behind,
        "notes",
        good="no sync was interrupted",
        bad=f"syncs are open: {hanging:,} never ended, of {behind:,} the note was edited since",
        one="sync is open: " + ("it never ended" if hanging else "its note was edited since"),
        hint="restart the bot, then see that this number falls",
    )


def stale(stores: Stores) -> Iterator[Check]:
    """I4 and I5: Chroma's document is the note's text, and the bot's hash covers that text."""
    if not stores.collection:
        return
    old_text = wrong_hash = compared = 0
    example = ""
    for note, is_old, is_wrong in compare(stores):
        compared += 1
        old_text += is_old
        wrong_hash += is_wrong
        example = example or (note if is_old else "")
    of = show.count(compared, "note")
    yield none_of(
        "stores.stale",
        old_text,
        "notes",
        good=f"every note in Chroma has its current text ({compared:,})",
        bad=f"of {of} were edited and Chroma kept the old text, such as {example}",
        one=f"of {of} was edited and Chroma kept the old text: {example}",
        hint="a known bug of the bot (it adds, never updates); with the bot stopped: nescord-ops "
        "clean stale --apply, and it adds them anew",
    )
    yield none_of(
        "stores.hashes",
        wrong_hash,
        "notes",
        good="every embedding_hash is that of its note's text",
        bad="synced notes have an embedding_hash of another text",
        one="synced note has an embedding_hash of another text",
        hint="the bot syncs them again by itself; if the number stays, its model has changed",
    )


def compare(stores: Stores) -> Iterator[tuple[str, bool, bool]]:
    """Yield each note in Chroma: its id, if Chroma has an old text, if the bot has a wrong hash."""
    assert stores.collection
    sync_columns, sync_join = "NULL, NULL", ""
    if stores.has_sync:
        sync_columns = "m.sync_status, m.embedding_hash"
        sync_join = "LEFT JOIN bot.sync_metadata m ON m.note_id = n.id"
    rows = stores.connection.execute(
        f"SELECT n.id, n.title, n.content, n.tags, {sync_columns}, d.string_value,"
        " abs(julianday(n.updated_at) - julianday(u.string_value)) > 1 / 86400.0"
        " FROM vec.embeddings e NOT INDEXED"  # in order of writing: the notes lie so too
        " JOIN bot.knowledge_notes n ON n.id = substr(e.embedding_id, 6)"
        " LEFT JOIN vec.embedding_metadata d ON d.id = e.id AND d.key = 'chroma:document'"
        f" LEFT JOIN vec.embedding_metadata u ON u.id = e.id AND u.key = 'updated_at' {sync_join}"
        f" WHERE e.segment_id = ? AND {_IS_NOTE}",
        (stores.collection.metadata_segment,),
    )
    for note, title, content, tags, status, embedding_hash, document, moved in rows:
        text = expected_text(title, content, tags)
        is_old = document != text or bool(moved)
        yield str(note), is_old, status == "synced" and embedding_hash != expected_hash(text)


def expected_text(title: object, content: object, tags: object) -> str:
    """Given a note, return the document that the bot writes to Chroma for it."""
    parts = (f"Title: {title}" if title else "", content or "", f"Tags: {tags}" if tags else "")
    return "\n\n".join(str(part) for part in parts if part)


def expected_hash(text: str) -> str:
    """Given a document, return the bot's `embedding_hash` (hex): it covers the model's name."""
    return hashlib.sha256(f"{text}:{EMBEDDING_MODEL}".encode(errors="replace")).hexdigest()


def _moment(stores: Stores) -> str:
    return stores.snapshot.taken_at.strftime("%Y-%m-%d %H:%M:%S")
