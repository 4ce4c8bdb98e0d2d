"""Reports: every way in which a notebook can end, what the page shows, and what is published."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
from conftest import MakeDemo, Tags

from nescord_ops import checks, history, kernel, publish, render, report, runner, settings
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError

NOW = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
PARAMETERS = (
    'app_x: str = ""  # a place\nlimit: int = 3  # how many\nshare: float = 0.5\nraw = None'
)
FOUND = """import dataclasses
from nescord_ops import checks

class Settings:
    def to_dict(self):
        return {"database": "/volume/nescordbot.db"}

@dataclasses.dataclass(frozen=True)
class Found(checks.Findings):
    settings: Settings
    checks: tuple
    used_bytes: int = 1500

good = checks.ok("sqlite.integrity", "sound", value=12, unit="tables")
found = Found(Settings(), (good,))
"""
FAILING = """bad = checks.fail("agreement.lost", "41 notes <b>lost</b>", "restore them", value=41)
found = Found(Settings(), (good, bad))
found"""
FIGURE = """from IPython.display import display
class Figure:
    def _repr_mimebundle_(self, **_):
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect id="r"/></svg>'
        return {"image/svg+xml": svg, "text/plain": "<Figure>"}
display(Figure(), metadata={"image/svg+xml": {"alt": 'Two bars, "notes" & vectors'}})"""
NOISE = f"""import sys
print("\\x1b[31mred\\x1b[0m", {HOSTILE!r})
print({HOSTILE!r}, file=sys.stderr)
class Text:
    def __repr__(self):
        return {HOSTILE!r}
