"""Is there a good backup, young enough, proven, and also elsewhere than on the volume?

The checks `backups.*` and `offsite.*` of verify. Of off-site copies they say what the last push or
check wrote beside the generation: verify never asks the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nescord_ops import show, volume
from nescord_ops.checks import Check, Status, fail, none_of, ok, unknown, warn
from nescord_ops.errors import BackupError
from nescord_ops.inventory import Backup, Backups, listing
from nescord_ops.results import Result
from nescord_ops.settings import Settings, masked

AGE_WARN_DAYS, AGE_FAIL_DAYS = 7, 30
DRILL_WARN_DAYS = 30  # also of a copy off site
_DRILL_LIMIT = timedelta(minutes=30)
CREATE_HINT = "nescord-ops backup create --drill"


@dataclasses.dataclass(frozen=True, slots=True)
class Standing(Result):
    """How the backups stand: how many of `kept` generations are good, and the newest of each kind.

    The times are those at which the data was copied, None where there is no such backup; an
    off-site copy counts as far as is known here. `store_bytes` is what the store takes.
    """

    good: int
    kept: int
    proven_id: str
    proven_taken_at: datetime | None
    offsite_taken_at: datetime | None
    store_bytes: int


def standing(settings: Settings) -> Standing | None:
    """Return how the backups stand, None where they could not be looked at."""
    try:
        found = listing(settings, looking=True)
    except BackupError:
        return None
    if found.problem:
        return None
    proven, ours = found.newest_proven, found.generations
    copied = _copied(settings, ours)
    return Standing(
        good=len(found.good),
        kept=len(ours),
        proven_id=proven.id if proven else "",
        proven_taken_at=proven.taken_at if proven else None,
        offsite_taken_at=copied[0].taken_at if copied else None,
        store_bytes=found.store_bytes,
    )


def health(settings: Settings, now: datetime) -> Iterator[Check]:
    """The checks `backups.*` and `offsite.*` of verify."""
    try:
        found = listing(settings, looking=True)
    except BackupError as error:
        yield unknown("backups.age", f"{error}", error.hint)
        return
    if found.problem:
        judged = unknown if found.unread else fail
        details = {"expected": True} if found.busy else {}
        yield judged("backups.age", found.problem, found.hint, **details)
        return
    ours = found.generations
    yield _age(settings, found, now)
    if ours:
        yield _damage(ours)
        yield _count(found)
        yield _drilled(found.good, now)
        yield _place(settings, ours)
        if settings.offsite_url or any(backup.evidence.get("offsite") for backup in ours):
            yield _offsite_age(settings, ours, now)
            yield _offsite_checked(settings, ours, now)


def _age(settings: Settings, found: Backups, now: datetime) -> Check:
    """The age of the newest good backup; where there are none of ours, of the bot's newest."""
    backups, ours = found.backups, found.generations
    if not backups:
        text = f"no backup of any kind in {settings.backup_dir}"
        return fail("backups.age", text, CREATE_HINT, unit="days", limit=AGE_FAIL_DAYS)
    whole = found.good or [b for b in backups if not (ours or b.fault)]
    newest = (whole or ours or backups)[0]
    days = _days(newest.taken_at, now)
    text = (
        f"the newest backup{' of both stores' if whole else ''} is {show.span(days * 86_400)} old"
    )
    details = {"value": round(days, 4), "unit": "days", "limit": AGE_FAIL_DAYS}
    if not whole:
        text += f" and is not good: {newest.id} {newest.fault}"
        return fail("backups.age", text, CREATE_HINT, **details)
    text += f" ({newest.known})"
    if days > AGE_FAIL_DAYS:
        return fail("backups.age", text, CREATE_HINT, **details)
    if days > AGE_WARN_DAYS:
        return warn("backups.age", text, CREATE_HINT, **details)
    return ok("backups.age", text, **details)


def _damage(ours: tuple[Backup, ...]) -> Check:
    bad = [backup for backup in ours if backup.status is Status.FAIL]
    return none_of(
        "backups.damage",
        len(bad),
        "generations",
        good=f"nothing is known against any of {show.count(len(ours), 'generation')}",
        bad=f"of {show.count(len(ours), 'generation')} {'does' if len(bad) == 1 else 'do'} not "
        f"count: {bad[0].id if bad else ''} {bad[0].fault if bad else ''}",
        hint="nescord-ops backup check; good generations are not touched by the damage of others",
    )


def _count(found: Backups) -> Check:
    """How many good generations there are, against the `--keep` of the newest."""
    good, wanted = len(found.good), found.generations[0].evidence.get("keep")
    details = {"value": good, "unit": "generations", "limit": wanted}
    text = show.count(good, "good generation") + (
        f", to keep {wanted}" if wanted else ", none pruned"
    )
    if wanted and good > wanted + 1:
        hint = f"nescord-ops backup prune --keep {wanted}; see why the last one did not"
        return warn("backups.count", text, hint, **details)
    return ok("backups.count", text, **details)


