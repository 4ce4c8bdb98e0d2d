"""What a cell is complained of: every way in which it is not as promised."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from matrix.commands import Command
from matrix.machine import LIMIT_SECONDS, Bot, Machine, Result, descendants, execute
from matrix.world import Seen, World, bytes_of, files, generations, logical, others, stores
from nescord_ops import backup, offsite, swap

UNEXPLAINED = "run again with --debug"
_NO = ("Traceback", "Exception ignored", UNEXPLAINED, "Fatal Python", "AssertionError")
# Libraries that end the process themselves when they cannot have memory or descriptors.
_ENDED = ("OpenBLAS error", "src/epoll.cpp")


def of_the_process(result: Result, machine: Machine, *, as_json: bool) -> Iterator[str]:
    """Complain of the exit code, of a traceback, of an unexplained error, of bad JSON."""
    out, err, code = result.out, result.err, result.code
    if any(word in err for word in _ENDED) and code not in (0, 2):
        return
    if code == 124:
        yield f"hangs: not done in {LIMIT_SECONDS:.0f} s"
    elif code not in machine.codes:
        yield f"exit code {code}"
    for word in _NO:
        if word == UNEXPLAINED and "ImportError" in out + err:
            continue  # a limit of addresses, which no container has
        if word in err or (word in out and (not as_json or word == UNEXPLAINED)):
            yield f"says {word!r}"
    if as_json and code in (0, 1, 2, 130):
        yield from _of_the_document(out, code)
    elif code == 2 and "Error:" not in err and not out:
        yield f"exit code 2 without a word: {err[-200:]!r}"


def _of_the_document(out: str, code: int) -> Iterator[str]:
    try:
        said = json.loads(out)
    except ValueError:
        yield f"no JSON: {out[:200]!r}"
        return
    if not isinstance(said, dict):
        return
    expected = {"ok": 0, "warn": 0, "fail": 1, "unknown": 2}.get(str(said.get("status")), code)
    if code not in (expected, 130):
        yield f"exit code {code} with status {said['status']}"
    if "error" in said and code not in (1, 2, 130):
        yield f"exit code {code} with an error"


def of_the_verdict(result: Result, fine: int, *, as_json: bool) -> Iterator[str]:
    """Complain of a failed check where nothing is wrong but the machine.

    A probe that cannot be written is a finding: the bot cannot write there either.
    """
    places = ("access.", "cause.no-permission")
    failed = re.findall(r"^ *✕ fail +(\S+ .*)", result.out, re.MULTILINE)
    if as_json:
        with contextlib.suppress(ValueError):
            said = json.loads(result.out)
            failed = [
                f"{check['name']} {check['summary']}"
                for check in said.get("checks", [])
                if check["status"] == "fail"
            ]
    if fine != 1 and not (failed and all(name.startswith(places) for name in failed)):
        yield f"exit code 1, where it could not look: {'; '.join(failed) or 'no check failed'}"


def of_what_is_left(world: World, machine: Machine) -> Iterator[str]:
    """Complain of processes, scratch directories, probes and journals that outlive a command."""
    deadline = time.monotonic() + 5
    while (alive := descendants(world)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in alive:
        with contextlib.suppress(OSError):
            yield f"a process is left: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
            os.kill(pid, signal.SIGKILL)
    log = world.beside(".shim")
    if machine.untidy or (log.exists() and re.search(r" (unlink|rmdir) ", log.read_text())):
        return
    for path in world.root.rglob("*"):
        ours = path.name.startswith((".nescord-ops-", "nescord-ops-"))
        if ours or ("-journal" in path.name and not machine.stuck):
            yield f"left behind: {path.relative_to(world.root)}"


def of_the_data(
    world: World, command: Command, machine: Machine, code: int, before: Seen
) -> Iterator[str]:
    """Complain of every byte that is not as it was, but in the stores if they may be swapped."""
    if machine.bot:
        yield from _beside_the_bot(world, machine.bot, sound=before.sound)
    elif "live" not in command.writes:
        yield from _changed("live", before.stores, stores(world))
    yield from _changed("beside", before.others, others(world))
    after, damage = generations(world)
    yield from (f"store: {text}" for text in damage if text not in before.damage)
    droppable = {world.ids[name] for name in command.drops if name in "ABC"}
    for identity, digest in before.generations.items():
        if identity not in after and identity not in droppable:
            yield f"backup {identity} is gone"
        elif identity in after and after[identity] != digest:
            yield f"backup {identity} has changed"
    added = set(after) - set(before.generations)
    if "AB" in command.drops and not backup.listing(world.settings).newest_proven:
        yield "no proven backup is left"
    if "store" not in command.writes and added:
        yield "a backup was added"
    yield from _of_the_copies(world, command, before.copies)
    if code == 0:
        yield from _claims(world, command, added)


def _of_the_copies(world: World, command: Command, before: dict[str, str]) -> Iterator[str]:
    """A copy's stream never changes; its JSON may, which notes when it was checked."""
    now = files(world.root / "offsite")
    for name, said in before.items():
        if name not in now:
            if "P" not in command.drops or world.ids["P"] not in name:
                yield f"copy {name} is gone"
        elif not name.endswith(".json") and now[name].split()[0] != said.split()[0]:
            yield f"copy {name} has changed"


