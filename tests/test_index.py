"""The index: what it leads to, how it looks, and that a thousand runs are no burden."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Tags

from nescord_ops import history, index, spark
from nescord_ops.history import PageRow, RunRow

NOW = datetime(2026, 11, 24, 3, 15, tzinfo=UTC)
VOLUME = "/app/data/nescordbot.db"
HOSTILE = "<script>alert(1)</script>\"'&"
HEADLINES = {
    "ok": "Healthy. 5 ok.",
    "warn": "Healthy, with warnings. 1 warning.",
    "fail": "Not safe. 2 failed.",
    "unknown": "Could not check. 1 not checked.",
}


def run_row(ago: float, status: str = "ok", **fields: Any) -> RunRow:
    """A run so many days ago, of verify with this status and of cost, which is ok."""
    at = NOW - timedelta(days=ago)
    pages = (PageRow("verify", status, HEADLINES[status]), PageRow("cost", "ok", "Healthy. 1 ok."))
    given = {"demo": False, "pages": pages, "volume": VOLUME, **fields}
    return RunRow(f"{at:%Y%m%dT%H%M%SZ}", at, status, **given)


def links(*rows: RunRow) -> dict[str, str]:
    return {row.stamp: f"{row.stamp}/index.html" for row in rows}


def test_the_newest_run_says_the_verdict_and_leads_to_every_page_and_json(tmp_path: Path) -> None:
    rows = [run_row(0, "fail"), run_row(1, "unknown"), run_row(2), run_row(3, "fail")]
    text = index.page(rows, links(*rows), tmp_path)
    assert "<title>✕ Not safe – NescordBot reports</title>" in text
    newest, _, rest = text.partition("<h3>")
    assert re.findall(r'href="([^"]+)"', newest)[2:] == [
        f"{rows[0].stamp}/{name}"
        for name in ("verify.html", "verify.html", "verify.json", "cost.html", "cost.json")
    ]
    assert f'healthy last: <a href="{rows[2].stamp}/index.html">' in newest
    assert all(f"{row.stamp}/index.html" in rest for row in rows)


def test_many_changes_are_folded_and_a_few_are_not(tmp_path: Path) -> None:
    def changed(words: str) -> str:
        page = PageRow("verify", "fail", HEADLINES["fail"], NOW.isoformat(), words)
        row = run_row(0, "fail", pages=(page,))
        return re.sub(r"\s+", " ", index.page([row], links(row), tmp_path))

    assert '<p class="changed">Since' in changed("1 new failure (a)")
    long = f"3 new failures (a, b, c), {'x' * 160} +1 to 2"
    folded = changed(long)
    assert "<summary>What changed since the last run</summary><p>Since" in folded
    assert folded.count(long) == 1


def test_healthy_last_counts_the_failing_notebooks_and_what_they_looked_at() -> None:
    broken = run_row(0, "fail")
    standing = run_row(1, pages=(PageRow("verify", "ok", "Healthy. 1 ok.", standing=True),))
    elsewhere = run_row(2, pages=(PageRow("cost", "ok", "Healthy. 1 ok."),))
    assert index._healthy_before(broken, [broken, standing, elsewhere]) is None
    good = run_row(3, "warn")
    assert index._healthy_before(broken, [broken, standing, elsewhere, good]) is good


def test_what_failed_and_was_not_looked_at_again_is_not_shown_as_good(tmp_path: Path) -> None:
    began = (NOW - timedelta(days=2)).isoformat()
    seen = PageRow("verify", "ok", "Nothing wrong. 9 ok.", standing=True, since=began)
    text = index.page(
        rows := [run_row(0, pages=(seen,)), run_row(2, "fail")], links(*rows), tmp_path
    )
    words = re.sub(r"<[^>]+>", "", text)
    assert '<section class="verdict newest unknown"' in text
    assert "What failed was not looked at again" in words
    assert f"Failing since {began[:10]} {began[11:16]} UTC, 2 days ago" in words
    assert '<i class="ok">' not in text, "nor in the list"
    assert 'class="badge ok"' not in text


def test_a_day_shows_its_worst_run_and_leads_to_all_of_them(tmp_path: Path) -> None:
    rows = [run_row(0), run_row(0.02, "fail"), run_row(0.04, "unknown"), run_row(1, "warn")]
    pruned = run_row(2, "fail")
    (month,) = index.months([*rows, pruned], links(*rows), "v1")
    cells = {cell["number"]: cell for week in month["weeks"] for cell in week if cell}
    assert max(cells) == 24, "no day after the last run"
    assert (cells[24]["status"], cells[24]["words"]) == ("fail", "fail, 3 runs")
    assert cells[24]["href"] == "#v1-2026-11-24"
    assert (cells[23]["status"], cells[23]["href"]) == ("warn", f"{rows[3].stamp}/index.html")
    assert (cells[22]["status"], cells[22]["href"]) == ("fail", ""), "its pages were removed"
    assert cells[21]["status"] == ""
    text = index.page([*rows, pruned], links(*rows), tmp_path)
    assert [a["id"] for tag, a in Tags(text).seen if tag == "li" and a.get("id")] == [
        "v1-2026-11-24"
    ]
    assert pruned.stamp not in text


def test_each_volume_has_its_own_section_the_worst_first_and_samples_last(tmp_path: Path) -> None:
    rows = [
        run_row(0, "fail", demo=True, volume="/tmp/demo-1/bot.db"),
        run_row(1, volume="/one/bot.db"),
        run_row(2, "fail", volume="/two/bot.db"),
        run_row(3, "ok", demo=True, volume="/tmp/demo-2/bot.db"),
        run_row(4, "fail", volume="/one/bot.db"),
    ]
    text = index.page(rows, links(*rows), tmp_path)
    titles = re.findall(r'<h2 id="v\d">(?:<code>)?([^<]+)', text)
    assert titles == ["/two/bot.db", "/one/bot.db", "Samples"]
    assert text.count("<h3>Trends") == 2, "a sample is made anew each time: it has no trend"


def test_the_trends_are_of_this_volume_alone(tmp_path: Path) -> None:
    for ago, used, volume, demo in [
        (2, 10_000_000, VOLUME, False), (1, 12_000_000, VOLUME, False),
        (0.5, 99_000_000, "/other/bot.db", False), (0.2, 77_000_000, "/tmp/demo/bot.db", True),
    ]:  # fmt: skip
        row = run_row(ago, demo=demo, pages=(PageRow("capacity", "ok", "Healthy. 1 ok."),))
        document = {"settings": {"database": volume}, "checks": [], "data": {"used_bytes": used}}
        history.record(tmp_path, row, [document])
    size, _, failing, _ = index.trends(tmp_path, VOLUME, NOW)
    assert size.now == "12 MB"
    assert size.words == (
        "10 MB on 2026-11-22, 12 MB on 2026-11-23; lowest 10 MB, highest 12 MB"
    )  # fmt: skip
    assert (failing.now, failing.svg) == ("not measured", "")
    assert "nescord-ops report verify" in failing.words


def test_failing_checks_are_those_that_stand_and_a_run_that_could_not_look_is_a_gap(
    tmp_path: Path,
) -> None:
    standing = {"a": history.iso(NOW), "b": history.iso(NOW)}
    carried = {name: {"since": since, "seen": since} for name, since in standing.items()}
    for ago, status, changes in [
        (3, "fail", {"since": standing, "unseen": {}}),
        (2, "ok", {"since": {}, "unseen": carried}),
        (1, "unknown", {"since": {}, "unseen": carried}),
        (0, "ok", {"since": {}, "unseen": {}}),
    ]:
        row = run_row(ago, pages=(PageRow("verify", status, HEADLINES[status]),))
        document = {"settings": {"database": VOLUME}, "checks": [], "data": {}, "changes": changes}
        history.record(tmp_path, row, [document])
    found = history.points(tmp_path, "verify", "", VOLUME, NOW - timedelta(days=9))
    assert [value for _, value in found] == [2, 2, None, 0]
    assert [page.standing for row in history.runs(tmp_path) for page in row.pages] == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_line_breaks_where_a_run_could_not_look_and_says_so() -> None:
    days = [NOW + timedelta(days=n) for n in range(5)]
    made = spark.trend("Size", "bytes", [*zip(days, [1e6, 3e6, None, 2e6, None], strict=True)],
                       missing="-")  # fmt: skip
    path = re.search(r'd="([^"]+)"', made.svg)
    assert path
    assert path[1] == "M4,44h0L62,4M178,24h0"
    assert made.now == "2 MB"
    assert made.words == (
        "1 MB on 2026-11-24, 2 MB on 2026-11-27; lowest 1 MB, highest 3 MB; "
        "not looked at on 2026-11-28"
    )
    assert f'aria-label="Size: {made.words!s}"' in made.svg


def test_many_points_become_few_and_no_peak_is_lost() -> None:
    points = [(NOW + timedelta(hours=n), float(n == 4321)) for n in range(10_000)]
    few = spark.thinned(points)
    assert len(few) <= spark.POINTS + 1
    assert max(value for _, value in few if value is not None) == 1
    assert few[-1] == points[-1]
    same = [(NOW, 1.0)] * 500
    assert len(spark.thinned(same)) <= spark.POINTS + 1
    assert "M236,24h0" in spark.svg(same, "flat")


def test_nothing_from_the_volume_becomes_markup(tmp_path: Path) -> None:
    page = PageRow(HOSTILE, "fail", HOSTILE, history.iso(NOW), HOSTILE)
    rows = [run_row(0, "fail", pages=(page,), volume=HOSTILE), run_row(1, volume="/b")]
    many = [run_row(n, volume=f"{HOSTILE}{n}") for n in range(2, 2 + index.VOLUMES)]
    for text in (
        index.page([*rows, *many], links(*rows, *many), tmp_path),
        index.run_page(rows[0]),
        spark.trend(HOSTILE, "", [(NOW, 1.0), (NOW, 2.0)], missing="").svg,
    ):
        assert not [tag for tag, _ in Tags(text).seen if tag in ("script", "img")]
        assert "alert(1)" in text
    assert len(text) < 2000


def thousand(tmp_path: Path) -> tuple[str, float]:
    """The index of a thousand nights, and the seconds of CPU that it took with its history."""
    for n in reversed(range(1000)):
        row = run_row(n, "fail" if n % 97 == 3 else "ok")
        document = {"settings": {"database": VOLUME}, "checks": [], "data": {}}
        if n in (0, 1, 300, 301, 999):
            history.record(tmp_path, row, [document] * 2)
    rows = [run_row(n, "fail" if n % 97 == 3 else "ok") for n in range(1000)]
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    text = index.page(rows, links(*rows), tmp_path)
    return text, resource.getrusage(resource.RUSAGE_SELF).ru_utime - began


def test_a_thousand_runs_are_all_reachable_in_a_page_of_bounded_size(tmp_path: Path) -> None:
    text, seconds = thousand(tmp_path)
    assert len(text.encode()) < 300_000
    assert seconds < 2
    listed = text.partition('<details class="all">')[2]
    assert len(set(re.findall(r'href="(\d{8}T\d{6}Z)/index.html"', listed))) == 1000
    many = [run_row(n / 24) for n in range(10_000)]
    text = index.page(many, links(*many), tmp_path)
    assert len(text.encode()) < 300_000
    assert "8500 older runs" in text


def test_many_volumes_are_bounded_too(tmp_path: Path) -> None:
    rows = [run_row(n, volume=f"/volume/{n}/bot.db") for n in range(1000)]
    text = index.page(rows, links(*rows), tmp_path)
    assert len(text.encode()) < 400_000
    assert all(f"/volume/{n}/bot.db" in text for n in range(1000))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


def test_in_a_browser_it_is_accessible_asks_for_nothing_and_opens_what_is_folded(
    browser: Any, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rows = [run_row(n / 2, ("fail", "ok", "warn", "unknown")[n % 4]) for n in range(60)]
    for row in rows:
        history.record(tmp_path, row, [{"settings": {"database": VOLUME}, "checks": [],
                                        "data": {"usd_per_month": 0.1}}] * 2)  # fmt: skip
    file = tmp_path / "index.html"
    file.write_text(index.page(rows, links(*rows), tmp_path))
    for scheme, width in (("light", 1200), ("dark", 390)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
        page = context.new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))  # noqa: B023
        page.on("console", lambda message: said.append(message.text))  # noqa: B023
        page.goto(file.as_uri())
        assert (asked, said) == ([file.as_uri()], [])
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, "nothing to scroll sideways"
        day = page.locator(".month a").filter(has_text="23").first
        day.focus()
        page.keyboard.press("Enter")
        shown = page.locator("li:target")
        assert shown.is_visible(), "the folded listing opens at the day's runs"
        assert shown.get_by_role("link").count() == 2
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found = axe.run(page).response["violations"]
        assert [json.dumps(each)[:400] for each in found] == []
        context.close()