Text()"""
STORY = {
    "healthy": [FOUND, FIGURE, "found", "found.raise_for_status()"],
    "failing": [FOUND, FAILING, "found.raise_for_status()"],
    "raising": [FOUND, NOISE, f"raise ValueError({HOSTILE!r})", "found"],
    "half": [FOUND, FAILING, "1 / 0"],
    "early": [FOUND, "found", "raise checks.ChecksFailed('x', 'do that')", "1"],
    "dead": ["import os, signal, subprocess\nsubprocess.Popen(['sleep', '86399'])",
             "os.kill(os.getpid(), signal.SIGKILL)"],
    "slow": ["import time", "time.sleep(600)"],
    "exits": [FOUND, "found", "import sys; sys.exit(0)"],
    "silent": ["1"],
    "braces {x} {0} 日本 #%": [FOUND, "assert (limit, share) == (7, 2.0)", "assert raw == '007'",
                             "found"],
}  # fmt: skip


def make(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> str:
    """Write a notebook: a title, the parameters, the code cells; return its path."""
    book = nbformat.v4.new_notebook()
    book.cells.append(nbformat.v4.new_markdown_cell(f"# {path.stem}\n\nA question."))
    if parameters is not None:
        tagged = {"tags": ["parameters"]}
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata=tagged))
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(book, path)
    return str(path)


def alive(needle: str, file: str = "cmdline") -> list[int]:
    """The processes that have `needle` on their command line, or in their environment."""
    found = []
    for entry in Path("/proc").glob(f"[0-9]*/{file}"):
        with contextlib.suppress(OSError):
            if needle.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> report.Run:
    """One run of every kind of notebook there is."""
    root = tmp_path_factory.mktemp("report")
    names = [make(root / f"{name}.ipynb", *cells) for name, cells in STORY.items()]
    names.append(make(root / "unparameterised.ipynb", "1", parameters=None))
    (root / "broken.ipynb").write_text("{not json")
    scratch = root / "tmp"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        run = run_everything(root, names)
    assert list(scratch.iterdir()) == [], "sockets and connection files are gone"
    return run


def run_everything(root: Path, names: list[str]) -> report.Run:
    return report.run(
        [*names, str(root / "broken.ipynb")],
        parameters={"limit": "7", "share": "2", "raw": "007", "app_x": "{a} \"b\" 'c' \\ 日本"},
        out=root / "reports",
        timeout_seconds=5,
        now=NOW,
    )


def page(run: report.Run, name: str) -> tuple[report.Page, dict, str]:
    found = next(page for page in run.pages if page.name == name)
    return found, json.loads(found.json.read_text()), found.html.read_text()


def ran(document: dict) -> dict | None:
    """The check that says what happened to the notebook itself."""
    return next((c for c in document["checks"] if c["name"] == report.RUN_CHECK), None)


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("healthy", "ok", None),
        ("failing", "fail", None),
        ("raising", "unknown", "cell 5 raised ValueError: <script>"),
        ("half", "fail", "cell 5 raised ZeroDivisionError: division by zero"),
        ("early", "unknown", "cell 5 raised ChecksFailed: x"),
        ("dead", "unknown", "cell 4: the notebook's Python process was killed by signal 9"),
        ("slow", "unknown", "cell 4: did not finish within 5 s"),
        ("exits", "unknown", "cell 5 raised SystemExit: 0"),
        ("silent", "unknown", "the notebook ended without showing any findings"),
        ("unparameterised", "unknown", "the notebook has no cell tagged `parameters`"),
        ("broken", "unknown", "broken.ipynb is not a readable notebook"),
        ("braces {x} {0} 日本 #%", "ok", None),
    ],
)
def test_every_end_of_a_notebook_has_its_status_and_its_page(
    everything: report.Run, name: str, status: str, said: str | None
) -> None:
    found, document, text = page(everything, name)
    assert (found.status, document["status"], document["name"]) == (status, status, name)
    check = ran(document)
    if said is None:
        assert check is None
    else:
        assert check is not None
        assert check["summary"].startswith(said)
        assert (check["status"], bool(check["hint"])) == ("unknown", True)
        assert check["summary"].replace("<", "&lt;").replace(">", "&gt;") in text
        assert check["hint"] in text
    assert f'class="verdict {status}"' in text
    assert nbformat.read(found.notebook, as_version=4).cells is not None


def test_the_json_has_the_fields_of_the_contract(everything: report.Run) -> None:
    fields = {
        "schema_version", "name", "status", "generated_at", "tool_version", "settings", "checks",
        "data", "demo", "changes",
    }  # fmt: skip
    asked = {field.name for field in dataclasses.fields(checks.Check)}
    for found in everything.pages:
        document = json.loads(found.json.read_text())
        assert set(document) == fields
        assert all(set(check) == asked for check in document["checks"])


def test_a_failed_page_decides_the_run_and_its_exit_code(everything: report.Run) -> None:
    assert (everything.status, everything.exit_code) == (Status.FAIL, 1)
    unknown = [page for page in everything.pages if page.status is not Status.FAIL]
    run = dataclasses.replace(everything, pages=tuple(unknown))
    assert (run.status, run.exit_code) == (Status.UNKNOWN, 2)
    assert dataclasses.replace(everything, pages=everything.pages[:1]).exit_code == 0


def test_a_dead_kernel_leaves_no_child_behind(everything: report.Run) -> None:
    assert alive("86399") == []


def test_what_to_do_is_on_the_first_screen(everything: report.Run) -> None:
    _, _, text = page(everything, "failing")
    banner = text[text.index('class="verdict') : text.index('id="checks"')]
    assert "Not safe" in banner
    assert "41 notes &lt;b&gt;lost&lt;/b&gt;" in banner
    assert "→ restore them" in banner
    above = text[: text.index('class="story"')]
    assert above.count("41 notes &lt;b&gt;") == 2, "once in the banner, once in the table"
    assert checks.MIME not in text


def test_code_and_tracebacks_are_folded_and_there(everything: report.Run) -> None:
    _, _, text = page(everything, "raising")
    story = text[text.index('class="story"') :]
    assert re.search(r"<details><summary>Traceback</summary>\s*<pre[^>]*>-+", story)
    outside = re.sub(r"<details.*?</details>", "", story, flags=re.S)
    assert "Traceback" not in outside
    assert "dataclasses" not in outside
    assert "<strong>ValueError</strong>: &lt;script&gt;" in outside


def test_no_page_has_a_script_or_an_address_outside(everything: report.Run) -> None:
    for file in [everything.index, *(page.html for page in everything.pages)]:
        text = file.read_text()
        for tag, attributes in Tags(text).seen:
            assert tag not in {"script", "iframe", "object", "embed", "form", "base"}
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "action", "data"):
                assert not re.match(r"\w+://|//|javascript:", attributes.get(name) or "")
        assert "\x1b" not in text
        assert "url(" not in text
        assert "@import" not in text
        assert render.CSP.replace("'", "&#x27;") in text or render.CSP in text
        assert len(text) < 90_000


def test_a_figure_has_its_text_alternative(everything: report.Run) -> None:
    _, _, text = page(everything, "healthy")
    images = [attributes for tag, attributes in Tags(text).seen if tag == "img"]
    assert [image["alt"] for image in images] == ['Two bars, "notes" & vectors']
    assert (images[0]["src"] or "").startswith("data:image/svg+xml,%3Csvg")


def test_links_of_the_index_lead_to_files(everything: report.Run) -> None:
    from urllib.parse import unquote

    links = [a["href"] or "" for tag, a in Tags(everything.index.read_text()).seen if tag == "a"]
    verdict_calendar_and_listing = 3
    assert len(links) == 2 * len(everything.pages) + verdict_calendar_and_listing
    assert all(everything.index.parent.joinpath(unquote(link)).is_file() for link in links)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_in_a_browser_nothing_runs_and_nothing_is_fetched(tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    book = nbformat.v4.new_notebook()
    attack = f"<img src='{address}/i.png'><link rel=stylesheet href='{address}/s.css'>{HOSTILE}"
    data = {"text/html": attack}
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    book.cells = [cell]
    document = {
        "name": "n", "status": "ok", "generated_at": NOW.isoformat(), "tool_version": "1",
        "settings": {}, "checks": [checks.plain(checks.ok("a", "b"))], "data": {},
    }  # fmt: skip
    (tmp_path / "n.html").write_text(render.page(book, document))
    try:
        seen = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                f"{address}/n.html",
            ],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert asked == ["/n.html"]
    assert "<title>✓ n: Healthy.</title>" in seen.stdout


def test_every_colour_pair_can_be_read() -> None:
    css = render.style()
    dark = css.split("@media (prefers-color-scheme: dark)", 1)[1]
    for text in (css.split("@media", 1)[0], dark.split("}", 1)[0]):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text))
        pairs = [
            (tone, "card") for tone in ("ink", "soft", "link", "ok", "warn", "fail", "unknown")
        ]
        pairs += [(tone, "page") for tone in ("ink", "soft", "link", "warn")]
        for tone in ("ok", "warn", "fail", "unknown"):
            pairs += [(tone, f"{tone}-tint"), ("ink", f"{tone}-tint"), ("soft", f"{tone}-tint")]
        pairs += [(t, "code") for t in ("ink", "soft", "string", "keyword", "number")]
        for front, back in pairs:
            assert contrast(colour[front], colour[back]) >= 4.5, (front, back)


def contrast(front: str, back: str) -> float:
    """The contrast ratio of two colours, WCAG 2.2, 1.4.3."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(front), luminance(back)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"limit": "many"}, "parameter limit is 'many', not of type int"),
        ({"limit": True}, "parameter limit is True, not of type int"),
        ({"share": "nan"}, "parameter share is nan, not of type float"),
        ({"raw": {"a": 1}}, "parameter raw is {'a': 1}, not a JSON scalar"),
    ],
)
def test_a_parameter_that_does_not_fit_stops_everything_before_it_begins(
    tmp_path: Path, parameters: dict[str, object], said: str
) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    with pytest.raises(ReportError, match=re.escape(said)) as caught:
        report.run([name], parameters=parameters, out=tmp_path / "reports")
    assert caught.value.hint
    assert not (tmp_path / "reports").exists()


