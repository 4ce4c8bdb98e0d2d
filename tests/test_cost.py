"""The bill adds up, at the guide's price and at Railway's, and figures say it in words as well."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import MakeDemo
from hypothesis import given
from hypothesis import strategies as st

from nescord_ops import capacity, cost, figures, prices, show
from nescord_ops.capacity import Capacity
from nescord_ops.checks import Check, Status
from nescord_ops.cost import Cost
from nescord_ops.demo import Demo
from nescord_ops.errors import SettingsError
from nescord_ops.figures import Figure
from nescord_ops.footprint import Component
from nescord_ops.growth import Growth
from nescord_ops.settings import load

GB = 1_000_000_000
NOW = datetime(2026, 8, 1, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def measured(base_demo: Demo) -> Capacity:
    return capacity.run(load(app_dir=base_demo.app_dir))


@pytest.fixture(scope="module")
def round_numbers(measured: Capacity) -> Capacity:
    """A volume of 5 GB: 1 GB of notes, 1 GB of Chroma, a backup of 1 GB, 10 MB more a day."""
    parts = (
        Component("database", "Notes database", GB, GB, 1, True),
        Component("chroma_vectors", "Chroma: vector index", GB, GB, 4, True),
        Component("bot_backups", "The bot's own backups", GB, GB, 6, True),
        Component("logs", "Logs", GB, GB, 1, False),
    )
    pace = Growth("notes", NOW, 90, 10_000_000, 0.0, ((NOW, 3.0 * GB),))
    return dataclasses.replace(
        measured,
        measured_at=NOW,
        size_bytes=5 * GB,
        overhead_bytes=150_000_000,
        used_bytes=3 * GB,
        free_bytes=1_850_000_000,
        components=parts,
        reclaimable_bytes=GB // 2,
        growth=pace,
    )


def bill(found: Capacity, price: float = 0.25) -> Cost:
    return cost.run(found.settings, usd_per_gb_month=price, measured=found)


def check(result: Cost, name: str) -> Check:
    (found,) = [c for c in result.checks if c.name == f"cost.{name}"]
    return found


def test_the_guides_tiers_come_to_what_the_guide_says(measured: Capacity) -> None:
    tiers = bill(measured).tiers
    assert [(t.database_gb, t.chroma_gb) for t in tiers] == [(1, 1), (2, 3), (5, 10)]
    assert [t.usd for t in tiers] == [0.50, 1.25, 3.75]
    assert [t.list_usd for t in tiers] == pytest.approx([0.30, 0.75, 2.25])


def test_prices_carry_their_source_and_date(measured: Capacity) -> None:
    found = bill(measured)
    assert (found.price.usd_per_gb_month, found.list_price.usd_per_gb_month) == (0.25, 0.15)
    assert "guide" in found.price.source
    assert found.list_price.date == "2025-03-03"
    said = check(found, "price").summary
    assert all(word in said for word in ("$0.25", "guide", "$0.15", "Railway", "2025-03-03"))
    assert "given for this run" in check(bill(measured, 0.4), "price").summary
    assert check(bill(measured, 0.15), "price").summary.count("$0.15") == 1


@pytest.mark.parametrize("price", [0, -0.25, math.inf, math.nan, True, "0.25", None])
def test_a_price_that_is_none_is_refused(measured: Capacity, price: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        bill(measured, price)
    assert "0.25" in caught.value.hint


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.floats(1e-6, 1e3))
def test_a_price_is_linear(one: int, other: int, usd: float) -> None:
    price = prices.price(usd)
    assert price.usd(one + other) == pytest.approx(price.usd(one) + price.usd(other))
    assert prices.price(2 * usd).usd(one) == pytest.approx(2 * price.usd(one))
    assert price.usd(GB) == pytest.approx(usd)


def test_the_bill_is_the_sum_of_its_lines(measured: Capacity, round_numbers: Capacity) -> None:
    for found in (bill(measured), bill(round_numbers, 0.3)):
        assert sum(line.allocated_bytes for line in found.lines) == found.billed_bytes
        assert sum(line.usd for line in found.lines) == pytest.approx(found.usd_per_month)
        assert sum(line.list_usd for line in found.lines) == pytest.approx(found.list_usd_per_month)


def test_a_bill_by_hand(round_numbers: Capacity) -> None:
    found = bill(round_numbers)
    assert found.gb_bytes == GB
    # 3 GB used, and 3 % of 5 GB for the file system; the logs are not on the volume.
    assert found.billed_bytes == 3_150_000_000
    assert found.usd_per_month == pytest.approx(0.7875)
    assert found.list_usd_per_month == pytest.approx(0.4725)
    assert found.reclaimable_usd == pytest.approx(0.125)
    assert (found.plan.name, found.extra_usd) == ("Hobby", 0)
    assert [line.label for line in found.lines] == [
        *("Notes database", "Chroma: vector index", "The bot's own backups"),
        "The file system's own (3% of the size)",
    ]


def test_what_no_file_explains_has_a_line(round_numbers: Capacity) -> None:
    more = dataclasses.replace(round_numbers, used_bytes=4 * GB)
    found = bill(more)
    assert "Difference to what the file system says" in [line.label for line in found.lines]
    assert sum(line.usd for line in found.lines) == pytest.approx(found.usd_per_month)


def test_a_year_ahead_by_hand(round_numbers: Capacity) -> None:
    found = bill(round_numbers)
    assert [month.month for month in found.projection] == list(range(13))
    first, last = found.projection[0], found.projection[-1]
    assert (first.usd, first.at) == (found.usd_per_month, NOW)
    assert last.at == NOW + timedelta(days=365.25)
    assert last.billed_bytes == 3_150_000_000 + 3_652_500_000
    assert last.usd == last.low_usd == last.high_usd == pytest.approx(1.700625)
    assert last.list_usd == pytest.approx(1.020375)


def test_the_band_of_the_year_opens(measured: Capacity) -> None:
    year = bill(measured).projection
    widths = [month.high_usd - month.low_usd for month in year]
    assert widths == sorted(widths)
    assert all(month.low_usd <= month.usd <= month.high_usd for month in year)


def test_outgrowing_the_plan_within_a_year_warns(round_numbers: Capacity) -> None:
    found = check(bill(round_numbers), "plan")
    assert found.status is Status.WARN
    assert "6.65 GB" in found.summary
    slow = dataclasses.replace(round_numbers, growth=None, growth_unknown="no note was written")
    assert check(bill(slow), "plan").status is Status.OK


@pytest.mark.parametrize(
    ("used", "size", "plan"),
    [
        (0, 0, "Free or Trial"),
        (485_000_000, 0, "Free or Trial"),
        (485_000_001, 0, "Hobby"),
        (1, 5 * 1024**3, "Hobby"),
        (1, 6 * GB, "Pro"),
        (900 * GB, 0, "Pro"),
    ],
)
def test_the_smallest_plan_that_holds_it_fits(used: int, size: int, plan: str) -> None:
    assert prices.fitting(used, size).name == plan


def test_more_than_any_plan_warns(round_numbers: Capacity) -> None:
    huge = dataclasses.replace(round_numbers, used_bytes=60 * GB, size_bytes=100 * GB)
    assert check(bill(huge), "plan").status is Status.WARN


def test_usage_beyond_what_the_plan_includes_is_said(round_numbers: Capacity) -> None:
    found = bill(round_numbers, 2.0)
    assert found.extra_usd == pytest.approx(1.30)
    assert "$1.30 beyond" in check(found, "plan").summary


def test_plain_copies_by_hand(round_numbers: Capacity) -> None:
    copies = bill(round_numbers).plain_copies
    assert [c.count for c in copies] == list(range(1, 11))
    # Both stores are 2 GB; 1.85 GB are free, and 1 GB more without the backup that is there.
    assert [c.usd for c in copies] == pytest.approx([0.5 * n for n in range(1, 11)])
    assert [c.fits for c in copies] == [True] + [False] * 9
    unsized = dataclasses.replace(round_numbers, free_bytes=None)
    assert {c.fits for c in bill(unsized).plain_copies} == {None}


def test_plain_copies_fill_the_holes_of_sparse_files(demo: MakeDemo) -> None:
    made = demo("sparse-bloat")
    found = cost.run(load(app_dir=made.app_dir), depth="quick")
    assert found.plain_copies[0].allocated_bytes > 4 * GB
    assert found.plain_copies[1].fits is False
    assert found.used_bytes < 200_000_000


def test_the_healthy_volume_has_nothing_to_see_to(base_demo: Demo) -> None:
    full = cost.run(load(app_dir=base_demo.app_dir))
    assert {c.status for c in full.checks} == {Status.OK}
    quick = cost.run(load(app_dir=base_demo.app_dir), depth="quick")
    assert quick.status is Status.OK
    assert check(quick, "projection").expected
    assert quick.projection == ()


def test_an_unfinished_count_is_no_bill(measured: Capacity) -> None:
    for change in ({"unread_entries": 3}, {"complete": False}):
        found = check(bill(dataclasses.replace(measured, **change)), "now")
        assert found.status is Status.UNKNOWN
        assert "at least" in found.summary


def test_without_a_size_the_overhead_is_said_to_be_missing(base_demo: Demo) -> None:
    settings = dataclasses.replace(load(app_dir=base_demo.app_dir), volume_gb=None)
    found = cost.run(settings, depth="quick")
    assert found.overhead_bytes is None
    assert found.billed_bytes == found.used_bytes
    assert "without the file system's own" in check(found, "now").summary
    assert found.plan.name == "Free or Trial"


def test_no_data_is_no_bill(demo: MakeDemo) -> None:
    made = demo()
    settings = load(app_dir=made.app_dir)
    made.data_dir.rename(made.app_dir / "elsewhere")
    found = cost.run(settings)
    assert check(found, "now").status is Status.FAIL
    assert found.status is Status.FAIL


def test_tables_show_both_prices(round_numbers: Capacity) -> None:
    found = bill(round_numbers)
    for table in (found.lines_table(), found.tiers_table(), found.plain_copies_table()):
        page = table._repr_mimebundle_()
        assert "At $0.25 per GB" in page["text/html"]
        assert "At list price, $0.15" in page["text/plain"]
    assert "10^9" in found.lines_table().caption
    assert "$0.79" in found.lines_table()._repr_mimebundle_()["text/plain"]
    assert "6.8 GB" in found.projection_table()._repr_mimebundle_()["text/plain"]
    assert "too small" in found.plans_table()._repr_mimebundle_()["text/plain"]


def test_the_json_is_plain(measured: Capacity) -> None:
    data = bill(measured).to_dict()["data"]
    assert data["list_price"]["date"] == "2025-03-03"
    assert data["gb_bytes"] == GB
    assert data["projection"][12]["month"] == 12


# Figures

DRAWN: dict[str, Callable[[Capacity], Figure]] = {
    "volume": figures.volume,
    "growth": figures.growth,
    "projection": lambda found: figures.projection(bill(found)),
    "backups": lambda found: figures.backups(bill(found)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_a_small_svg_with_a_text_alternative(
    name: str, measured: Capacity, round_numbers: Capacity
) -> None:
    still = dataclasses.replace(measured, growth=None, growth_unknown="no <b>notes</b> & none")
    for found in (measured, round_numbers, still):
        shown, metadata = DRAWN[name](found)._repr_mimebundle_()
        svg = shown["image/svg+xml"]
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
        assert root.findtext(f"{SVG}desc") == shown["text/plain"]
        assert show.printable(metadata["alt"]) == shown["text/plain"]
        assert len(svg) < 15_000
        assert "currentColor" not in svg
        assert not [word for word in ("<script", "<!--", "<metadata", "url(http") if word in svg]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_the_same_bytes_every_time(name: str, measured: Capacity) -> None:
    assert DRAWN[name](measured).svg == DRAWN[name](measured).svg


def test_a_figure_says_the_numbers_it_shows(round_numbers: Capacity) -> None:
    assert "3 GB of 5 GB used" in figures.volume(round_numbers).alt
    assert "Logs" not in figures.volume(round_numbers).alt
    grown = figures.growth(round_numbers)
    assert "10 MB a day" in grown.alt
    assert "full at 4.85 GB" in grown.alt
    assert ">full<" in grown.svg
    assert "$0.79 a month today and $1.70" in figures.projection(bill(round_numbers)).alt
    assert "From 2 copies on" in figures.backups(bill(round_numbers)).alt


def test_a_figure_of_nothing_says_why(measured: Capacity) -> None:
    still = dataclasses.replace(measured, growth=None, growth_unknown="the notes cover 3 days")
    assert figures.growth(still).alt == "No forecast: the notes cover 3 days."
    assert "the notes cover 3 days" in figures.projection(bill(still)).svg


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import nescord_ops.cost, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
