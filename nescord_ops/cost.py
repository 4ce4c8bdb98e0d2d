"""What the volume costs a month: now, in a year, with more backups, and at which price.

The bill is used bytes and the file system's own, times a price; a GB is 10^9 bytes, a month one
twelfth of a year. See `prices` for what Railway sells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from nescord_ops import capacity as capacities
from nescord_ops import inventory, prices, show
from nescord_ops.capacity import Capacity
from nescord_ops.checks import Check, Findings, fail, ok, unknown, warn
from nescord_ops.errors import BackupError
from nescord_ops.figures import Table
from nescord_ops.footprint import LABELS
from nescord_ops.prices import (
    BUCKET_PRICE,
    EGRESS_USD_PER_GB,
    FILE_SYSTEM_RATIO,
    GB,
    GUIDE_PRICE,
    LIST_PRICE,
    PLANS,
    Plan,
    Price,
)
from nescord_ops.results import Result
from nescord_ops.settings import Depth, Settings

MONTHS = 12
MONTH_DAYS = 365.25 / 12
COPIES = range(1, 11)
TIERS = ((1, 1), (2, 3), (5, 10))  # the guide's: GB of the database, GB of Chroma
DATA = tuple(name for name in LABELS if name.startswith(("database", "chroma")))


@dataclasses.dataclass(frozen=True, slots=True)
class Line(Result):
    """One line of the bill."""

    label: str
    allocated_bytes: int
    usd: float
    list_usd: float


@dataclasses.dataclass(frozen=True, slots=True)
class Tier(Result):
    """One of the guide's examples: sizes in GB of 10^9 bytes, and what they come to a month."""

    database_gb: int
    chroma_gb: int
    usd: float
    list_usd: float


@dataclasses.dataclass(frozen=True, slots=True)
class Month(Result):
    """The bill so many months from now; `low_usd` to `high_usd` holds 8 cases of 10."""

    month: int
    at: datetime
    billed_bytes: int
    usd: float
    low_usd: float
    high_usd: float
    list_usd: float


@dataclasses.dataclass(frozen=True, slots=True)
class PlainCopies(Result):
    """So many whole copies kept on the volume: what they add, and whether they fit (or None)."""

    count: int
    allocated_bytes: int
    usd: float
    list_usd: float
    fits: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Cost(Findings):
    """What cost found: US dollars a month; `list_…` is the same at Railway's list price.

    `gb_bytes` says what a GB is. `overhead_bytes` is the file system's share, None where the size
    of the volume is not known. `extra_usd` is the bill beyond what `plan` includes, if nothing
    else used that up. `projection` is empty where `growth_unknown` says why.
    """

    name = "cost"

    settings: Settings
    checks: tuple[Check, ...]
    depth: Depth
    gb_bytes: int
    price: Price
    list_price: Price
    used_bytes: int
    billed_bytes: int
    overhead_bytes: int | None
    usd_per_month: float
    list_usd_per_month: float
    lines: tuple[Line, ...]
    plan: Plan
    extra_usd: float
    tiers: tuple[Tier, ...]
    projection: tuple[Month, ...]
    growth_unknown: str
    plain_copies: tuple[PlainCopies, ...]
    reclaimable_bytes: int
    reclaimable_usd: float

    def lines_table(self) -> Table:
        """The bill: one row a component, the file system's share, and the total."""
        rows = [
            (line.label, show.amount(line.allocated_bytes, "bytes"), *_both(line))
            for line in self.lines
        ]
        total = show.amount(self.billed_bytes, "bytes")
        usd, list_usd = self.usd_per_month, self.list_usd_per_month
        rows.append(("Total", total, show.amount(usd, "USD"), show.amount(list_usd, "USD")))
        return Table(
            ("What", "Bytes", *self._prices()), rows, "US dollars a month, GB = 10^9 bytes"
        )

    def tiers_table(self) -> Table:
        """The guide's three tiers at both prices."""
        rows = [
            (*(show.amount(gb * GB, "bytes") for gb in (t.database_gb, t.chroma_gb)), *_both(t))
            for t in self.tiers
        ]
        return Table(("Database", "Chroma", *self._prices()), rows, "US dollars a month")

    def plans_table(self) -> Table:
        """Railway's plans: volume limit, subscription, included usage, and which one fits."""
        rows = [
            (
                plan.name,
                show.amount(plan.volume_bytes, "bytes"),
                show.amount(plan.usd_per_month, "USD"),
                show.amount(plan.included_usd, "USD"),
                "fits" if plan.holds(self.used_bytes) else "too small",
            )
            for plan in PLANS
        ]
        return Table(
            ("Plan", "Volume up to", "Subscription", "Included usage", "What is used"), rows
        )

    def projection_table(self) -> Table:
        """The bill every third month of the coming year."""
        rows = [
            (
                f"{month.at:%Y-%m-%d}",
                show.amount(month.billed_bytes, "bytes"),
                *_both(month),
                f"{show.dollars(month.low_usd)} to {show.dollars(month.high_usd)}",
            )
            for month in self.projection[::3]
        ]
        return Table(("On", "Bytes", *self._prices(), "8 cases of 10"), rows)

    def plain_copies_table(self) -> Table:
        """What keeping one to ten backups as plain copies adds to the bill."""
        words = {True: "yes", False: "no", None: "unknown"}
        rows = [
            (
                copies.count,
                show.amount(copies.allocated_bytes, "bytes"),
                *_both(copies),
                words[copies.fits],
            )
            for copies in self.plain_copies
        ]
        return Table(("Copies", "Bytes", *self._prices(), "Fits the volume"), rows)

    def _prices(self) -> tuple[str, str]:
        given, listed = self.price.usd_per_gb_month, self.list_price.usd_per_gb_month
        return f"At ${given:g} per GB", f"At list price, ${listed:g}"


