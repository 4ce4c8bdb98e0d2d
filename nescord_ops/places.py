"""Where the data lies: the volume's mount, the bot's paths on it, permissions and room (I13).

Live paths are only stat-ed, but for a write probe that removes itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nescord_ops import show, volume
from nescord_ops.checks import Check, fail, none_of, ok, unknown, warn
from nescord_ops.database import RIGHTS_HINT
from nescord_ops.errors import VolumeError
from nescord_ops.settings import Settings

FREE_WARN_RATIO, FREE_FAIL_BYTES = 0.10, 20 << 20


def url(settings: Settings) -> Check:
    """Whether DATABASE_URL opens the file that it seems to name (I13)."""
    if settings.database_meant is None:
        return ok("location.url", f"DATABASE_URL opens {settings.database}")
    hint = f"stop the bot, move the data there, and set {_url_of(settings.database_meant)}"
    text = f"DATABASE_URL opens {settings.database}, not {settings.database_meant}"
    return fail("location.url", text, hint)


def _url_of(path: Path) -> str:
    return f"DATABASE_URL=sqlite:///{path} (four slashes, nothing behind the name)"


def locations(settings: Settings) -> Iterator[Check]:
    """Whether a volume is mounted where Railway says, and both stores lie on it (I13)."""
    mount = settings.volume_mount
    places = (("database", settings.database), ("chroma", settings.chroma_dir))
    if mount is None:
        why = "not on Railway (RAILWAY_VOLUME_MOUNT_PATH is not set): no mount to compare with"
        for name in ("volume", *(name for name, _ in places)):
            yield unknown(f"location.{name}", why, expected=True)
        return
    seen = volume.mount_of(mount)
    if seen is None:
        yield unknown("location.volume", "the list of mounts cannot be read (/proc/self/mountinfo)")
        return
    if seen.path != Path(os.path.realpath(mount)):
        hint = "attach the volume to the service and redeploy: what is written now will be lost"
        yield fail("location.volume", f"no volume is mounted at {mount}", hint)
    elif seen.read_only:
        yield fail("location.volume", f"{mount} is mounted read-only", "see Railway's status page")
    else:
        yield ok("location.volume", f"a {seen.filesystem} volume is mounted at {mount}")
    for name, path in places:
        real = Path(os.path.realpath(path))
        on = volume.mount_of(path)
        if real.is_relative_to(os.path.realpath(mount)) and on and on.path == seen.path:
            yield ok(f"location.{name}", f"{path} is on the volume")
        else:
            text = f"{real} is not on the volume at {mount}: it is lost at the next deploy"
            hint = f"back up now; then set {_url_of(mount / 'nescordbot.db')}"
            if name == "chroma":
                hint = f"back up now; then set CHROMADB_PERSIST_DIRECTORY={mount}/chromadb"
            yield fail(f"location.{name}", text, hint)


def strays(settings: Settings) -> Check:
    """Whether there are databases beside the one in use (I13)."""
    try:
        found = stray_databases(settings)
    except OSError as error:
        return unknown("location.strays", f"{error.filename}: {error.strerror}", RIGHTS_HINT)
    return none_of(
        "location.strays",
        len(found),
        "files",
        good="no second database lies about",
        bad=f"other databases lie beside the one in use: {', '.join(map(str, found))}",
        one=f"other database lies beside the one in use: {', '.join(map(str, found))}",
        hint="an earlier DATABASE_URL wrote there: look which one holds your notes; "
        "nescord-ops clean strays moves the others aside",
    )


def stray_databases(settings: Settings) -> list[Path]:
    """Return the databases beside the one in use, which a wrong URL has made.

    Raise OSError where one of the places may not be looked at.
    """
    used = settings.database
    wanted = settings.database_meant or used
    inside = settings.app_dir.joinpath(*settings.app_dir.parts[1:])
    candidates = [
        wanted,
        settings.app_dir / "data" / wanted.name,
        inside / "data" / wanted.name,
        settings.app_dir / settings.app_dir.name / "data" / wanted.name,
    ]
    for directory in {used.parent, wanted.parent}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            begin = f"{wanted.name.split('?')[0]}?"
            candidates += [p for p in directory.iterdir() if p.name.startswith(begin)]
    # The same file may have two paths, by `..` or a link: it is never its own stray.
    return sorted(
        {
            path
            for path in {os.path.realpath(path): path for path in candidates}.values()
            if path != used
            and _is_file(path)
            and not (used.exists() and path.samefile(used))
            and not path.name.endswith(("-wal", "-shm", "-journal"))
        }
    )


def _is_file(path: Path) -> bool:
    """As Path.is_file, but raise OSError where nobody may look: newer Pythons say no."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def access(settings: Settings) -> Iterator[Check]:
    """Existence, owner, mode bits, and a write probe of both directories."""
    database_file = volume.place(settings.database)
    if database_file.kind == "file":
        yield ok("access.database", f"{settings.database} is a file")
    else:
        yield _absent("access.database", database_file, "file", "DATABASE_URL")
    for name, path in (("volume", settings.database.parent), ("chroma", settings.chroma_dir)):
        seen = volume.place(path)
        if seen.kind == "link":
            seen = volume.place(Path(os.path.realpath(path)))
        if seen.kind != "directory":
            variable = "CHROMADB_PERSIST_DIRECTORY" if name == "chroma" else "DATABASE_URL"
            yield _absent(f"access.{name}", seen, "directory", variable)
            continue
        yield mode(f"access.{name}", seen)
        try:
            volume.probe_write(path)
        except VolumeError as error:
            hint = f"on Railway set RAILWAY_RUN_UID=0; elsewhere: chmod u+rwx {path}"
            yield fail(f"access.{name}_write", f"{error}", hint)
        else:
            text = f"a probe was written to {path}, synced, read and removed"
            yield ok(f"access.{name}_write", text)