def _drilled(good: tuple[Backup, ...], now: datetime) -> Check:
    """When a good generation was last restored to prove it."""
    proven = max(filter(None, (backup.proven_at for backup in good)), default=None)
    hint = f"nescord-ops backup drill {good[0].id}" if good else CREATE_HINT
    if proven is None and good and _is_in_drill(good[0], now):
        text = "the newest backup was just taken, and is being restored to prove it"
        return unknown("backups.drill", text, expected=True)
    if proven is None:
        return warn("backups.drill", "no good generation was ever restored to prove it", hint)
    days = _days(proven, now)
    text = f"a good generation was restored and proven {show.age(days * 86_400)}"
    return _due("backups.drill", text, hint, days, DRILL_WARN_DAYS)


def _days(then: datetime, now: datetime) -> float:
    """How many days ago something was; a clock that went back makes it now."""
    return max(0.0, (now - then).total_seconds() / 86_400)


def _due(name: str, text: str, hint: str, days: float, limit: int) -> Check:
    """Given what was so many days ago, judge it: more than `limit` warns."""
    details = {"value": round(days, 2), "unit": "days", "limit": limit}
    return warn(name, text, hint, **details) if days > limit else ok(name, text, **details)


def _is_in_drill(backup: Backup, now: datetime) -> bool:
    """Whether `backup create --drill` is still at work on it, as far as can be told."""
    began, known = now - backup.taken_at, backup.evidence
    return bool(known.get("drill")) and not known.get("drilled") and began < _DRILL_LIMIT


def _place(settings: Settings, ours: tuple[Backup, ...]) -> Check:
    """Whether the store lies where the loss of the volume would take it too, and all copies."""
    if settings.volume_mount is None:
        why = "not on Railway (RAILWAY_VOLUME_MOUNT_PATH is not set): no volume to lose"
        return unknown("backups.place", why, expected=True)
    lies, hint = volume.mount_of(settings.backup_dir), _push_hint(ours)
    text, loss = f"{settings.backup_dir} is on the volume that it protects", "with it"
    if lies and lies != volume.mount_of(settings.volume_mount):
        if lies.path != Path("/"):
            return ok("backups.place", f"{settings.backup_dir} is not on the volume")
        text, loss = f"{settings.backup_dir} is in the container itself", "at the next deploy"
        hint = f"set NESCORD_OPS_BACKUP_DIR={settings.volume_mount}/backups, or {hint}"
    if _copied(settings, ours):
        return ok("backups.place", f"{text}; there are copies off site")
    hint += "; README has the keys and the place"
    return warn("backups.place", f"{text}, and is lost {loss}", hint)


def _copy(settings: Settings, backup: Backup) -> dict[str, Any]:
    """What is known of a generation's copy off site, if it is at the place of the settings."""
    facts: dict[str, Any] = backup.evidence.get("offsite") or {}
    return facts if masked(settings.offsite_url) in ("", facts.get("url")) else {}


def _copied(settings: Settings, ours: tuple[Backup, ...]) -> tuple[Backup, ...]:
    """The good generations whose copy off site is good as far as is known."""
    return tuple(b for b in ours if b.good and _copy(settings, b).get("fault") == "")


def _push_hint(ours: tuple[Backup, ...]) -> str:
    newest = next((backup.id for backup in ours if backup.good), "")
    return f"nescord-ops offsite push {newest}" if newest else CREATE_HINT


def _offsite_age(settings: Settings, ours: tuple[Backup, ...], now: datetime) -> Check:
    """How old the newest data is that would survive the volume."""
    safe = _copied(settings, ours)
    if not safe:
        text = "no good generation is known to have a good copy off site"
        return warn("offsite.age", text, _push_hint(ours), unit="days", limit=AGE_WARN_DAYS)
    days, url = _days(safe[0].taken_at, now), safe[0].evidence["offsite"]["url"]
    old = show.span(days * 86_400)
    text = f"the newest copy off site is {old} old: {safe[0].id} at {url}"
    return _due("offsite.age", text, _push_hint(ours), days, AGE_WARN_DAYS)


def _offsite_checked(settings: Settings, ours: tuple[Backup, ...], now: datetime) -> Check:
    """When a copy off site was last read back, and whether one was found damaged."""
    facts = [(b.id, seen) for b in ours if (seen := _copy(settings, b))]
    for identity, seen in facts:
        if seen["fault"]:
            hint = f"push it again, which replaces it: nescord-ops offsite push {identity}"
            text = f"a copy off site is damaged: {identity}: {seen['fault']}"
            return warn("offsite.checked", text, hint)
    dates = [seen["checked_at"] for _, seen in facts if seen["checked_at"]]
    hint = f"nescord-ops offsite check {facts[0][0]}" if facts else _push_hint(ours)
    if not dates:
        return warn("offsite.checked", "no copy off site was ever read back", hint)
    days = _days(datetime.fromisoformat(max(dates)), now)
    text = f"a copy off site was read back and found whole {show.age(days * 86_400)}"
    return _due("offsite.checked", text, hint, days, DRILL_WARN_DAYS)
