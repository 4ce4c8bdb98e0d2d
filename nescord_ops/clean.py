"""Giving space back and repairing what verify finds, with nothing that is live edited in place.

The stores are copied beside themselves; the copies are repaired, compared with the originals note
by note and vector by vector, examined, and swapped in by `swap`, which says what a kill leaves. A
proven backup is taken before, and what is replaced is kept. So the live store is never opened with
Chroma's client, and a repair that makes anything worse is thrown away.

A bot that starts in the milliseconds between the last look for it and the swap is not noticed:
what it then writes goes to the replaced data. Start it after the clean-up.
"""

from __future__ import annotations

import dataclasses
import shlex
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import backup, chroma, database, rebuild, restore, show, swap, verify, volume
from nescord_ops.checks import Check, Findings, fail, ok, unknown, warn
from nescord_ops.errors import (
    BackupError,
    CaptureError,
    ChecksFailed,
    OpsError,
    SettingsError,
    VolumeError,
)
from nescord_ops.prices import GUIDE_PRICE
from nescord_ops.restore import MARGIN_BYTES, UNTOUCHED
from nescord_ops.results import Result
from nescord_ops.settings import Settings
from nescord_ops.snapshot import (
    Moved,
    Progress,
    Snapshot,
    Stats,
    absorb_journal,
    capture,
    scratch,
    stats,
)
from nescord_ops.stores import join
from nescord_ops.swap import Swap
from nescord_ops.waste import WORDS, Waste, proven_copies

PAGE_BYTES = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Item(Result):
    """What one word found: `gives_bytes` would go back to the file system if it is `chosen`."""

    what: str
    summary: str
    count: int
    gives_bytes: int
    usd_per_month: float
    examples: tuple[str, ...]
    chosen: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Cleaning(Findings):
    """What was cleaned, or what could be, unless `applied`: one item a word, and what they promise.

    `given_bytes` is what the stores and backups take less than before, measured. Until
    `remove_command` is run, `kept_bytes` of what was replaced still lie in `kept`; the backup
    `backup_id` takes room as well.
    """

    name = "clean"

    settings: Settings
    checks: tuple[Check, ...]
    items: tuple[Item, ...]
    promised_bytes: int
    usd_per_month: float
    given_bytes: int
    kept: tuple[Path, ...]
    kept_bytes: int
    remove_command: str
    backup_id: str
    applied: bool
    seconds: float

    @property
    def headline(self) -> show.Text:
        """What happened, in one sentence, and the verdict."""
        promised = f"{show.size(self.promised_bytes)} ({show.dollars(self.usd_per_month)} a month)"
        text = f"Nothing was done. {promised} can be given back."
        if self.applied:
            text = f"The data takes {show.size(self.given_bytes)} less; promised were {promised}."
        return show.Text(f"{text} {super(Cleaning, self).headline}")


@dataclasses.dataclass(slots=True)
class _Work:
    """A clean-up under way: what it was given, and what it has come to."""

    settings: Settings
    swaps: list[Swap]  # of both stores, whichever are changed
    seen: Stats  # of the live files: equal as long as nobody writes
    now: datetime
    say: Progress
    checks: list[Check] = dataclasses.field(default_factory=list)
    kept: list[Path] = dataclasses.field(default_factory=list)
    given_bytes: int = 0
    backup_id: str = ""


