"""The volume from outside: mounts, bytes, owners, and a write probe that removes itself.

Nothing here opens a database. Links are never followed, so a link out of the volume costs nothing
and leads nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from nescord_ops.errors import VolumeError
from nescord_ops.results import Result

PROBE_PREFIX = ".nescord-ops-probe-"
_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclasses.dataclass(frozen=True, slots=True)
class Space(Result):
    """A file system's room in bytes, as statvfs(3) gives it; `free_bytes` is what we may use."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mount(Result):
    """A mounted file system: where, what device, which type, and whether it takes writes."""

    path: Path
    device: str
    filesystem: str
    read_only: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Usage(Result):
    """Bytes of a tree: `apparent_bytes` as `ls` says, `allocated_bytes` as blocks are billed.

    `skipped` counts what could not be read; the sums are lower bounds where it is not 0.
    """

    apparent_bytes: int = 0
    allocated_bytes: int = 0
    files: int = 0
    skipped: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.apparent_bytes + other.apparent_bytes,
            self.allocated_bytes + other.allocated_bytes,
            self.files + other.files,
            self.skipped + other.skipped,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Place(Result):
    """One path as lstat(2) sees it: `kind` is directory, file, link, other or missing."""

    path: Path
    kind: str
    mode: int
    uid: int
    gid: int
    device: int

    @property
    def mode_text(self) -> str:
        """The permission bits as people write them: `755`."""
        return f"{stat.S_IMODE(self.mode):03o}"

    @property
    def owner(self) -> str:
        """The owning user as people name it, `root`, or by number where it has no name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"user {self.uid}"


def place(path: Path) -> Place:
    """Given a path, return what lies there; `denied` as kind if we may not look."""
    try:
        seen = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Place(path, "missing", 0, -1, -1, -1)
    except OSError:
        return Place(path, "denied", 0, -1, -1, -1)
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(seen.st_mode), "other")
    return Place(path, kind, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_dev)


def existing(path: Path) -> Path:
    """Given a path that may not exist, return its nearest existing ancestor or itself."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def space(path: Path) -> Space:
    """Given a path, return the room of its file system. Raise VolumeError if it cannot be asked."""
    try:
        seen = os.statvfs(existing(path))
    except OSError as error:
        raise VolumeError(
            f"{path}: {error.strerror}", "check that the volume is mounted"
        ) from error
    return Space(
        total_bytes=seen.f_blocks * seen.f_frsize,
        used_bytes=(seen.f_blocks - seen.f_bfree) * seen.f_frsize,
        free_bytes=seen.f_bavail * seen.f_frsize,
    )


def mount_of(path: Path) -> Mount | None:
    """Given a path, return the mount that its nearest existing ancestor lies on (proc(5)).

    Links are resolved first, so a database linked out of the volume is found where it really is.
    None where the system has no /proc.
    """
    try:
        lines = _MOUNTINFO.read_text("utf-8", "surrogateescape").splitlines()
        real = Path(os.path.realpath(existing(path)))
    except OSError:
        return None
    best: Mount | None = None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = Path(_unescape(fields.split(" ")[4]))
        if real.is_relative_to(point) and (
            best is None or len(point.parts) >= len(best.path.parts)
        ):
            options = fields.split(" ")[5].split(",")
            kind, device, *more = rest.split(" ")
            read_only = "ro" in options or (bool(more) and "ro" in more[0].split(","))
            best = Mount(point, _unescape(device), kind, read_only)
    return best


def _unescape(text: str) -> str:
    """Spaces and such stand as octal escapes in mountinfo."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def walk(root: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Given a directory, yield every entry below it with its lstat, or None if unreadable.

    Iterative, links not followed, other file systems not entered; a directory comes before what
    is in it. A file is yielded as itself.
    """
    try:
        top = root.lstat()
    except OSError:
        yield root, None
        return
    yield root, top
    pending = [root] if stat.S_ISDIR(top.st_mode) else []
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    path = directory / entry.name
                    try:
                        seen = entry.stat(follow_symlinks=False)
                    except OSError:
                        yield path, None
                        continue
                    yield path, seen
                    if stat.S_ISDIR(seen.st_mode) and seen.st_dev == top.st_dev:
                        pending.append(path)
        except OSError:
            yield directory, None


