"""Each store by itself: what SQLite says of both files, and whether Chroma's parts fit together.

The numbers I7 to I12 are the invariants of a sound store. Source: chromadb 1.0.20–1.5.9, measured.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nescord_ops import chroma, database, show
from nescord_ops.checks import RESTORE_PROVEN, Check, Status, fail, none_of, ok, warn
from nescord_ops.errors import VolumeError
from nescord_ops.stores import Stores

BLOAT_BYTES = 64 << 20
RESTORE = f"stop the bot and {RESTORE_PROVEN}"
TABLES = {"collections", "segments", "embeddings"}
VECTORS = ("vector is", "vectors are")


def database_file(path: Path) -> Iterator[Check]:
    """I12: the copy of the bot's database as SQLite sees it."""
    with database.open_copy(path) as connection:
        yield _integrity("database.integrity", database.integrity(connection))


def foreign_keys(path: Path) -> Iterator[Check]:
    """I12: rows of the copy that point at rows that are gone."""
    with database.open_copy(path) as connection:
        orphans = database.foreign_key_orphans(connection)
    orphans.pop("sync_metadata", None)  # I3 has its own check, stores.sync
    where = ", ".join(f"{name} {count:,}" for name, count in sorted(orphans.items()))
    yield none_of(
        "database.foreign_keys",
        sum(orphans.values()),
        "rows",
        good="every reference points at a row",
        bad=f"rows point at rows that are gone: {where}",
        one=f"row points at one that is gone: {where}",
        hint="harmless, as the bot never switches foreign keys on; delete them at leisure",
    )


def chroma_file(root: Path) -> Iterator[Check]:
    """The copy of `chroma.sqlite3` as SQLite sees it, and whether it is Chroma's at all."""
    with database.open_copy(root / chroma.DATABASE) as connection:
        wrong = database.integrity(connection)
        tables = TABLES if wrong else database.table_names(connection)
    if missing := TABLES - tables:
        yield fail(
            "chroma.integrity",
            f"{chroma.DATABASE} has no table {', '.join(sorted(missing))}: not a Chroma store",
            "check CHROMADB_PERSIST_DIRECTORY",
        )
    else:
        yield _integrity("chroma.integrity", wrong)


def pages(path: Path, name: str) -> Iterator[Check]:
    """A copy's pages and their order by `quick_check`, several times faster than all of I12."""
    with database.open_copy(path) as connection:
        yield _integrity(name, database.integrity(connection, quick=True))


def _integrity(name: str, wrong: list[str]) -> Check:
    return none_of(
        name,
        len(wrong),
        "problems",
        good="integrity_check found nothing wrong",
        bad=f"complaints of integrity_check, the first: {wrong[0] if wrong else ''}",
        one=f"complaint of integrity_check: {wrong[0] if wrong else ''}",
        hint=f"{RESTORE}; do not VACUUM the damaged file",
        severity=Status.FAIL,
    )


def collection(stores: Stores) -> Iterator[Check]:
    """I7: the bot's collection exists, with the dimension and distance that the bot writes."""
    mine, settings = stores.collection, stores.settings
    if not mine:
        others = ", ".join(c.name for c in stores.collections[:5]) or "none"
        yield fail(
            "chroma.collection",
            f"no collection {settings.collection!r}; found: {others}",
            "check CHROMADB_COLLECTION_NAME and CHROMADB_PERSIST_DIRECTORY",
        )
        return
    records = stores.count(
        "SELECT count(*) FROM vec.embeddings WHERE segment_id = ?", mine.metadata_segment
    )
    seen = f"{settings.collection} has {show.count(records, 'record')}"
    yield ok("chroma.collection", seen, value=records, unit="records")
    if mine.dimension in (None, settings.dimension):
        fixed = f"{mine.dimension} as the bot's" if mine.dimension else "not fixed: no vector yet"
        yield ok("chroma.dimension", fixed, value=mine.dimension, limit=settings.dimension)
    else:
        yield fail(
            "chroma.dimension",
            f"the collection is fixed at {mine.dimension} dimensions and the bot writes "
            f"{settings.dimension}: every write fails",
            "back up, delete the collection, start the bot: it makes a new one and syncs its notes",
            value=mine.dimension,
            limit=settings.dimension,
        )
    if mine.distance == settings.distance:
        yield ok("chroma.distance", f"{mine.distance} as the bot's", value=mine.distance)
    else:
        yield fail(
            "chroma.distance",
            f"the collection's distance is {mine.distance}, the bot expects {settings.distance}",
            "set CHROMADB_DISTANCE_METRIC to what the collection has: that cannot be changed",
            value=mine.distance,
            limit=settings.distance,
        )