def run(
    settings: Settings,
    *,
    usd_per_gb_month: float = GUIDE_PRICE.usd_per_gb_month,
    depth: str = "full",
    measured: Capacity | None = None,
    now: datetime | None = None,
    progress: Callable[[str], None] | None = None,
) -> Cost:
    """Given settings and a price, return the bill now, in a year, and with more backups.

    Measures with `capacity.run` unless given `measured`; the projection needs full depth. Raise
    SettingsError if the price is not a positive, finite number.
    """
    price = prices.price(usd_per_gb_month)
    found = measured or capacities.run(settings, depth=depth, now=now, progress=progress)
    now = now or found.measured_at
    billed = found.used_bytes + (found.overhead_bytes or 0)
    plan = prices.fitting(found.used_bytes, found.size_bytes or 0)
    usd = price.usd(billed)
    cost = Cost(
        settings=settings,
        checks=(),
        depth=found.depth,
        gb_bytes=GB,
        price=price,
        list_price=LIST_PRICE,
        used_bytes=found.used_bytes,
        billed_bytes=billed,
        overhead_bytes=found.overhead_bytes,
        usd_per_month=usd,
        list_usd_per_month=LIST_PRICE.usd(billed),
        lines=tuple(_lines(found, price)),
        plan=plan,
        extra_usd=max(0.0, usd - plan.included_usd),
        tiers=tuple(
            Tier(a, b, price.usd((a + b) * GB), LIST_PRICE.usd((a + b) * GB)) for a, b in TIERS
        ),
        projection=tuple(_projection(found, billed, price, now)),
        growth_unknown=found.growth_unknown,
        plain_copies=tuple(_plain_copies(found, price)),
        reclaimable_bytes=found.reclaimable_bytes,
        reclaimable_usd=price.usd(found.reclaimable_bytes),
    )
    return dataclasses.replace(cost, checks=(*_checks(cost, found), *_generations(settings, price)))


def _lines(found: Capacity, price: Price) -> Iterator[Line]:
    """What is billed: the components on the volume, what no file explains, the file system."""
    parts = [(c.label, c.allocated_bytes) for c in found.components if c.on_volume]
    unseen = found.used_bytes - sum(count for _, count in parts)
    if unseen:
        parts.append(("Difference to what the file system says", unseen))
    if found.overhead_bytes is not None:
        label = f"The file system's own ({FILE_SYSTEM_RATIO:.0%} of the size)"
        parts.append((label, found.overhead_bytes))
    for label, count in parts:
        yield Line(label, count, price.usd(count), LIST_PRICE.usd(count))


def _projection(found: Capacity, billed: int, price: Price, now: datetime) -> Iterator[Month]:
    """The bill of today and of the next twelve months, as if the volume were grown in time."""
    if found.growth is None:
        return
    for month in range(MONTHS + 1):
        days = month * MONTH_DAYS
        low, likely, high = (billed + added for added in found.growth.expected(days))
        yield Month(
            month=month,
            at=now.astimezone(UTC) + timedelta(days=days),
            billed_bytes=round(likely),
            usd=price.usd(likely),
            low_usd=price.usd(low),
            high_usd=price.usd(high),
            list_usd=LIST_PRICE.usd(likely),
        )


def _plain_copies(found: Capacity, price: Price) -> Iterator[PlainCopies]:
    """Copies of both stores as the bot makes them: holes in sparse files are filled.

    They fit if they do in place of the backups that are there now.
    """
    data = [c for c in found.components if c.name in DATA]
    one = sum(max(c.apparent_bytes, c.allocated_bytes) for c in data)
    room = None
    if found.free_bytes is not None:
        room = found.free_bytes + found.bytes_of("bot_backups", "our_backups")
    for count in COPIES:
        size = count * one
        fits = None if room is None else size <= room
        yield PlainCopies(count, size, price.usd(size), LIST_PRICE.usd(size), fits)


def _checks(cost: Cost, found: Capacity) -> Iterator[Check]:
    yield _price_check(cost)
    yield _now_check(cost, found)
    yield _plan_check(cost, found)
    yield _projection_check(cost, found)
    text = f"{show.size(cost.reclaimable_bytes)} that could be given back cost "
    text += f"{show.dollars(cost.reclaimable_usd)} a month"
    yield ok("cost.reclaimable", text, value=cost.reclaimable_usd, unit="USD")