def run(
    settings: Settings,
    what: Sequence[str] = (),
    *,
    apply: bool = False,
    discard: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Cleaning:
    """Given words (default: all that need not be named), say what they would give back, or do it.

    A dry run writes scratch space only. To `apply`, nobody may have the stores open; `discard`
    removes what was replaced, once all is verified. Raise an OpsError, with the live data as it
    was, if somebody has, if no backup can be proven, or if there is no room; ChecksFailed if the
    repaired stores are worse than the old ones in anything that verify checks.
    """
    started = time.monotonic()
    chosen = _chosen(what, discard)
    shown = [word for word in WORDS if word in chosen or not what or word == "strays"]
    now = now or datetime.now(UTC)
    say = progress or (lambda _: None)
    with swap.alone(settings, dry_run=not apply):
        recovered = swap.recover(settings, dry_run=not apply)
        with swap.telling(recovered):
            swaps = swap.plan(swap.live(settings), now)
            work = _Work(settings, swaps, _state(settings), now, say)
            if recovered:
                work.checks.append(warn("clean.interrupted", recovered, "nescord-ops verify"))
            if apply:
                work.checks.append(_refuse_held(work))
            with capture(settings, say) as copy:
                found = _measured(settings, copy, shown)
            items = tuple(_items(found, chosen))
            promised = sum(item.gives_bytes for item in items)
            if apply and any(item.count for item in items if item.chosen):
                _perform(work, chosen, found)
                work.checks.append(_kept_promise(work.given_bytes, promised))
                if discard and not any(check.status.exit_code for check in work.checks):
                    _discard(work)
            work.checks += _judged(items, found, applied=apply)
    kept = tuple(dict.fromkeys(work.kept))
    size = _used(kept)
    if kept:
        text = f"what was replaced takes {show.size(size)} in {' and '.join(map(str, kept))}"
        work.checks.append(ok("clean.kept", text, hint=f"when all is well: {_removal(kept)}"))
    return Cleaning(
        settings=settings,
        checks=tuple(work.checks),
        items=items,
        promised_bytes=promised,
        usd_per_month=GUIDE_PRICE.usd(promised),
        given_bytes=work.given_bytes,
        kept=kept,
        kept_bytes=size,
        remove_command=_removal(kept),
        backup_id=work.backup_id,
        applied=apply,
        seconds=time.monotonic() - started,
    )


def _chosen(what: Sequence[str], discard: bool) -> list[str]:
    """The words to work on, in the table's order; raise SettingsError for another word."""
    wrong = [word for word in what if word not in WORDS]
    if wrong:
        raise SettingsError(f"{wrong[0]!r} is nothing to clean", f"one of {', '.join(WORDS)}")
    if discard and "strays" in what:
        text = "strays are in no backup, and --discard would lose them"
        raise SettingsError(text, "nescord-ops clean strays --apply, and look at them")
    return [word for word in WORDS if (word in what if what else not WORDS[word].named_only)]


def _refuse_held(work: _Work) -> Check:
    """Raise VolumeError if the stores are in use, or cannot be swapped where they lie."""
    for each in work.swaps:
        restore.refuse_place(work.settings, each)
    return dataclasses.replace(swap.unheld(work.swaps), name="clean.holders")


def _measured(settings: Settings, copy: Snapshot, words: Iterable[str]) -> dict[str, Waste]:
    """Measure on copies; raise CaptureError if a store is missing or cannot be read."""
    text = "; ".join(copy.problems.values())
    if not text:
        try:
            with join(copy, settings) as stores:
                return {word: WORDS[word].measure(stores) for word in words}
        except sqlite3.DatabaseError as error:
            text = str(error)
    raise CaptureError(f"not both stores can be read: {text}", "nescord-ops verify says more")


def _items(found: Mapping[str, Waste], chosen: Sequence[str]) -> Iterator[Item]:
    """Rows give back whole pages, where the databases are vacuumed; less is not promised."""
    for name, waste in found.items():
        word, gives = WORDS[name], 0
        if name in chosen and word.alone:
            gives = waste.held_bytes
        elif name in chosen and word.stores and "pages" in chosen:
            gives = waste.held_bytes // PAGE_BYTES * PAGE_BYTES
        facts = (waste.count, gives, GUIDE_PRICE.usd(gives), waste.examples)
        yield Item(name, word.many, *facts, chosen=name in chosen)


def _judged(items: Iterable[Item], found: Mapping[str, Waste], *, applied: bool) -> Iterator[Check]:
    """A check a word: what would go, or went."""
    for item in items:
        name, word = f"clean.{item.what}", WORDS[item.what]
        text = show.count(item.count, word.one, word.many)
        if item.examples:
            text += f", such as {', '.join(item.examples)}"
        if item.chosen and item.gives_bytes:
            usd = show.dollars(item.usd_per_month)
            text += f": {show.size(item.gives_bytes)}, {usd} a month"
        hint = f"with the bot stopped: nescord-ops clean {item.what} --apply"
        if item.what in rebuild.REQUEUED:
            hint += "; the bot must be able to embed the notes anew"
        waste = found[item.what]
        if waste.problem:
            yield (unknown if waste.unread else fail)(name, waste.problem, waste.hint)
        elif not item.count:
            yield ok(name, f"no {item.summary}", value=0, limit=0)
        elif item.chosen and applied:
            yield ok(name, f"{word.done} {text}", value=item.count)
        else:
            hint = hint if item.chosen else f"only if it is named; {hint}"
            yield warn(name, text, hint, value=item.count, limit=0)


def _perform(work: _Work, words: Sequence[str], found: Mapping[str, Waste]) -> None:
    """Take a backup, prove it, and do the work of the words."""
    for word in words:
        if found[word].problem:
            raise VolumeError(f"{found[word].problem}; {UNTOUCHED}", found[word].hint)
    strays = found["strays"].targets if "strays" in words else ()
    swap.unheld([each for path in strays for each in swap.plan({"database": path}, work.now)])
    work.backup_id = _proven_backup(work)
    with capture(work.settings, work.say) as copy:
        found = _measured(work.settings, copy, words)
        changed = {store for name in words if found[name].count for store in WORDS[name].stores}
        changed |= {*found["pages"].targets} if "pages" in found else set()
        if changed:
            _exchange(work, copy, found, [each for each in work.swaps if each.name in changed])
    for bot in proven_copies(found["backups"]) if "backups" in found else ():
        with scratch(0, bot.path.parent) as hidden:  # what a kill leaves of it is no backup
            bot.path.rename(hidden / bot.path.name)
        work.given_bytes += bot.allocated_bytes
    for path in strays:
        work.checks.append(_set_aside(path, work.now))


def _proven_backup(work: _Work) -> str:
    """Back both stores up and restore that to prove it; raise BackupError if it is not good."""
    made = backup.create(work.settings, drill=True, progress=work.say)
    if made.backup and made.backup.good and made.backup.proven_at:
        text = f"{made.backup.id} was taken before and proven; it takes "
        work.checks.append(ok("clean.backup", text + show.size(made.backup.added_bytes)))
        return made.backup.id
    bad = next((check for check in made.checks if check.status.exit_code), made.checks[-1])
    raise BackupError(f"no proven backup ({bad.name}: {bad.summary}); {UNTOUCHED}", bad.hint)


def _exchange(
    work: _Work, copy: Snapshot, found: Mapping[str, Waste], swaps: Sequence[Swap]
) -> None:
    """Swap repaired copies in, and put the old stores back if verify is worse for it."""
    size = _used(path for each in swaps for path in each.replaced.values())
    for parent in {each.live.parent for each in swaps}:
        restore.refuse_full(parent, size + size // 20 + MARGIN_BYTES)
    before = verify.run(work.settings, depth="quick").checks
    try:
        work.checks += rebuild.rebuild(work.settings, copy, found, swaps, work.say)
        _declare(work, swaps, f"clean-up after the backup {work.backup_id}")
    except BaseException as error:
        swap.abandon(swaps, work.settings.database.parent / swap.INTENT)
        if isinstance(error, OSError | sqlite3.Error | Moved):
            text = f"the copy cannot be written: {error}; {UNTOUCHED}"
            hint = "see that the volume and TMPDIR have room, and that the bot is stopped"
            raise VolumeError(text, hint) from error
        raise
    _finish(work, swaps)
    after = verify.run(work.settings, depth="quick").checks
    if worse := [*rebuild.regressions(before, after)]:
        why = "; ".join(worse)
        try:
            _put_back(work, swaps)
        except (OpsError, OSError, Moved) as error:
            old = " and ".join(dict.fromkeys(map(str, work.kept)))
            text = f"verify was worse: {why}. The old state could not be put back: {error}"
            hint = f"with the bot stopped and room made: nescord-ops restore {work.backup_id}"
            raise ChecksFailed(f"{text}; it lies in {old}", hint) from error
        text = f"verify was worse, and the old state was put back: {why}"
        raise ChecksFailed(text, f"nescord-ops verify; then {_removal(work.kept)}")
    work.given_bytes += size - _used(each.live for each in swaps)


def _declare(work: _Work, swaps: Sequence[Swap], purpose: str) -> None:
    """Look for the bot once more, and say on the volume what comes."""
    work.say("swapping")  # which may raise: not once the swap is declared
    swap.unheld(work.swaps)
    if _state(work.settings) != work.seen:
        raise VolumeError(f"the live data has changed meanwhile; {UNTOUCHED}", swap.STOP_HINT)
    swap.declare(work.settings, swaps, purpose)


def _finish(work: _Work, swaps: Sequence[Swap]) -> None:
    swap.finish(swaps, work.settings.database.parent / swap.INTENT)
    work.seen = _state(work.settings)
    work.kept += [each.kept for each in swaps]


def _put_back(work: _Work, done: Sequence[Swap]) -> None:
    """Swap copies of what was replaced in again; the kept originals stay."""
    swaps = swap.plan({each.name: each.live for each in done}, work.now)
    kept = [
        dataclasses.replace(new, live=old.kept / old.live.name)
        for new, old in zip(swaps, done, strict=True)
    ]
    try:
        rebuild.stage(kept)
        for each in kept:
            absorb_journal(each.staged)
        rebuild.settle(kept)
        _declare(work, swaps, "undoing of a clean-up")
    except BaseException:
        swap.abandon(swaps, work.settings.database.parent / swap.INTENT)
        raise
    _finish(work, swaps)


def _set_aside(path: Path, now: datetime) -> Check:
    """Move a stray database, and what lies beside it, into a directory of its own."""
    (stray,) = swap.plan({"database": path}, now)
    stray.kept.mkdir(mode=0o700)
    for file in stray.replaced.values():
        file.rename(stray.kept / file.name)
    text = f"{path} lies in {stray.kept} now; it is in no backup"
    return warn("clean.aside", text, "see which notes it holds before you remove it")


def _kept_promise(given: int, promised: int) -> Check:
    text = f"stores and backups take {show.size(given)} less, and {show.size(promised)} "
    details = {"value": given, "unit": "bytes"}
    if given < promised:
        hint = "nescord-ops capacity shows what takes the room"
        return warn("clean.given", f"{text}were promised", hint, **details)
    return ok("clean.given", f"{text}were promised", **details)


def _discard(work: _Work) -> None:
    for path in {*work.kept}:
        volume.remove_tree(path)
    work.kept.clear()
    work.checks.append(ok("clean.kept", "what was replaced was removed; the backup holds it"))


def _removal(kept: Iterable[Path]) -> str:
    paths = shlex.join(map(str, dict.fromkeys(kept)))
    return f"rm -r -- {paths}" if paths else ""


def _state(settings: Settings) -> Stats:
    files = (settings.database, settings.chroma_dir / chroma.DATABASE)
    suffixes = ("", "-wal", "-journal")  # readers touch the -shm
    return stats(settings, (database.beside(file, end) for file in files for end in suffixes))


def _used(paths: Iterable[Path]) -> int:
    return sum(volume.usage(path).allocated_bytes for path in paths)
