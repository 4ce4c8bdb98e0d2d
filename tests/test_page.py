"""The page of each notebook: what stands on the first screen, how it looks, who can use it."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from conftest import MakeDemo
from test_marks import leaks

from nescord_ops import (
    checks,
    firstscreen,
    render,
    report,
    settings,
    show,
    troubleshoot,
    verify,
)
from nescord_ops.checks import fail, ok, unknown, warn

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NAMES = ("verify", "capacity", "cost", "backup", "troubleshoot", "deploy")
BYTES = 120_000
CHANGES = {
    "previous": "2026-11-23T03:00:00+00:00",
    "previous_run": "20261123T030000Z",
    "new": ["chroma.<b>"],
    "resolved": ["stores.lost"],
    "since": {"chroma.index": "2026-11-20T03:00:00+00:00", "old": "2026-01-01T00:00:00+00:00"},
    "last_healthy": "2026-11-19T03:00:00+00:00",
    "measures": [
        {"key": "used", "label": "Used", "before": 1_000, "now": 2_500, "unit": "bytes"},
        {"key": "x", "label": "New", "before": None, "now": 1, "unit": "USD"},
    ],
}
AMOUNT = re.compile(
    r"(?<![\w.^])\d[\d,.]*(?:e\+\d+)? (?:kB|MB|GB|TB)\b|\$\d[\d,.]*\d"
    r"|\b\d[\d,]* (?:s|min|h|days) (?:ago|old)\b"
)
# what a GB costs is written as it is, with all its digits
UNIT_PRICE = re.compile(
    r"\$[\d.]+ (?:of egress )?per GB|(?:at (?:the )?|At )?list price(?: of|,)? \$[\d.]+"
)
browser = pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")


def page(found: list[checks.Check], name: str = "verify", **fields: object) -> str:
    """The page of a notebook with these checks and nothing else."""
    document = {
        "name": name, "status": checks.verdict(found), "generated_at": NOW.isoformat(),
        "tool_version": "1", "settings": {}, "checks": [checks.plain(each) for each in found],
        "data": {}, **fields,
    }  # fmt: skip
    return render.page(nbformat.v4.new_notebook(), document)


def first_screen(html: str) -> str:
    """The page above the table of all checks, tags removed."""
    above = re.sub(r"<style.*?</style>", "", html.partition('id="checks"')[0], flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", above))


def faults_of(pages: list[Path], scheme: str, *rules: str) -> list[str]:
    """What axe-core finds serious or critical, and pages that are wider than their window."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    found = []
    options = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as on,
    ):
        context = on.new_context(
            viewport={"width": 390, "height": 844}, color_scheme=scheme, bypass_csp=True
        )
        opened = context.new_page()
        for path in pages:
            opened.goto(path.as_uri())
            if opened.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{path.name}: wider than the window")
            opened.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            for each in Axe().run(opened, options=options).response["violations"]:
                if each["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:120] for node in each["nodes"][:3]]
                    found.append(f"{path.name} {scheme}: {each['id']} {nodes}")
    return found


class _Amounts(HTMLParser):
    """The amounts of a page's text that stand in no element with an exact value."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, bool]] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        exact = any(name in ("title", "datetime") for name, _ in attrs)
        # written by hand, in the code and above the story; the page's title has no elements
        skipped = tag in ("style", "title", "pre") and dict(attrs).get("class") != "plan"
        if tag not in ("meta", "link", "br", "img", "input", "hr", "path", "circle"):
            self.open.append((tag, exact or skipped))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(exact for _, exact in self.open):
            self.found += AMOUNT.findall(UNIT_PRICE.sub("", data))


def without_exact_value(html: str) -> list[str]:
    """The humanised amounts and ages of a page that do not carry their exact value."""
    parser = _Amounts()
    parser.feed(html)
    return parser.found


def test_an_amount_without_its_exact_value_is_found() -> None:
    assert without_exact_value("<p>1.2 GB for $0.25, <b title='x'>3 kB</b> 3 h ago</p>") == [
        "1.2 GB", "$0.25", "3 h ago",
    ]  # fmt: skip


@browser
def test_every_page_of_the_healthy_demo_is_small_and_usable_by_everybody(
    demo: MakeDemo, tmp_path: Path
) -> None:
    run = report.run(options={"app_dir": str(demo().app_dir)}, out=tmp_path / "reports")
    assert [made.name for made in run.pages] == list(NAMES)
    pages = [made.html for made in run.pages]
    for made in run.pages:
        html = made.html.read_text("utf-8")
        assert len(html.encode()) <= BYTES, made.name
        assert made.status.exit_code == 0, made.headline
        assert html.count("<dt>") == 3
        assert re.search(r'<pre class="command"><code>nescord-ops ', html), made.name
        assert re.search(r'<a href="#part-1">', html)
        assert "<figcaption" in html or made.name not in ("capacity", "cost", "troubleshoot")
        assert re.search(r'title="[\d,]+ bytes"', html) or made.name in ("deploy", "troubleshoot")
        assert without_exact_value(html) == [], made.name
    assert leaks(run.directory) == []
    for index in (run.index, run.directory / "index.html"):
        assert without_exact_value(index.read_text("utf-8")) == [], index
    assert re.search(r"UTC, \d+ (s|min|h|days) ago</time>", pages[3].read_text("utf-8"))
    bad = [fail("a", "1 kB lost", "nescord-ops verify"), unknown("b", "c"), warn("d", "e", "f")]
    (tmp_path / "failing.html").write_text(page(bad, changes=CHANGES), "utf-8")
    pages.append(tmp_path / "failing.html")
    assert faults_of(pages, "light") == []
    assert faults_of(pages[-1:], "dark", "color-contrast") == []


@browser
def test_two_times_leave_room_for_what_a_log_says() -> None:
    from playwright.sync_api import sync_playwright

    row = ("ERROR", 5, "2026-11-24 09:00 UTC", "2026-11-24 10:00 UTC", "sync", "Failed to " * 9)
    html = show.dated(show.table(tuple("abcdef"), [row]), NOW)
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as on,
    ):
        opened = on.new_page(viewport={"width": 900, "height": 800})
        opened.set_content(f"<style>{render.style()}</style><main class=wrap>{html}</main>")
        cells = [cell.bounding_box() for cell in opened.locator("td").all()]
    widths = [cell["width"] for cell in cells if cell]
    assert widths[-1] == max(widths), widths


@browser
@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("", 0), ("lost-vectors", 1), ("corrupt-page", 1)])
def test_every_page_of_every_demo_is_usable_by_everybody_in_light_and_dark(
    demo: MakeDemo, tmp_path: Path, fault: str, code: int
) -> None:
    made = demo(*filter(None, [fault]))
    run = report.run(options={"app_dir": str(made.app_dir)}, out=tmp_path / "reports")
    assert run.exit_code == code
    pages = [made.html for made in run.pages]
    assert faults_of(pages, "light") == []
    assert faults_of(pages, "dark") == []


def test_where_a_store_is_gone_the_cause_stands_alone_and_the_rest_is_behind_it(
    demo: MakeDemo,
) -> None:
    made = demo()
    shutil.rmtree(made.app_dir / "data" / "chromadb")
    found = verify.run(settings.load(app_dir=made.app_dir))
    document = {**found.to_dict(), "name": "verify"}
    html = render.page(nbformat.v4.new_notebook(), document)
    above = html.partition('id="checks"')[0]
    todo = above[above.index('class="todo"') : above.rindex("</ol>")]
    assert "Your data is not safe: Chroma's store is not where the bot looks for it." in above
    assert "should be a directory and is missing" in todo
    assert "could not be looked at" not in todo
    assert re.search(r"<summary>\d\d checks could not be made", above)
    assert above.count("could not be looked at") == 1, "one line, with the names in it"
    assert f"</span> {made.app_dir} verify</code>" in above


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_looked_at_is_never_shown_as_good(name: str) -> None:
    three = firstscreen.numbers(name, {}, [unknown("notebook.run", "killed")], NOW)
    assert [number.text for number in three] == [firstscreen.UNSEEN] * 3
    assert {number.status for number in three} == {checks.Status.UNKNOWN}
    html = page([unknown("notebook.run", "the notebook was killed", "run it again")], name)
    assert html.count("not looked at</b>") == 3
    assert "could not be checked." in html


def test_the_three_numbers_of_verify() -> None:
    standing = {"good": 2, "kept": 2, "proven_taken_at": (NOW - timedelta(hours=3)).isoformat()}
    found = [
        fail("a", "b", "c"), ok("d", "e"), unknown("f", "g"),
        ok("access.forecast", "full in 214 days", value=214, unit="days"),
    ]  # fmt: skip
    three = firstscreen.numbers("verify", {"standing": standing}, found, NOW)
    assert [number.text for number in three] == ["1", "3 h ago", "214"]
    assert [str(number.status) for number in three] == ["fail", "ok", "ok"]
    assert three[0].note == "of 3 made; 1 could not be made"
    standing["proven_taken_at"] = None
    proven = firstscreen.numbers("verify", {"standing": standing}, found, NOW)[1]
    assert (proven.text, proven.status) == ("none", "warn")


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("verify", "ok", "Your data is safe."),
        ("verify", "fail", "Your data is not safe."),
        ("capacity", "ok", "There is room."),
        ("cost", "ok", "The volume costs $1.25 a month."),
        ("backup", "unknown", "Whether the data can be restored could not be checked."),
        ("troubleshoot", "ok", "No known trouble was found."),
        ("deploy", "warn", "The deployment keeps the data, with warnings."),
        ("another", "ok", "Healthy."),
    ],
)
def test_the_verdict_answers_the_question_of_its_notebook(
    name: str, status: str, said: str
) -> None:
    found = [ok("cost.now", "a", value=1.25, unit="USD")]
    if status != "ok":
        found.append(checks.Check("b", checks.Status(status), "c", "d"))
    assert checks.headline(found, name).startswith(said)


def test_a_volume_that_is_not_here_is_not_called_safe() -> None:
    found = [ok("a", "b"), unknown("location.volume", "not on Railway", expected=True)]
    said = checks.headline(found, "verify")
    assert said.startswith("Your data is safe on this machine. ")
    assert said.endswith("This is not Railway: whether a deploy keeps the data is not checked.")
    found.append(unknown("c", "quick", "--depth full", expected=True))
    assert checks.headline(found, "verify").startswith("Nothing wrong in what was looked at.")


def test_since_when_and_what_changed_stand_on_the_page() -> None:
    html = page([fail("chroma.index", "gone", "restore")], changes=CHANGES)
    text = first_screen(html)
    assert "Failing since 2026-11-20 03:00 UTC, 4 days ago" in text
    assert "last healthy run 2026-11-19 03:00 UTC, 5 days ago" in text
    assert "2026-01-01" not in text, "it does not fail now"
    assert '<a href="../20261123T030000Z/verify.html">' in html
    assert "<code>chroma.&lt;b&gt;</code>" in html
    assert 'title="+1,500 bytes"' in html
    unseen = {"chroma.index": {"since": "2026-11-20T03:00:00+00:00", "seen": "…"}}
    quick = page([ok("a", "b")], changes={"previous": None, "since": {}, "unseen": unseen})
    assert 'class="verdict unknown"' in quick, "what failed and was not looked at again is not good"
    assert "? verify: What failed was not looked at again." in quick
    assert "Your data is safe" not in quick
    assert "Nothing now" not in quick
    assert "1 check that failed (chroma.index) not looked at again" in first_screen(quick)
    assert "of 1 made; 1 that failed not looked at again" in first_screen(quick)
    assert "Look again at what failed: nescord-ops verify" in first_screen(quick)
    unknown_since = page([fail("a", "b", "c")], changes={"previous": None, "since": {}})
    assert "Since when is not known" in unknown_since
    assert "There is no earlier run to compare with." in unknown_since
    assert 'class="changes"' not in page([ok("a", "b")])


@pytest.mark.parametrize(
    ("failed", "danger"),
    [
        ("database.integrity backups.age", "the database is damaged"),
        ("chroma.index", "vectors are lost or damaged"),
        (
            "location.url backups.age",
            "DATABASE_URL leads the bot to the wrong file",
        ),
        ("location.url location.database", "it lies where a deploy may delete it"),
        ("location.volume access.chroma_write", "the bot cannot write to it"),
        ("backups.age", "it has no good and recent backup"),
    ],
)
def test_the_verdict_says_what_kind_of_danger_it_is(failed: str, danger: str) -> None:
    found = [fail(name, "seen", "do") for name in failed.split()]
    assert checks.headline(found, "verify").startswith(f"Your data is not safe: {danger}. ")


def test_a_red_verdict_says_whether_the_notes_are_whole() -> None:
    found = [ok("database.integrity", "whole"), fail("chroma.index", "is gone", "do")]
    assert "the vectors are gone. The notes themselves are whole. 1 failed" in checks.headline(
        found, "verify"
    )
    for more in (fail("database.schema", "x", "do"), fail("database.integrity", "x", "do")):
        assert "themselves are whole" not in checks.headline([*found, more], "verify")


@pytest.mark.parametrize(
    ("seen", "danger"),
    [
        ("chroma.sqlite3 cannot be opened: No such file", "Chroma's store is not where the bot"),
        ("chroma.sqlite3 is not a SQLite database", "Chroma's own database is damaged"),
    ],
)
def test_what_is_not_there_is_another_danger_than_what_is_damaged(seen: str, danger: str) -> None:
    found = [fail("chroma.index", "x", "y"), fail("chroma.integrity", seen, "restore it")]
    assert checks.headline(found, "verify").startswith(f"Your data is not safe: {danger}")


def test_a_warning_that_asks_for_nothing_leads_nowhere() -> None:
    nothing = warn("database.search", "no table", f"{checks.NOTHING_TO_DO}, and no data is lost")
    other = warn("database.wal", "24 MB wait", "start the bot")
    above = page([nothing]).partition("All 1 checks")[0]
    assert "troubleshoot" not in above
    assert "To keep it so" in above
    assert "troubleshoot" in page([nothing, other]).partition("All 2 checks")[0]


def test_the_fix_of_failed_checks_stands_once_as_lines_to_copy() -> None:
    found = [fail("chroma.index", "gone", "x"), fail("chroma.vectors", "80 <lost>", "x")]
    lines = ["# stop the bot", "nescord-ops restore ID --to '<b>'", "# start it"]
    names = ["chroma.index", "chroma.vectors"]
    standing = {"proven_taken_at": "2026-11-19T12:00:00+00:00"}
    fix = {"says": "the index is gone", "checks": names, "commands": lines}
    data = {"fixes": [fix | {"plan": "Stop, put it back, start."}]}
    html = page(found, data=data | {"standing": standing}, changes=CHANGES | {"new": []})
    text = first_screen(html)
    assert text.count("nescord-ops restore ID --to '&lt;b&gt;'") == 1
    assert "<li>Stop the bot</li>" in html
    assert "→ Stop, put it back, start." in text
    assert "Since 2026-11-20 03:00 UTC, 4 days ago ; seen by these 2 checks: gone" in text
    assert "When it is done, look again: nescord-ops verify" in text
    assert "taken before the failure; a drill restored it whole" in text
    now = {"since": dict.fromkeys(names, NOW.isoformat())}
    assert "Seen by these 2 checks: gone" in first_screen(
        page(found, data=data, changes=CHANGES | now)
    )
    assert ", since" not in first_screen(page(found, changes=CHANGES | now))
    alone = page([*found, fail("stores.lost", "3 notes", "do this")], data=data)
    assert "→ do this" in first_screen(alone)
    assert "Causes, and their fixes as commands:" in first_screen(alone)
    same = page(found, changes=CHANGES | {"new": [], "resolved": []})
    assert "Not repaired: the same 2 checks fail as then." in first_screen(same)


def test_each_cause_that_troubleshoot_names_stands_with_its_whole_fix() -> None:
    commands = ["# stop the bot", "# what may go:", "nescord-ops clean", "# see:"]
    cause = {"name": "full", "says": "the volume is full", "plan": "Make room."}
    data = {"diagnoses": [{**cause, "commands": commands}]}
    hostile = {"fixes": [{**cause, "checks": ["a"], "plan": "<b>", "commands": []}]}
    assert "→ &lt;b&gt;</p>" in page([fail("a", "b", "c")], data=hostile)
    for level in (fail, warn):
        found = [level("cause.full", "it is full (access.space: 3 MB)", "nescord-ops clean")]
        html = page(found, "troubleshoot", data=data)
        text = first_screen(html)
        assert "the volume is full → Make room. Stop the bot What may go: nescord-ops clean" in text
        assert "<li>See:</li>" in html
        assert "3 MB) cause.full" in text


def test_a_hint_that_is_a_command_stands_there_once() -> None:
    above = page([fail("a", "b", "nescord-ops verify")]).partition('id="checks"')[0]
    assert above.count("nescord-ops verify") == 1
    above = page([fail("a", "b", "first do x, then: nescord-ops verify")]).partition('id="ch')[0]
    assert "→ first do x, then: nescord-ops verify" in above


def test_a_command_that_stands_below_is_left_out_of_the_hint() -> None:
    hint = "restore the newest (nescord-ops restore nescordbot_backup_20261124_180927); no VACUUM"
    text = first_screen(page([fail("a", "b", hint)], settings={"database": ""}))
    assert text.count("restore nescordbot_backup_20261124_180927") == 1
    assert "→ restore the newest; no VACUUM" in text


@pytest.mark.parametrize(
    ("hint", "command"),
    [
        ("nescord-ops verify says where the bot writes", "TOOL verify"),
        ("restore the newest (nescord-ops restore nescordbot_backup_20261124_180927)",
         "TOOL restore nescordbot_backup_20261124_180927"),
        ("nescord-ops backup prune --keep 2, or grow the volume", "TOOL backup prune --keep 2"),
        ("with the bot stopped: nescord-ops clean segments", "TOOL clean segments"),
        ("nescord-ops verify --depth full", "TOOL verify --depth full"),
        ("chmod 600 /app/.env", "chmod 600 /app/.env"),
        ("chmod 600 /app/$(reboot)/.env", ""),
        ("grow the volume in Railway's dashboard", ""),
        (troubleshoot.LOGS_HINT, "TOOL troubleshoot --logs bot.txt"),
        ("push it again, which replaces it: nescord-ops offsite push", ""),
        ("or nescord-ops restore nescordbot_backup_20261124_180927 --only database", ""),
    ],
)  # fmt: skip
def test_a_command_is_taken_out_of_a_hint(hint: str, command: str) -> None:
    assert firstscreen.command(hint, "TOOL") == command


def test_commands_in_the_table_of_checks_name_the_installation(demo: MakeDemo) -> None:
    made = demo()
    found = [warn("a", "b", "stopped: nescord-ops clean sync --apply"), fail("c", "d", "e")]
    found_in = settings.load(app_dir=made.app_dir).to_dict()
    html = page(found, settings=found_in)
    tool = f"nescord-ops --app-dir {made.app_dir}"
    assert html.count(f"stopped: {tool} clean sync --apply") == 2, "behind, and in the table"
    called = page([warn("a", "b", f"{tool} backup create")], settings=found_in)
    assert f"→ {tool} backup create" in called, "a fix is called so already"


def test_times_say_how_long_ago_they_were_but_not_in_code() -> None:
    html = "<p>taken 2026-11-24 09:00 UTC</p><pre>2026-11-24 09:00 UTC</pre>"
    html += "<a title='2026-11-24 09:00 UTC'>2026-13-99 09:00 UTC</a>"
    said = show.dated(html, NOW)
    time = '<time datetime="2026-11-24T09:00:00+00:00">2026-11-24 09:00 UTC, 3 h ago</time>'
    assert said == html.replace("taken 2026-11-24 09:00 UTC", f"taken {time}")


def test_a_column_with_numbers_has_its_heading_above_them() -> None:
    html = show.table(("a", "b", "c"), [("x", None), ("y", show.size(1)), ("z", "none", 1)])
    assert re.findall(r' class="number">(\w)</th>', html) == ["b", "c"]


def test_a_long_table_is_folded_and_one_is_singular() -> None:
    html = show.table(("a", "b"), [(n, n) for n in range(20)])
    assert html.count("<tr><td") == 20
    assert html.partition("<details>")[0].count("<tr><td") == show.LONG // 2
    assert "<summary>14 more rows</summary>" in html
    assert show.table(("a",), [(n,) for n in range(show.LONG)]).count("<details>") == 0
    assert [show.count(n, "copy", "copies") for n in (0, 1, 2)] == [
        "0 copies",
        "1 copy",
        "2 copies",
    ]
    said = checks.none_of("a", 1, "rows", good="", bad="rows are", one="row is", hint="x").summary
    assert said == "1 row is"


def test_exact_amounts_stand_behind_the_short_ones() -> None:
    used, size = show.size(12_607_488), show.size(5 * 10**9)
    check = warn("a", f"{used} of {size} used, {show.age(10_801)}", f"pay {show.dollars(0.2512)}")
    assert check.summary == "12.6 MB of 5 GB used, 3 h ago", "plain text for everything but HTML"
    assert json.dumps(checks.plain(check)["hint"]) == '"pay $0.25"'
    assert show.titled(check.summary) == (
        '<span title="12,607,488 bytes">12.6 MB</span> of '
        '<span title="5,000,000,000 bytes">5 GB</span> used, '
        '<span title="10,801 s">3 h</span> ago'
    )
    assert '<span title="0.2512 USD">$0.25</span>' in show.checks_rows([check])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x0e5 bytes\x0f", '<span title="5 bytes">5 bytes</span>'),
        ("\x0e<b> bytes\x0f", "\ufffd&lt;b&gt; bytes\ufffd"),
        ("\x0e5 \x0f\x0e", "\ufffd5 \ufffd\ufffd"),
        ("\x0e1e+999 s\x0f", "\ufffd1e+999 s\ufffd"),
        ('\x0e1" onclick="x bytes\x0f', "\ufffd1&quot; onclick=&quot;x bytes\ufffd"),
    ],
)
def test_text_that_imitates_an_amount_is_that_amount_or_no_amount(text: str, shown: str) -> None:
    assert show.titled(text) == show.titled(show.Text(text)) == shown
    assert not set("\x0e\x0f") & set(show.printable(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["sparse-bloat", "large-wal", "orphan-segment", "old-backups-only"]
)
def test_every_amount_on_the_pages_of_a_faulty_demo_has_its_exact_value(
    demo: MakeDemo, tmp_path: Path, fault: str
) -> None:
    run = report.run(options={"app_dir": str(demo(fault).app_dir)}, out=tmp_path / "reports")
    for made in run.pages:
        assert without_exact_value(made.html.read_text("utf-8")) == [], made.name