def index(stores: Stores) -> Iterator[Check]:
    """The bot's HNSW index: header, id map and every vector in the files agree."""
    mine = stores.collection
    if stores.index_problem:
        problem = stores.index_problem.replace(str(stores.root), str(stores.settings.chroma_dir))
        yield fail("chroma.index", problem, f"{RESTORE}: this store cannot search")
        return
    directory = stores.root / mine.vector_segment if mine and mine.vector_segment else None
    if mine and mine.vector_seq is not None and not (directory and directory.is_dir()):
        yield fail("chroma.index", "the index's directory is gone", f"{RESTORE}: it cannot search")
        return
    if not (mine and directory and directory.is_dir()):
        yield ok("chroma.index", "no index was written yet: all vectors are in the queue")
        return
    try:
        header = chroma.read_hnsw(directory)
        labels = (label for (label,) in stores.connection.execute("SELECT label FROM hnsw"))
        seen = chroma.read_vectors(directory, header, labels, unit=mine.distance == "cosine")
    except VolumeError as error:
        problem = str(error).replace(str(stores.root), str(stores.settings.chroma_dir))
        yield fail("chroma.index", problem, RESTORE)
        return
    wrong = [
        text
        for bad, text in (
            (seen.broken, f"{show.count(seen.broken, *VECTORS)} not usable numbers"),
            (
                seen.missing_labels,
                f"{show.count(seen.missing_labels, *VECTORS)} in the id map only",
            ),
            (seen.unknown_labels, f"{show.count(seen.unknown_labels, *VECTORS)} not in the id map"),
            (seen.misled, f"{show.count(seen.misled, *VECTORS)} linked to outside the index"),
            (
                mine.dimension and header.dimension != mine.dimension,
                f"the index has {header.dimension} dimensions, its collection {mine.dimension}",
            ),
        )
        if bad
    ]
    if wrong:
        yield fail("chroma.index", "; ".join(wrong), RESTORE)
    else:
        text = f"all vectors of the index files were read and are sound ({seen.read:,})"
        if not seen.read:
            text = "no vector was written to the index yet: all are in the queue"
        yield ok("chroma.index", text, value=seen.read, unit="vectors")


def vectors(stores: Stores) -> Iterator[Check]:
    """I8: every record has a vector, in the index or still in the queue."""
    if not stores.collection or stores.index_problem:
        return
    without = (
        "FROM vec.embeddings e WHERE e.segment_id = ?"
        " AND NOT EXISTS (SELECT 1 FROM hnsw WHERE hnsw.id = e.embedding_id)"
        " AND NOT EXISTS (SELECT 1 FROM queued WHERE queued.id = e.embedding_id)"
    )
    segment = stores.collection.metadata_segment
    example = stores.example(f"SELECT e.embedding_id {without}", segment)
    yield none_of(
        "chroma.vectors",
        stores.count(f"SELECT count(*) {without}", segment),
        "records",
        good="every record has its vector",
        bad=f"records have no vector, so search misses them (count() is right), such as {example}",
        one=f"record has no vector, so search misses it (count() is right): {example}",
        hint=f"{RESTORE}; the documents themselves are still there",
        severity=Status.FAIL,
    )


