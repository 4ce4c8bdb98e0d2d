"""What Railway sells and for how much: data with a source and a date, never asked for online.

GB = 10^9 bytes. Used bytes are billed by the minute, the file system's own included.
"""

from __future__ import annotations

import dataclasses
import math

from nescord_ops.errors import SettingsError
from nescord_ops.results import Result

GB = 1_000_000_000
GIB_PER_GB = 1024**3 / GB
FILE_SYSTEM_RATIO = 0.03  # of the size, billed from day one: 2 to 3 % (docs.railway.com, volumes)


@dataclasses.dataclass(frozen=True, slots=True)
class Price(Result):
    """What a gigabyte costs a month, who says so, and since when (ISO 8601, or empty)."""

    usd_per_gb_month: float
    source: str
    date: str

    def usd(self, count: float) -> float:
        """Given bytes kept for a month, return US dollars."""
        return count / GB * self.usd_per_gb_month

    def __str__(self) -> str:
        when = f", {self.date}" if self.date else ""
        return f"${self.usd_per_gb_month:g} per GB-month ({self.source}{when})"


@dataclasses.dataclass(frozen=True, slots=True)
class Plan(Result):
    """A plan: its largest volume, its subscription, and the usage that is in it."""

    name: str
    volume_bytes: int
    usd_per_month: float
    included_usd: float

    def holds(self, used_bytes: float) -> bool:
        """Whether its largest volume holds that much beside the file system's own."""
        return used_bytes <= self.volume_bytes * (1 - FILE_SYSTEM_RATIO)


GUIDE_PRICE = Price(0.25, "NescordBot's deployment guide", "2025-09")
LIST_PRICE = Price(0.15, "Railway's price list, railway.com/pricing", "2025-03-03")
# docs.railway.com, August 2026: buckets, and what a service sends out of Railway's network
BUCKET_PRICE = Price(0.015, "Railway's documentation of buckets", "2026-08")
EGRESS_USD_PER_GB = 0.05
# docs.railway.com/reference/volumes and /pricing/understanding-your-bill, August 2026: the
# subscription is a minimum usage commitment, so $5 or $20 of usage are in it.
PLANS = (
    Plan("Free or Trial", GB // 2, 0.0, 0.0),
    Plan("Hobby", 5 * GB, 5.0, 5.0),
    Plan("Pro", 50 * GB, 20.0, 20.0),
)


def price(usd_per_gb_month: float) -> Price:
    """Given US dollars, return them as a price with its source.

    Raise SettingsError if it is not a positive, finite number.
    """
    number = isinstance(usd_per_gb_month, int | float) and not isinstance(usd_per_gb_month, bool)
    if not (number and math.isfinite(usd_per_gb_month) and usd_per_gb_month > 0):
        raise SettingsError(
            f"usd_per_gb_month is {usd_per_gb_month!r}, not a positive number",
            f"use {GUIDE_PRICE.usd_per_gb_month:g}, the guide's, or "
            f"{LIST_PRICE.usd_per_gb_month:g}, Railway's list price",
        )
    known = {known.usd_per_gb_month: known for known in (GUIDE_PRICE, LIST_PRICE)}
    return known.get(usd_per_gb_month) or Price(float(usd_per_gb_month), "given for this run", "")


def fitting(used_bytes: float, size_bytes: int = 0) -> Plan:
    """Given used bytes and the volume's size (which cannot shrink), return the smallest plan.

    A volume of 5 GB may show as 5 GiB. The largest plan is returned if none is large enough.
    """
    size = size_bytes / GIB_PER_GB
    found = (plan for plan in PLANS if plan.holds(used_bytes) and plan.volume_bytes >= size)
    return next(found, PLANS[-1])