def _price_check(cost: Cost) -> Check:
    """Which price this is, from whom and of when, beside the list price."""
    price, listed = cost.price, cost.list_price
    text = str(price) if price == listed else f"{price}; list price {listed}"
    return ok("cost.price", text, value=price.usd_per_gb_month, unit="USD")


def _now_check(cost: Cost, found: Capacity) -> Check:
    """The bill of today; a lower bound is no bill."""
    text = f"{show.dollars(cost.usd_per_month)} a month for {show.size(cost.billed_bytes)}"
    text += f", {show.dollars(cost.list_usd_per_month)} at list price"
    details = {"value": cost.usd_per_month, "unit": "USD"}
    if found.unread_entries or not found.complete:
        hint = "run it as the bot's user or root; nescord-ops capacity says what was not counted"
        return unknown("cost.now", f"at least {text}: not all was counted", hint, **details)
    if not found.used_bytes:
        hint = "check DATABASE_URL; nescord-ops verify says where the bot writes"
        return fail("cost.now", "there is nothing on the volume to pay for", hint, **details)
    if cost.overhead_bytes is None:
        text += "; without the file system's own, as the volume's size is not known"
    return ok("cost.now", text, **details)


def _plan_check(cost: Cost, found: Capacity) -> Check:
    """Which plan holds the volume, today and at the end of the projection."""
    plan = cost.plan
    details = {"value": cost.used_bytes, "unit": "bytes", "limit": plan.volume_bytes}
    if not plan.holds(cost.used_bytes):
        text = f"{show.size(cost.used_bytes)} exceed the {plan.name} plan's volume"
        return warn("cost.plan", text, "Pro volumes can be grown to 1 TB: ask Railway", **details)
    text = f"fits the {plan.name} plan's {show.size(plan.volume_bytes)}"
    text += f" ({show.dollars(plan.usd_per_month)} a month"
    if cost.extra_usd:
        text += f", and {show.dollars(cost.extra_usd)} beyond the included usage)"
    else:
        text += ", which covers the volume unless CPU and memory use it up)"
    later = cost.used_bytes
    if cost.projection:
        later += cost.projection[-1].billed_bytes - cost.billed_bytes
    if not plan.holds(later):
        hint = "look at the next plan, or give back what nescord-ops capacity lists"
        text += f"; in twelve months {show.size(later)} will not fit"
        return warn("cost.plan", text, hint, **details)
    if found.size_bytes is None:
        text += "; judged by what is used, as the volume's size is not known"
    return ok("cost.plan", text, **details)


def _projection_check(cost: Cost, found: Capacity) -> Check:
    """The bill in twelve months; as unknown as the growth is."""
    if not cost.projection:
        reason = next(check for check in found.checks if check.name == "capacity.growth")
        text = f"no projection: {cost.growth_unknown}"
        return unknown("cost.projection", text, reason.hint, expected=reason.expected)
    last = cost.projection[-1]
    text = f"{show.dollars(last.usd)} a month in twelve months, between "
    text += f"{show.dollars(last.low_usd)} and {show.dollars(last.high_usd)} in 8 of 10 cases"
    return ok("cost.projection", text, value=last.usd, unit="USD")


def _generations(settings: Settings, price: Price) -> Iterator[Check]:
    """What our own backups cost as they lie here, beside plain copies of the same."""
    try:
        kept = inventory.listing(settings, looking=True)
    except BackupError:  # verify says what is wrong with the directory
        return
    if kept.generations:
        usd = price.usd(kept.store_bytes)
        text = f"{show.count(len(kept.generations), 'generation')} cost {show.dollars(usd)} a "
        text += "month here "
        text += f"({show.size(kept.store_bytes)}), as plain copies "
        text += f"{show.dollars(price.usd(kept.plain_bytes))} ({show.size(kept.plain_bytes)})"
        yield ok("cost.generations", text, value=usd, unit="USD")
        yield _offsite(kept.generations)


def _offsite(generations: tuple[inventory.Backup, ...]) -> Check:
    """What the known off-site copies cost in a bucket, else what one would at the most."""
    sizes = [
        b.evidence["offsite"]["stream_bytes"] for b in generations if b.evidence.get("offsite")
    ]
    text = show.count(len(sizes), "known copy", "known copies") + " off site"
    if not sizes:
        sizes = [generations[0].size_bytes]
        text = "a copy off site, before compression,"
    usd, push = BUCKET_PRICE.usd(sum(sizes)), sizes[0] / GB * EGRESS_USD_PER_GB
    text += f" would cost {show.dollars(usd)} a month in a bucket at {BUCKET_PRICE}; a push takes "
    text += f"{show.dollars(push)} of egress at ${EGRESS_USD_PER_GB:g} per GB"
    return ok("cost.offsite", text, value=usd, unit="USD")


def _both(item: Line | Tier | Month | PlainCopies) -> tuple[show.Amount, show.Amount]:
    """The two price columns of a row."""
    return show.amount(item.usd, "USD"), show.amount(item.list_usd, "USD")