def sequence(stores: Stores) -> Iterator[Check]:
    """I9: the sequence numbers of queue, metadata and vectors join up.

    Chroma writes to the queue and applies it in two transactions: a queue that is ahead of the
    metadata is a bot at work, and is applied when the store is opened (measured).
    """
    mine = stores.collection
    if not mine:
        return
    oldest, newest, strange = stores.connection.execute(
        "SELECT min(seq_id), max(seq_id), sum(typeof(seq_id) <> 'integer')"
        " FROM vec.embeddings_queue WHERE substr(topic, -36) = ?",
        (mine.id,),
    ).fetchone()
    if strange:
        text = f"{show.count(strange, 'row')} of the queue without a sequence number"
        yield fail("chroma.sequence", text, f"the store is damaged: {RESTORE}")
        return
    vector, metadata = mine.vector_seq or 0, mine.metadata_seq or 0
    persisted = mine.vector_seq is not None
    mapped = (stores.root / mine.vector_segment / chroma.PICKLE).exists()
    wrong = [
        text
        for bad, text in (
            (
                newest is not None and newest < metadata,
                f"metadata is applied up to {metadata:,}, the queue ends at {newest}",
            ),
            (
                vector > metadata,
                f"vectors are applied up to {vector:,}, metadata only to {metadata:,}",
            ),
            (
                persisted and oldest is not None and oldest > vector + 1,
                f"vectors are applied up to {vector:,}, the queue begins at {oldest}",
            ),
            (mapped and not persisted, "an id map exists, yet no persist was recorded"),
            (persisted and not mapped, "a persist was recorded, yet its id map is missing"),
        )
        if bad
    ]
    if wrong:
        yield fail("chroma.sequence", "; ".join(wrong), f"the store is torn: {RESTORE}")
    else:
        waiting = max(0, (newest or 0) - metadata)
        text = f"joined up: {metadata:,} writes, the index has the first {vector:,}, "
        text += "the queue the rest" if vector < metadata else "none wait"
        yield ok("chroma.sequence", f"{text}; {waiting} are under way" if waiting else text)


def orphans(stores: Stores) -> Iterator[Check]:
    """I10: every index directory belongs to a segment."""
    used = {collection.vector_segment for collection in stores.collections}
    found = [d for d in chroma.segment_directories(stores.root) if d.name not in used]
    live = stores.settings.chroma_dir
    size = sum(s.st_blocks * 512 for d in found for _, s in _files(live / d.name))
    yield none_of(
        "chroma.orphans",
        len(found),
        "directories",
        good="every index directory belongs to a collection",
        bad="index directories belong to no collection and take "
        f"{show.size(size)}: {', '.join(d.name for d in found[:3])}",
        one=f"index directory belongs to no collection and takes {show.size(size)}: "
        f"{', '.join(d.name for d in found)}",
        hint="dead weight; with the bot stopped: nescord-ops clean segments --apply",
    )


def bloat(stores: Stores) -> Iterator[Check]:
    """I11: no live file claims much more room than it has blocks."""
    worst, name = 0, ""
    for directory in chroma.segment_directories(stores.settings.chroma_dir):
        for path, seen in _files(directory):
            held = seen.st_blocks * 512
            if seen.st_size - held > max(worst, BLOAT_BYTES, held):
                worst, name = seen.st_size - held, f"{directory.name}/{path.name}"
    if worst:
        yield warn(
            "chroma.bloat",
            f"{name} claims {show.size(worst)} more than it holds: a plain copy fills the volume",
            "copy it only with tools that keep holes; rebuild the collection when convenient",
            value=worst,
            unit="bytes",
            limit=BLOAT_BYTES,
        )
    else:
        yield ok("chroma.bloat", "files claim what they hold", value=0, unit="bytes")


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                yield path, path.lstat()