def _absent(name: str, seen: volume.Place, wanted: str, variable: str) -> Check:
    hint = f"check {variable}; nescord-ops troubleshoot says how to restore it, if the bot ever ran"
    if seen.kind == "denied":
        return unknown(name, f"{seen.path}: permission denied", RIGHTS_HINT)
    return fail(name, f"{seen.path} should be a {wanted} and is {seen.kind}", hint)


def mode(name: str, seen: volume.Place) -> Check:
    """The guide's 755 and 750, or anything as good: the owner may do all, strangers not write."""
    details = {"value": seen.mode_text, "limit": "755"}
    text = f"{seen.path} is mode {seen.mode_text}, owner {seen.owner}"
    if seen.mode & stat.S_IRWXU != stat.S_IRWXU:
        hint = f"chmod 755 {seen.path}"
        return fail(name, f"{text}: its mode forbids writing", hint, **details)
    if seen.mode & stat.S_IWOTH:
        hint = f"chmod 755 {seen.path}"
        return warn(name, f"{text}: everyone may write there", hint, **details)
    return ok(name, text, **details)


def room(settings: Settings, known: volume.Space | None = None) -> Check:
    """Free space of the volume if that is `known`, else of the database's file system."""
    try:
        room = known or volume.space(settings.database.parent)
    except VolumeError as error:
        return unknown("access.space", f"{error}", error.hint)
    details = {"value": room.free_bytes, "unit": "bytes", "limit": FREE_FAIL_BYTES}
    share = room.free_bytes / room.total_bytes if room.total_bytes else 0.0
    text = f"{show.size(room.free_bytes)} free of {show.size(room.total_bytes)} ({share:.0%})"
    hint = "see nescord-ops capacity; grow the volume in Railway's dashboard"
    if room.free_bytes < FREE_FAIL_BYTES:
        return fail("access.space", f"full: {text}", hint, **details)
    if share < FREE_WARN_RATIO:
        return warn("access.space", f"nearly full: {text}", hint, **details)
    return ok("access.space", text, **details)
