"""A cause's fix as a shell script for this very installation: its paths, its backup, its place.

On Railway only a redeploy stops the bot, and it loses what is not on the volume. So what lies off
the volume is backed up while the bot runs, and restored behind the redeploy.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping

from nescord_ops import inventory, show
from nescord_ops.database import beside
from nescord_ops.errors import OpsError
from nescord_ops.inventory import Backup
from nescord_ops.settings import SQLITE_PREFIX, Settings, command

_SUFFIXES = ("", "-wal", "-shm")  # a database and what belongs to it
_LINE = "\0"  # between lines: no path has it
_NO_BACKUP = "# there is no backup to restore: look for one among Railway's own, in its dashboard"
# What a fix comes to, by a line that only this fix has.
_PLANS = {
    "{restore}": "Stop the bot, put {newest} back, start the bot. Notes written since are not in"
    " it. Nothing is deleted: what is there now stays beside it, in a directory replaced_…",
    "{restore_vectors}": "Stop the bot, bring the vectors back from {whole}, mark the notes"
    " written since for the bot to add, start the bot. The notes stay as they are.",
    "{move_database}": "{moving}",
    "{move_stores}": "{moving}",
    "{tool} backup create --drill": "Take a backup now, and prove it by a trial restore. The bot"
    " may go on running.",
    "chmod u+rwx -- {data} {chroma}": "Allow writing to its directories again. The bot may go on"
    " running.",
    "chmod o-w -- {data} {chroma}": "Let nobody but the bot's user write to its directories.",
}


def script(fix: Iterable[str], names: dict[str, str]) -> tuple[str, ...]:
    """Given the lines of a fix, return them filled in, but for those that come out empty.

    A name with a line feed in it stays within its quotes, and ends no remark.
    """
    lines = _LINE.join(line.format_map(names) for line in fix).split(_LINE)
    return tuple(x.replace("\n", "?") if x.startswith("#") else x for x in lines if x)


def plan(fix: Iterable[str], names: dict[str, str]) -> str:
    """Given the lines of a fix, return in a sentence what they come to; empty if they say it."""
    return next((_PLANS[line].format_map(names) for line in fix if line in _PLANS), "")


def names(settings: Settings) -> dict[str, str]:
    """Return what the lines of a fix may name, each ready for a shell."""
    railway = settings.volume_mount is not None
    how = "the way it was started (Ctrl-C, systemctl stop, docker stop)"
    stop, start, restart = f"# stop the bot {how}", "# start the bot", "# restart the bot"
    if railway:
        stop = (
            "# stop the bot: in Railway's dashboard set the service's start command to `sleep"
            " infinity` and redeploy; the lines below are for `railway ssh`"
        )
        start = "# start the bot: put the start command back and redeploy"
        restart = "railway redeploy  # on your own machine"
    tool = command(settings.to_dict())
    base = {"tool": tool, "stop": stop, "start": start, "restart": restart}
    moving = (
        "Back up onto the volume, correct the variable, redeploy with the bot stopped, restore"
        " there what you have backed up, start the bot."
        if railway
        else "Stop the bot, back up, move the database to where DATABASE_URL was meant to put it,"
        " correct DATABASE_URL, start the bot."
    )
    newest, vectors = _backups(settings)
    return {
        **base,
        "restore": _restore(tool, newest),
        "restore_vectors": _LINE.join(_restore_vectors(tool, vectors)),
        "moving": moving,
        "newest": _named(newest, "the newest good backup"),
        "whole": _named(vectors, "the newest good backup that has them"),
        "run_as_root": _set(settings, "RAILWAY_RUN_UID", "0") if railway else "",
        "move_database": _LINE.join(_move_database(settings, base)),
        "move_stores": _LINE.join(_move_stores(settings, base)),
        "mount": shlex.quote(str(settings.volume_mount or "/app/data")),
        "database": shlex.quote(str(settings.database)),
        "data": shlex.quote(str(settings.database.parent)),
        "chroma": shlex.quote(str(settings.chroma_dir)),
    }


def _backups(settings: Settings) -> tuple[Backup | None, Backup | None]:
    """The newest good backup, and the newest that holds vectors; else one of the bot's own."""
    try:
        known = inventory.listing(settings, looking=True).backups
    except OpsError:
        return None, None
    good = [backup for backup in known if backup.good]
    whole = [backup for backup in known if not backup.fault]
    full = [
        backup
        for backup in good
        if backup.evidence.get("collections", {}).get(settings.collection, {}).get("count", 0) > 1
    ]
    choices = [*good, *whole]
    vectors = [*full, *(backup for backup in choices if "chroma" in backup.stores)]
    return next(iter(choices), None), next(iter(vectors), None)


def _named(backup: Backup | None, what: str) -> str:
    """What a plan calls a backup."""
    if backup is None:
        return "a backup"
    what = what if backup.good else "the bot's own backup"
    return f"{what} ({show.moment(backup.taken_at)})"