def usage(root: Path) -> Usage:
    """Given a file or directory, return its bytes; a hard-linked file is counted once."""
    apparent = allocated = files = skipped = 0
    linked: set[tuple[int, int]] = set()
    for _, seen in walk(root):
        if seen is None:
            skipped += 1
            continue
        if seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode):
            if (seen.st_dev, seen.st_ino) in linked:
                continue
            linked.add((seen.st_dev, seen.st_ino))
        if stat.S_ISREG(seen.st_mode):
            apparent += seen.st_size
            files += 1
        allocated += seen.st_blocks * 512
    return Usage(apparent, allocated, files, skipped)


def read_through(path: Path) -> None:
    """Read every byte of a regular file but its holes; raise OSError for what cannot be read."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        length, at = os.fstat(handle).st_size, 0
        while stat.S_ISREG(os.fstat(handle).st_mode) and at < length:
            try:
                at = os.lseek(handle, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    return
                raise
            end = os.lseek(handle, at, os.SEEK_HOLE)
            while at < end:
                read = len(os.pread(handle, min(end - at, 1 << 20), at))
                at += read or end - at
    finally:
        os.close(handle)


def probe_write(directory: Path) -> None:
    """Create, sync, read back and remove one small file in `directory`.

    Raise VolumeError if any of it fails; the file is removed whatever happens.
    """
    path = directory / f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    content = secrets.token_bytes(64)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(handle, content)
            os.fsync(handle)
            same = os.pread(handle, len(content) + 1, 0) == content
        finally:
            os.close(handle)
            path.unlink()
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "")
        raise VolumeError(f"{directory} takes no writes: {error.strerror} ({reason})") from error
    if not same:
        raise VolumeError(f"{directory} gave back other bytes than were written")


def private(path: str, flags: int) -> int:
    """Open a file as `open` does, for its owner only whatever the umask; a link is refused."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def private_directory(directory: Path) -> Path:
    """Make a directory for its owner only (mode 700), or take one that is, and return it.

    Raise VolumeError for a link, or for one that others may enter: who can write around it could
    have put it there, to read or to change what is written into it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        seen, around = place(directory), place(directory.parent)
        ours = seen.uid in (os.geteuid(), around.uid)  # who owns what is around may do as he likes
        if seen.kind != "directory" or seen.mode & 0o077 or not ours:
            text = f"{directory} is there already, and not as this program makes it"
            raise VolumeError(text, "see who put it there, and remove it") from None
    return directory


def claim(directory: Path) -> Path:
    """Make a directory, or take it if it is empty, and return it.

    Raise VolumeError if there is anything in it: nothing is overwritten.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(directory.iterdir())
    except (OSError, ValueError) as error:
        raise VolumeError(f"{directory} cannot be made: {error}", "name another place") from error
    if taken:
        raise VolumeError(
            f"{directory} is not empty, and nothing is overwritten", "name a new directory"
        )
    return directory


def remove_tree(root: Path) -> None:
    """Remove a scratch directory of ours, or what was put in its place; gone already is fine.

    Tried twice, since a fault may pass. Raise OSError for what stays.
    """
    import shutil

    def remove() -> None:
        if place(root).kind == "directory":
            shutil.rmtree(root)
        else:
            root.unlink()

    with contextlib.suppress(FileNotFoundError):
        try:
            remove()
        except OSError:
            remove()


def clear(directory: Path) -> None:
    """Remove all that is in a directory, which stays. Raise OSError for what stays with it."""
    for entry in directory.iterdir():
        remove_tree(entry)
