"""One consistent moment of both stores, copied into scratch space while the bot writes.

Order (measured with chromadb 1.5.9, 8 of 8 captures whole under 900 documents/s):

1. stat every file of Chroma's; wait until none was touched for a moment;
2. begin a read of `chroma.sqlite3`: its writers now wait, so the file holds whole transactions;
3. begin a read of the bot's database: WAL pins this state and delays nobody;
4. release `chroma.sqlite3` after microseconds, and copy Chroma's files as plain bytes;
5. stat them again; if anything moved, throw all away and start again;
6. copy the bot's database from the pinned state.

Both copies show the moment of step 3. If the store does not hold still, `chroma.sqlite3` is locked
while SQLite's backup copies it (its writers wait up to 1000 s), at the last try until the HNSW
files are copied too. All is opened read-only; a database without `-wal` is copied as bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import secrets
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import chroma, database, volume
from nescord_ops.errors import CaptureError, UnreadError, VolumeError
from nescord_ops.results import Result
from nescord_ops.settings import Settings

DATABASE = "nescordbot.db"
SCRATCH_PREFIX = "nescord-ops-scratch-"
ATTEMPTS = 6  # three without a lock, two with one for chroma.sqlite3, one with it held to the end
UNLOCKED_ATTEMPTS = 3
QUIET_LIMIT_SECONDS = 5.0
QUIET_SECONDS = 0.03  # longer than the clock tick behind st_mtime (4 ms, 10 ms on old kernels)
LOCK_LIMIT_SECONDS = 60.0
ROLLBACK_LIMIT_SECONDS = 3.0  # the bot gives up on a locked database after 5 s (aiosqlite)
_STEP_PAGES = 2000
_COPY_BYTES = 1 << 24
_SUFFIXES = ("", "-wal", "-journal")

Progress = Callable[[str], None]
Stats = dict[Path, tuple[int, int, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot(Result):
    """Copies of both stores as they were at `taken_at` (aware UTC).

    `database` or `chroma` is None where that store could not be copied; `problems` says why under
    the same word. `lock_seconds`: how long `chroma.sqlite3` was held, the bot's longest delay.
    """

    root: Path
    database: Path | None
    chroma: Path | None
    problems: dict[str, str]
    taken_at: datetime
    seconds: float
    lock_seconds: float
    attempts: int


@contextlib.contextmanager
def scratch(needed_bytes: int, where: Path | None = None) -> Iterator[Path]:
    """Make a private directory (mode 700) with room for `needed_bytes`; remove it afterwards.

    Lies in `where`, else in TMPDIR. What a killed run left there is removed first: each directory
    is held by a lock that dies with its process. Raise CaptureError if there is no room.
    """
    base = (where or Path(tempfile.gettempdir())).absolute()
    _sweep(base)
    elsewhere = "name another directory" if where else "set TMPDIR to another directory"
    if (free := volume.space(base).free_bytes) < needed_bytes:
        text = f"scratch space {base} has {free:,} bytes free and {needed_bytes:,} are needed"
        raise CaptureError(text, f"free some space there, or {elsewhere}")
    root = base / f"{SCRATCH_PREFIX}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, root)  # before it is there: a signal may come at any moment
        try:
            root.mkdir(mode=0o700)
            handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            text = f"no scratch directory in {base}: {error.strerror}"
            raise CaptureError(text, f"see that it takes writes, or {elsewhere}") from error
        stack.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield root


def _remove(root: Path) -> None:
    for remove in (os.rmdir, volume.remove_tree):  # the first needs no descriptor
        with contextlib.suppress(OSError):  # what stays is left to the next run
            remove(root)


def _sweep(base: Path) -> None:
    """Remove scratch directories of ours whose process is gone."""
    for left in base.glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            seen = left.lstat()
            ours = seen.st_uid == os.geteuid() and stat.S_IMODE(seen.st_mode) == 0o700
            if not ours or time.time() - seen.st_mtime < 60:
                continue
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                volume.remove_tree(left)
            finally:
                os.close(handle)


@contextlib.contextmanager
def capture(settings: Settings, progress: Progress | None = None) -> Iterator[Snapshot]:
    """Copy both stores at one moment into scratch space, removed when the block ends.

    Raise CaptureError if there is no room, or if the store would not hold still: nothing torn is
    ever handed out. A store that is missing or unreadable is left out, with its reason.
    """
    files = [database.beside(settings.database, suffix) for suffix in _SUFFIXES]
    needed = sum(volume.usage(path).allocated_bytes for path in (settings.chroma_dir, *files))
    with scratch(needed + needed // 20 + (16 << 20)) as root:
        yield copy_stores(settings, root, progress)


def copy_stores(settings: Settings, root: Path, progress: Progress | None = None) -> Snapshot:
    """Copy both stores at one moment into the empty directory `root`; see the module."""
    say = progress or (lambda _: None)
    started = time.monotonic()
    as_bytes: set[Path] = set()
    for attempt in range(1, ATTEMPTS + 1):
        lock, hold = attempt > UNLOCKED_ATTEMPTS, attempt == ATTEMPTS
        say("copying both stores" if attempt == 1 else f"the store moved: attempt {attempt}")
        try:
            taken, lock_seconds, problems = _attempt(settings, root, as_bytes, lock=lock, hold=hold)
        except Moved as moved:
            if isinstance(moved, _NoConnection):
                as_bytes.add(moved.args[0])
            volume.clear(root)
            time.sleep(0.05 * attempt)
            continue
        except (OSError, sqlite3.Error, UnreadError) as error:
            text = f"the stores cannot be copied into {root.parent}: {error}"
            hint = getattr(error, "hint", "see that TMPDIR has room, and the volume reads")
            raise CaptureError(text, hint) from error
        return Snapshot(
            root=root,
            database=None if "database" in problems else root / DATABASE,
            chroma=None if "chroma" in problems else root / "chromadb",
            problems=problems,
            taken_at=taken,
            seconds=time.monotonic() - started,
            lock_seconds=lock_seconds,
            attempts=attempt,
        )
    text = f"the stores changed during each of {ATTEMPTS} attempts to copy them"
    raise CaptureError(text, "run it again when the bot is less busy, or with the bot stopped")


class Moved(Exception):  # noqa: N818 - not an error: the signal to try again
    """A source changed while it was copied."""


def _attempt(
    settings: Settings, root: Path, as_bytes: set[Path], *, lock: bool, hold: bool
) -> tuple[datetime, float, dict[str, str]]:
    """One try; return its moment, how long Chroma's lock was held, and what could not be read.

    The databases in `as_bytes` are copied without a connection. With `lock`, `chroma.sqlite3` is
    locked while it is copied; with `hold`, until the HNSW files are copied too.
    """
    problems: dict[str, str] = {}
    target = root / "chromadb"
    target.mkdir(mode=0o700)
    chroma_file = settings.chroma_dir / chroma.DATABASE
    resting = as_bytes | ({settings.database} if _at_rest(settings.database) else set())
    plain = [database.beside(path, suffix) for path in resting for suffix in _SUFFIXES]
    if not lock and chroma_file not in resting:
        plain.append(chroma_file)
    before = _quiet(settings, plain, QUIET_LIMIT_SECONDS if lock else 0.5)
    with contextlib.ExitStack() as bot_lock, contextlib.ExitStack() as chroma_lock:
        vectors = _pin("chroma", chroma_file, resting, chroma_lock, problems)
        locked = time.monotonic()
        notes = _pin("database", settings.database, resting, bot_lock, problems)
        taken = datetime.now(UTC)
        if vectors and lock:
            _backup(vectors, target / chroma.DATABASE, LOCK_LIMIT_SECONDS)
            if hold:
                before = _quiet(settings, plain, QUIET_LIMIT_SECONDS)
        if stats(settings, plain) != before:
            raise Moved
        # from here on the stats say whether anybody wrote
        if not hold:
            chroma_lock.close()
        released = time.monotonic()
        with ThreadPoolExecutor(2) as pool:  # a third faster than one after the other
            copies = (_copy_path(settings, path, root) for path in before)
            for _ in pool.map(copy_file, before, copies):
                pass
        if stats(settings, plain) != before:
            raise Moved
        if hold:
            chroma_lock.close()
            released = time.monotonic()
        if notes:
            wal = notes.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            _backup(notes, root / DATABASE, math.inf if wal else ROLLBACK_LIMIT_SECONDS)
    for copy in (root / DATABASE, target / chroma.DATABASE):
        absorb_journal(copy)
    return taken, released - locked if vectors else 0.0, problems


def _copy_path(settings: Settings, path: Path, root: Path) -> Path:
    """Where a file of Chroma's, the bot's database or a file beside it goes."""
    if path.is_relative_to(settings.chroma_dir):
        return root / "chromadb" / path.relative_to(settings.chroma_dir)
    return root / (DATABASE + path.name.removeprefix(settings.database.name))


def _at_rest(path: Path) -> bool:
    """Whether a database in WAL mode has no `-wal`: nobody has it open, nothing is pending."""
    with contextlib.suppress(VolumeError):
        return database.read_header(path).wal_mode and not database.beside(path, "-wal").exists()
    return False


def _pin(
    name: str, path: Path, resting: set[Path], lock: contextlib.ExitStack, problems: dict[str, str]
) -> sqlite3.Connection | None:
    """Begin a read of a live database and return the connection that holds its state.

    None if it is copied as bytes, or cannot be read (then `problems` says why). Raise Moved if
    it is locked just now, and _NoConnection if only its bytes can be read.
    """
    try:
        database.read_header(path)
        if path in resting:
            return None
        if _at_rest(path):
            raise Moved  # a connection would leave a `-wal` beside it
        live = database.uri(path, "mode=ro")
        connection = sqlite3.connect(live, uri=True, timeout=5, isolation_level=None)
        lock.callback(connection.close)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except VolumeError as error:
        problems[name] = str(error)
        return None
    except sqlite3.DatabaseError as error:
        code = error.sqlite_errorcode & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Moved from error
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise _NoConnection(path) from error
        if database.of_the_machine(error):
            raise
        volume.read_through(path)  # SQLite calls malformed what the disk does not give
        problems[name] = f"{path}: {error}"
        return None
    return connection


class _NoConnection(Moved):
    """A read-only connection cannot be had: a crash left a journal, or we may not write `-shm`."""


def _backup(source: sqlite3.Connection, target: Path, limit_seconds: float) -> None:
    """Copy a pinned database with SQLite's online backup; raise CaptureError after the limit.

    The limit is for sources whose writers wait for us.
    """
    deadline = time.monotonic() + limit_seconds

    def step(_status: int, remaining: int, _total: int) -> None:
        if remaining and time.monotonic() > deadline:
            text = f"copying {target.name} would hold up the bot for over {limit_seconds:.0f} s"
            raise CaptureError(text, "run it with the bot stopped")

    open(target, "xb", opener=volume.private).close()
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA synchronous=OFF")
        copy.execute("PRAGMA journal_mode=OFF")
        source.backup(copy, pages=_STEP_PAGES, progress=step)


def absorb_journal(copy: Path) -> None:
    """Let SQLite fold a copied `-wal` or `-journal` into the copy, which then stands alone.

    Raise CaptureError for a journal that names another file: SQLite would delete that one.
    """
    if database.names_another(copy):
        text = f"the journal of {copy.name} names another file, which SQLite would delete"
        raise CaptureError(text, "see who wrote it: the bot makes no such journal")
    if any(database.beside(copy, suffix).exists() for suffix in _SUFFIXES[1:]):
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def stats(settings: Settings, plain: Iterable[Path]) -> Stats:
    """Size, mtime and inode of the HNSW files and of `plain`; what is missing is left out.

    Raise UnreadError for what the machine or our rights keep back.
    """
    candidates = [*plain]
    with _unless_missing():
        for directory in chroma.segment_directories(settings.chroma_dir):
            candidates.extend(directory.iterdir())
    found: Stats = {}
    for path in candidates:
        with _unless_missing():
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode):
                found[path] = (seen.st_size, seen.st_mtime_ns, seen.st_ino)
    return found


@contextlib.contextmanager
def _unless_missing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refused = database.refusal(f"{error.filename} cannot be read", error)
        if isinstance(refused, UnreadError):
            raise refused from error


def _quiet(settings: Settings, plain: Iterable[Path], limit_seconds: float) -> Stats:
    """Return the stats once no file was touched for QUIET_SECONDS, so that a change will show.

    Raise Moved after the limit.
    """
    for _ in range(max(1, int(limit_seconds / QUIET_SECONDS))):
        seen = stats(settings, plain)
        now = time.time()
        # either way: the clock behind st_mtime may be a little ahead of ours
        if all(abs(now - mtime / 1e9) >= QUIET_SECONDS for _, mtime, _ in seen.values()):
            return seen
        time.sleep(QUIET_SECONDS)
    raise Moved


def copy_file(source: Path, target: Path) -> None:
    """Copy one regular file with its holes; links are not followed. Raise Moved if it is gone."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Moved from error
    with open(handle, "rb"), open(target, "xb", buffering=0, opener=volume.private) as writer:
        length, at = os.fstat(handle).st_size, 0
        writer.truncate(length)
        while at < length:
            try:
                at = os.lseek(handle, at, os.SEEK_DATA)
                end = os.lseek(handle, at, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    break
                raise
            while at < end:
                writer.seek(at)
                count = os.sendfile(writer.fileno(), handle, at, min(end - at, _COPY_BYTES))
                if not count:
                    raise Moved
                at += count


def copy_tree(source: Path, target: Path, leave_out: Iterable[Path] = ()) -> None:
    """Copy a file or a tree but for `leave_out`, with holes and times; links stay links.

    Raise VolumeError for what cannot be copied.
    """
    for path, seen in volume.walk(source):
        if not {path, *path.parents}.isdisjoint(leave_out):
            continue
        copy = target / path.relative_to(source)
        if seen and stat.S_ISDIR(seen.st_mode):
            copy.mkdir(mode=0o700)
        elif seen and stat.S_ISLNK(seen.st_mode):
            copy.symlink_to(path.readlink())
        elif seen and stat.S_ISREG(seen.st_mode):
            copy_file(path, copy)
            os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        else:
            raise VolumeError(f"{path} can be neither read nor copied", "move it out of there")