def test_an_unknown_parameter_runs_nothing_and_leaves_a_page_that_names_the_known(
    tmp_path: Path,
) -> None:
    name = make(tmp_path / "n.ipynb", f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    given = {"limt": 3, "x; import os": 1}
    run = report.run([name], parameters=given, out=tmp_path / "reports")
    assert run.exit_code == 2
    (page,) = run.pages
    assert page.status is Status.UNKNOWN
    html = page.html.read_text("utf-8")
    assert "no notebook has a parameter limt, x; import os" in html
    assert "the parameters are app_x, limit, raw, share" in html
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["nothing-like-it", "missing.ipynb", "../etc/passwd"])
def test_a_notebook_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReportError, match="there is no notebook"):
        report.run([name], out=tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_two_notebooks_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    names = [make(tmp_path / folder / "n.ipynb", "1") for folder in ("a", "b")]
    with pytest.raises(ReportError, match="two notebooks are named 'n'"):
        report.find(names)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for the kernel where only publishing is looked at."""

    def execute(
        notebook: runner.Notebook, _: object, keeper: runner.Kernels, *__: object
    ) -> runner.Executed:
        keeper.first_asked.set()
        return runner.Executed(notebook.content, None, 0.1)

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(kernel.Nursery, "__init__", lambda _, **__: None)
    monkeypatch.setattr(kernel.Nursery, "close", lambda _: None)


@pytest.mark.usefixtures("quick")
def test_runs_of_one_second_keep_apart_and_old_ones_go(tmp_path: Path) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    out = tmp_path / "reports"
    out.mkdir()
    foreign = out / "20200101T000000Z.bak"
    foreign.mkdir()
    (out / "20200101T000000Z").symlink_to(tmp_path, target_is_directory=True)
    (out / "20200102T000000Z").write_text("a file")
    stamps = [report.run([name], out=out, now=NOW).directory.name for _ in range(11)]
    assert stamps[0] == "20261123T220000Z"
    assert stamps[-1] == "20261123T220000Z-11"
    run = report.run([name], out=out, now=NOW, keep=3)
    left = sorted(p.name for p in out.glob("20261123*"))
    assert left == ["20261123T220000Z-10", "20261123T220000Z-11", "20261123T220000Z-12"]
    assert len(history.runs(out)) == 12, "the history outlives the pages"
    assert (out / "20200101T000000Z").is_symlink()
    assert foreign.is_dir()
    assert (tmp_path / "n.ipynb").exists()
    index = run.index.read_text()
    assert index.index("-12/n.html") < index.index("-11/index.html") < index.index("-10/index.html")
    assert (run.directory / "index.html").is_file()
    assert "220000Z-9/" not in index
    assert not list(out.glob(".*")), "nothing is left of the building"


def test_what_starts_kernels_may_be_killed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pipe breaks while it is written to, which is not that whoever read us has gone."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    monkeypatch.setattr(sys, "path", [*sys.path, "x" * 200_000])  # more than a pipe holds
    run = report.run([make(tmp_path / "n.ipynb", "1")], out=tmp_path / "reports")
    assert run.exit_code == 2
    assert "Broken pipe" in run.pages[0].html.read_text()


@pytest.mark.usefixtures("quick")
def test_a_lost_history_is_read_back_from_the_runs(tmp_path: Path) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    first = report.run([name], out=tmp_path / "reports", now=NOW)
    (tmp_path / "reports" / history.FILE_NAME).write_bytes(b"no database at all" * 100)
    second = report.run([name], out=tmp_path / "reports")
    recorded = [row.stamp for row in history.runs(tmp_path / "reports")]
    assert recorded == [second.directory.name, first.directory.name]
    assert f"{first.directory.name}/index.html" in second.index.read_text()
    changes = second.pages[0].changes
    assert changes["previous_run"] == first.directory.name, "read back before it is needed"


@pytest.mark.usefixtures("quick")
def test_a_notebook_that_shows_nothing_is_a_run_of_its_volume_none_the_less(
    demo: MakeDemo, tmp_path: Path
) -> None:
    name = make(tmp_path / "n.ipynb", "1", parameters='app_dir: str = ""')
    options = {"app_dir": str(demo().app_dir)}
    run = report.run([name], out=tmp_path / "reports", options=options, now=NOW)
    database = str(tmp_path / "app" / "data" / "nescordbot.db")
    assert page(run, "n")[1]["settings"] == {"database": database}
    assert [row.volume for row in history.runs(tmp_path / "reports")] == [database]
    assert f"<code>{database}</code>" in run.index.read_text()


@pytest.mark.usefixtures("quick")
def test_a_sample_stays_one_when_the_history_is_lost(tmp_path: Path) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    report.run([name], out=tmp_path / "reports", now=NOW, demo=True)
    (tmp_path / "reports" / history.FILE_NAME).unlink()
    report.run([name], out=tmp_path / "reports")
    assert [row.demo for row in history.runs(tmp_path / "reports")] == [False, True]


def test_what_a_notebook_was_saved_with_is_no_finding_of_a_run_that_is_refused(
    tmp_path: Path, everything: report.Run
) -> None:
    saved = shutil.copy(page(everything, "failing")[0].notebook, tmp_path / "saved.ipynb")
    made = report.run([str(saved)], out=tmp_path / "reports", parameters={"typo": "1"})
    _, document, _ = page(made, "saved")
    assert [check["name"] for check in document["checks"]] == [report.RUN_CHECK]
    assert (made.status, document["data"]) == (Status.UNKNOWN, {})


@pytest.mark.usefixtures("quick")
def test_where_nothing_can_be_written_the_error_says_so(tmp_path: Path) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReportError, match="cannot be written") as caught:
        report.run([name], out=tmp_path / "file")
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_too_few_files_are_said_before_a_kernel_dies_of_it(tmp_path: Path) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (report.OPEN_FILES - 1, hard))
    try:
        with pytest.raises(ReportError, match="only 79 files") as caught:
            report.run([name], out=tmp_path / "reports")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in caught.value.hint
    names = [make(tmp_path / f"{number}.ipynb", "1") for number in range(6)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with pytest.raises(ReportError, match="a report takes 144"):
            report.run(names, out=tmp_path / "reports", jobs=6)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 0.0, -5.0])
def test_a_time_that_is_none_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ReportError, match="timeout_seconds is") as caught:
        report.run(out=tmp_path / "reports", timeout_seconds=seconds)
    assert caught.value.hint
    assert not (tmp_path / "reports").exists()


@pytest.mark.usefixtures("quick")
def test_no_space_leaves_nothing_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make(tmp_path / "n.ipynb", "1")
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "write_bytes", lambda _, data: full.open("wb", 0).write(data))
    with pytest.raises(ReportError, match="No space left"):
        report.run([name], out=tmp_path / "reports")
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_demo_sees_nothing_of_the_real_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "CHROMADB_PERSIST_DIRECTORY", "RAILWAY_VOLUME_MOUNT_PATH"):
        monkeypatch.setenv(name, "/real")
    kept = report._environment(Path("/out"), demo=True)
    assert "/real" not in kept.values()
    assert kept["NESCORD_OPS_REPORTS_DIR"] == "/out"
    assert kept["PATH"] == os.environ["PATH"]
    assert report._environment(Path("/out"), demo=False)["DATABASE_URL"] == "/real"


def test_a_demo_is_reported_on_marked_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////real/nescordbot.db")
    monkeypatch.setenv("NESCORD_OPS_APP_DIR", "/real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cells = [
        FOUND,
        "from nescord_ops import settings\nplaces = settings.load(app_dir=app_dir)\n"
        "assert places.database.is_file() and places.chroma_dir.is_dir()",
        "print('nescord-ops --app-dir', app_dir, 'story')",
        "dataclasses.replace(found, settings=places)",
    ]
    name = make(tmp_path / "verify.ipynb", *cells, parameters='app_dir: str = ""')
    run = report.run([name], out=tmp_path / "reports", demo=True)
    assert (run.status, run.demo) == (Status.OK, True)
    page = run.pages[0].html.read_text()
    assert f'{settings.SAMPLE_GONE}</p>\n<pre class="command"' in page
    text = re.sub("</?span>", "", page)
    typed = re.findall(r"nescord-ops (?:demo|--app-dir \S+) \w+", text)
    shown = [f"nescord-ops --app-dir sample {word}" for word in ("backup", "story")]
    assert typed == [settings.SAMPLE_AGAIN, *shown]
    database = Path(json.loads(run.pages[0].json.read_text())["settings"]["database"])
    assert database.is_relative_to(tmp_path)
    assert not database.exists()
    assert '<span class="tag">demo</span>' in run.index.read_text()
    assert history.runs(tmp_path / "reports")[0].demo
    assert history.series(tmp_path / "reports", "used_bytes") == []
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"verify.ipynb", "reports"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_kernel_and_no_page(tmp_path: Path, number: int) -> None:
    """A killed run cannot tidy its hidden directory; its kernels end, and what they started."""
    mark = f"9{os.getpid()}"  # seconds, and nobody else's
    cell = "import subprocess, tempfile\ntempfile.mkdtemp(prefix='nescord-ops-')\n"
    cell += f"subprocess.run(['sleep', '{mark}'])"
    name = make(tmp_path / "n.ipynb", cell)
    out = tmp_path / "reports"
    code = "import signal\nfrom pathlib import Path\nfrom nescord_ops import report\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
    code += f"report.run([{name!r}], out=Path({str(out)!r}))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment
    )
    wait_for(lambda: alive(mark))
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGINT:
        assert alive(mark) == []
        assert list(out.iterdir()) == []
        assert list(tmp_path.glob("nescord-ops-*")) == []
    wait_for(lambda: not alive(mark))
    wait_for(lambda: not alive(f"TMPDIR={tmp_path}", "environ"))
    assert not [entry for entry in out.iterdir() if publish.STAMP.match(entry.name)]
    assert not (out / "index.html").exists()


def test_a_run_leaves_nobody_to_be_collected(tmp_path: Path) -> None:
    """In a container orphans go to process 1, which is the bot and collects none."""
    name = make(tmp_path / "n.ipynb", "import subprocess\nsubprocess.Popen(['sleep', '99'])")
    code = "import ctypes, os\nfrom pathlib import Path\nfrom nescord_ops import kernel, report\n"
    code += "ctypes.CDLL(None).prctl(kernel._SUBREAPER, 1, 0, 0, 0)\n"
    code += f"report.run([{name!r}], out=Path({str(tmp_path / 'reports')!r}))\nos.wait()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.endswith("ChildProcessError: [Errno 10] No child processes\n")


def wait_for(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_settings_given_as_parameters_are_the_settings(demo: MakeDemo, tmp_path: Path) -> None:
    """And beat what is given as an option, as any parameter does."""
    made = demo()
    given = {"app_dir": str(made.app_dir)}
    elsewhere = {"app_dir": "/nowhere/at/all"}
    out = tmp_path / "reports"
    run = report.run(["cost"], options=elsewhere, parameters=given, out=out)
    document = json.loads(run.pages[0].json.read_text("utf-8"))
    assert document["settings"]["app_dir"] == str(made.app_dir)
    with pytest.raises(ReportError, match="a demo has its own app_dir"):
        report.run(["cost"], parameters=given, out=out, demo=True)