def _restore(tool: str, backup: Backup | None) -> str:
    if backup is None:
        return _NO_BACKUP
    return f"{tool} restore {shlex.quote(backup.id)}"


def _restore_vectors(tool: str, backup: Backup | None) -> Iterable[str]:
    """Put back the vectors of a backup and leave the notes, which are newer, as they are."""
    if backup is None:
        return [_NO_BACKUP]
    return [
        "# bring the vectors back; what is there now is kept in replaced_…:",
        f"{tool} restore {shlex.quote(backup.id)} --only chroma",
        "# have the bot add the notes written since; nothing is removed:",
        f"{tool} clean unsynced --apply",
    ]


def _set(settings: Settings, name: str, value: str) -> str:
    """The line that sets a variable: on Railway, in the `.env` file, or for a person."""
    if settings.volume_mount:
        return f"railway variable set {shlex.quote(f'{name}={value}')}  # on your own machine"
    if not settings.env_file or name in os.environ:
        return f"# set {name}={value} in the bot's environment"
    file = shlex.quote(str(settings.env_file))
    written = settings.env_file.read_text("utf-8", errors="replace")
    ways = dict.fromkeys(re.findall(rf"(?m)^[ \t]*(?:export[ \t]+)?{name}[ \t]*=", written))
    if not ways:
        end = "\n" if written and not written.endswith("\n") else ""
        return f"echo {shlex.quote(f'{end}{name}={value}')} >> {file}"
    safe = re.sub(r"([\\&|])", r"\\\1", value)
    return f"sed -i {shlex.quote(';'.join(f's|^{way}.*|{way}{safe}|' for way in ways))} {file}"


def _move_database(settings: Settings, names: Mapping[str, str]) -> Iterable[str]:
    """Move the database to where DATABASE_URL was meant to put it, and correct the variable."""
    source, target = settings.database, settings.database_meant
    if target is None:
        return
    url = _set(settings, "DATABASE_URL", f"{SQLITE_PREFIX}{target}")
    if settings.volume_mount:
        yield from _carry(settings, names, [url])
        return
    yield names["stop"]
    yield "# back up the database that the bot uses now:"
    yield f"{names['tool']} backup create"
    if not target.parent.is_dir():
        yield f"mkdir -p {shlex.quote(str(target.parent))}"
    if target.exists():
        yield "# another database is there: it is kept; look which one holds your notes"
    kept = target
    while kept == target or any(os.path.lexists(beside(kept, suffix)) for suffix in _SUFFIXES):
        kept = beside(kept, ".earlier")
    for suffix in _SUFFIXES:
        to = beside(target, suffix)
        if os.path.lexists(to):
            yield shlex.join(["mv", "-nT", "--", str(to), str(beside(kept, suffix))])
    # the bot may leave its newest notes in a -wal that is not there yet
    old, new = shlex.quote(str(source)), shlex.quote(str(target))
    yield f"# move it to {target}, where nothing is now:"
    if source.name == target.name:
        yield f"mv -n -- {old}* {shlex.quote(f'{target.parent}/')}"
    else:
        words = " ".join(suffix or '""' for suffix in _SUFFIXES)
        move = f'mv -T -- {old}"$s" {new}"$s"'
        yield f'for s in {words}; do if [ -e {old}"$s" ]; then {move}; fi; done'
    if not url.startswith("#"):
        yield f"# write DATABASE_URL with its four slashes, {SQLITE_PREFIX}{target}:"
    yield url
    yield names["start"]


def _move_stores(settings: Settings, names: Mapping[str, str]) -> Iterable[str]:
    """Move what lies off the volume onto it."""
    mount = settings.volume_mount
    if mount is None:
        return
    lines = []
    if not settings.database.is_relative_to(mount):
        lines.append(_set(settings, "DATABASE_URL", f"{SQLITE_PREFIX}{mount / 'nescordbot.db'}"))
    if not settings.chroma_dir.is_relative_to(mount):
        lines.append(_set(settings, "CHROMADB_PERSIST_DIRECTORY", str(mount / "chromadb")))
    yield from _carry(settings, names, lines)


def _carry(settings: Settings, names: Mapping[str, str], variables: Iterable[str]) -> Iterable[str]:
    """Back up onto the volume what a redeploy would lose, and restore it behind the redeploy."""
    home = shlex.quote(f"NESCORD_OPS_BACKUP_DIR={settings.volume_mount}/backups")
    yield "# while the bot runs and nobody writes, for a redeploy loses what is off the volume:"
    yield f"env {home} {names['tool']} backup create --drill"
    yield from variables
    yield names["stop"]
    yield f"env {home} {names['tool']} backup list"
    yield "# restore the one that you have just taken: the same line with `restore ID`"
    yield names["start"]