def of_the_swap(
    world: World,
    command: Command,
    code: int,
    before: Seen,
    new: dict[str, dict[str, str]] | dict[str, str],
) -> Iterator[str]:
    """Complain unless both stores are the old ones or both the new ones.

    `new` is what a restore writes, in bytes, or what a clean-up makes of the volume, in rows.
    """
    note = world.settings.database.parent / swap.INTENT
    interrupted = note.exists()
    if interrupted:  # the same command goes on from there
        again = execute(world, command, Machine())
        if note.exists() or again.code not in (0, 1):
            yield f"not recovered: {again}"
    if command.name.startswith("restore"):
        now = {name: bytes_of(found) for name, found in stores(world).items()}
        old = {name: bytes_of(found) for name, found in before.stores.items()}
        notes = {world.settings.database.name: new["database"]}
        is_old = now == old
        is_new = now == {**new, "database": old["database"] if "--only" in command.name else notes}
    else:
        is_old, is_new = logical(world) == before.logical, logical(world) == new
    if code == 0 and not is_new:
        yield "it says that it is done, and the new data is not there"
    if interrupted and not is_new:
        yield "interrupted, and not completed"
    if not is_old and not is_new:
        yield "the live data is neither the old nor the new"


def _changed(what: str, old: object, new: object) -> Iterator[str]:
    if old == new:
        return
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(f"{what} {name}", before, after)
        elif before != after:
            yield f"{what} {name}: {before} -> {after}"


def _beside_the_bot(world: World, bot: Bot, *, sound: bool) -> Iterator[str]:
    """Complain if the bot saw an error or a row of its own is nowhere."""
    if bot.errors:
        yield f"the bot saw: {bot.errors.decode()[-300:]}"
    have: set[str] = set()
    found = world.settings.database
    for path in (found, *found.parent.glob("replaced_*/*.db")):
        with contextlib.closing(sqlite3.connect(path)) as db:
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if sound and verdict != "ok":
                yield f"{path.name}: {verdict}"
            have |= {key for (key,) in db.execute("SELECT key FROM kv_store")}
    if missing := bot.keys - have:
        yield f"{len(missing)} of {len(bot.keys)} rows of the bot's are nowhere"


def _claims(world: World, command: Command, added: set[str]) -> Iterator[str]:
    """Complain if a command that says it did something did not."""
    name, out, found = command.name, world.root / "out", world.settings
    if "--dry-run" in name:
        return
    adding = ("backup create", "backup create --keep 2 --drill --push", "backup adopt")
    if name in (*adding, "offsite pull --identity") and len(added) != 1:
        yield f"{len(added)} backups were added"
    if name == "backup export" and not (out / "export" / world.ids["B"] / "nescordbot.db").exists():
        yield "nothing was exported"
    if name == "restore --to" and not (out / "restored" / "nescordbot.db").exists():
        yield "nothing was restored"
    if name == "offsite push" or "--push" in name:
        identity = world.ids["C"] if name == "offsite push" else next(iter(added), "none")
        looked = offsite.check(dataclasses.replace(found, offsite_url=world.url), identity)
        if looked.status.exit_code:
            yield f"pushed, and the copy is {looked.headline}"
    if name.startswith("offsite pull") and "--to" in name and not list(out.rglob("nescordbot.db")):
        yield "nothing was pulled"
    if name == "offsite keygen":
        key = out / "new.key"
        if "AGE-SECRET-KEY" not in key.read_text() or stat.S_IMODE(key.stat().st_mode) != 0o600:
            yield "no key"
    if name.startswith("demo"):
        with contextlib.closing(sqlite3.connect(out / "demo/data/nescordbot.db")) as db:
            if db.execute("SELECT count(*) FROM knowledge_notes").fetchone() != (5,):
                yield "no sample"
    if name.startswith("report"):
        pages = list((out / "reports").glob("*/*.html"))
        if len(pages) < 2 or not (out / "reports" / "index.html").exists():
            yield f"{len(pages)} pages"
    if name == "deploy --write" and len(files(out / "write")) < 4:
        yield "nothing was written"
