"""Markup in every field that reaches a page stays text, in a real browser, with and without CSP."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from conftest import MakeDemo

from nescord_ops import backup, chroma, database, history, report, settings, store, storefile

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium"),
]
NAME = "'\"><img src=x onerror=window.__pwned=1><svg onload=window.__pwned=2>"  # of a file, too
TEXT = (
    f"{NAME}</pre></script><script>window.__pwned=3;console.log('pwned')</script>"
    "<img src=http://127.0.0.1:9/request><iframe src=javascript:alert(4)></iframe>"
    "<a href=javascript:alert(5) autofocus onfocus=alert(6)>x</a><style>@import 'http://127.0.0.1:9'"
    "</style>{{7*7}}${alert(8)} [x](javascript:alert(9)) <math><mtext></math>"
)
SEEN = """() => [window.__pwned ?? null, [...document.querySelectorAll('*')].flatMap(e =>
  [...e.attributes].filter(a => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value))
    .map(a => `${e.tagName} ${a.name}=${a.value}`)).concat(
  [...document.querySelectorAll('script, iframe, object, embed, form, base, link:not([rel=icon])')]
    .map(e => e.outerHTML.slice(0, 200)))]"""


def poison_notes(path: Path) -> None:
    """Put markup into every text of every table, and into names of tables and columns."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in sorted(database.table_names(db)):
            if table.startswith("sqlite_") or "fts" in table:
                continue
            for _, column, kind, _, _, key in db.execute(f"PRAGMA table_info({table})").fetchall():
                if kind == "TEXT" and not key:
                    values = (f"{TEXT}{column}", 3)
                    db.execute(
                        f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid % ? = 0", values
                    )
        db.execute(
            "UPDATE OR IGNORE knowledge_notes SET id = ? || id WHERE rowid IN (1, 2)", (TEXT,)
        )
        db.execute("UPDATE sync_metadata SET note_id = ? WHERE rowid = 5", (TEXT,))
        db.execute(f"CREATE TABLE {database.quote(TEXT)} ({database.quote(NAME)} TEXT)")
        db.execute(f"INSERT INTO {database.quote(TEXT)} VALUES (?)", (TEXT,))
        db.execute("DELETE FROM schema_migrations WHERE version = 7")


def poison_vectors(root: Path) -> None:
    """The same for Chroma's texts, ids and collections, and for a file in an index."""
    index = next(path for path in root.iterdir() if path.is_dir())
    (index / f"{NAME}.bin").touch()
    os.truncate(index / f"{NAME}.bin", 4 << 30)
    with contextlib.closing(sqlite3.connect(root / chroma.DATABASE, isolation_level=None)) as db:
        db.execute("UPDATE embedding_metadata SET string_value = ? WHERE id % 3 = 0", (TEXT,))
        db.execute(
            "UPDATE OR IGNORE embeddings SET embedding_id = ? WHERE id = 4", (f"note_{TEXT}",)
        )
        db.execute("UPDATE OR IGNORE embeddings SET embedding_id = ? WHERE id = 7", (TEXT,))
        db.execute("UPDATE collections SET name = ?, config_json_str = ?, schema_str = NULL",
                   (f"{TEXT}mine", json.dumps({"hnsw": {"space": TEXT}})))  # fmt: skip


def poison_logs(path: Path) -> None:
    stamp = f"{datetime.now(UTC):%F %T}"
    levels = ("ERROR", "WARNING", "CRITICAL", TEXT)
    lines = [f"{stamp} | {level:8} | {NAME} | {TEXT}{n}" for n, level in enumerate(levels)]
    lines += [f"Traceback (most recent call last):\n  File\n{TEXT}: {TEXT}", TEXT,
              f"{stamp} | ERROR    | x | Failed to sync note {TEXT}: locked"]  # fmt: skip
    lines.append(json.dumps({"message": TEXT, "timestamp": TEXT, "severity": TEXT}))
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def poison_checkout(root: Path) -> None:
    """Deployment files whose every key and value is markup."""
    (root / "docs").mkdir()
    (root / "railway.json").write_text(
        json.dumps(
            {
                TEXT: TEXT,
                "build": {TEXT: 1, "builder": TEXT, "dockerfilePath": "Dockerfile"},
                "deploy": {
                    "requiredMountPath": TEXT,
                    "startCommand": TEXT,
                    "numReplicas": TEXT,
                    TEXT: [TEXT],
                },
            }
        )
    )
    (root / "railway.toml").write_text(f"['{NAME[2:]}']\nx = 1\n[deploy]\nstartCommand = 5\n{NAME}")
    quoted = TEXT.replace("\n", " ")
    (root / "Dockerfile").write_text(
        f"FROM {quoted}\nENV DATABASE_URL=sqlite:///{quoted}\nVOLUME {quoted}\nUSER {quoted}\n"
        f"RUN chown nobody {quoted}\nCMD {quoted}\n"
    )
    (root / "Procfile").write_text(f"{NAME}: sleep infinity {TEXT}\n")
    (root / "docs" / f"{NAME}.md").write_text(f"railway volume backup {TEXT}\nrailway run {TEXT}\n")
    (root / ".railway").mkdir()
    (root / ".railway" / "railway.ts").write_text(
        f'volumeMounts: {{ "/{NAME}": a, "/b": b }}, DISCORD_TOKEN: "{quoted}"'
    )


def poison_store(path: Path, generation: str) -> None:
    """What is written down about a backup, sealed anew by whoever altered it."""
    with storefile.open_store(path) as opened:
        at = datetime.now(UTC).isoformat()
        tried = {"at": at, "outcome": "failed", "reason": TEXT}
        facts = {"checked": tried, "drilled": tried, "offsite": {
            "url": TEXT, "stream_bytes": 5, "sha256": "0" * 64, "encrypted": True, "pushed_at": at,
            "checked_at": at, "proven_at": None, "fault": TEXT}}  # fmt: skip
        store.note(opened, generation, facts)


def poison_reports(target: Path, kit: dict[str, Any]) -> None:
    """An earlier run that the history does not know, and a history with rows of its own."""
    run = target / "20260801T120000Z"
    run.mkdir(parents=True)
    check = {**kit["document"]["checks"][0], "name": TEXT, "summary": TEXT, "hint": TEXT,
             "status": "unknown", "value": TEXT, "unit": TEXT, "limit": TEXT}  # fmt: skip
    document = {**kit["document"], "name": TEXT, "checks": [check], "status": "unknown"}
    document["settings"] = {"database": TEXT}
    (run / f"{NAME}.json").write_text(json.dumps(document))
    (run / f"{NAME}.html").write_text("")
    known = target / "20260802T120000Z"
    known.mkdir()
    at = datetime(2026, 8, 2, 12, tzinfo=UTC)
    rows = (history.PageRow(NAME, "fail", TEXT),)
    document = {**kit["document"], "settings": {"database": NAME}}
    history.record(target, history.RunRow(known.name, at, "fail", True, rows), [document])


@dataclasses.dataclass
class Visit:
    """What a browser did with a page that it should only have shown."""

    asked: list[str]
    said: list[str]
    pwned: object
    found: list[str]
    text: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield started
        started.close()


def visit(browser: Any, path: Path) -> Visit:
    """Open a page, everything unfolded, every link under the mouse; return what happened."""
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.evaluate(
        "document.querySelectorAll('*').forEach(e => { for (const kind of"
        " ['mouseover', 'focus', 'animationstart']) e.dispatchEvent(new Event(kind)) })"
    )
    page.wait_for_timeout(300)
    pwned, found = page.evaluate(SEEN)
    text = page.inner_text("body")
    page.close()
    ours = path.as_uri()
    return Visit(
        [u for u in asked if u != ours and not u.startswith("data:")], said, pwned, found, text
    )


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fuzzing.kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def poisoned(
    base_demo: Any, kit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> report.Run:
    """All notebooks on a volume that holds markup wherever there is text."""
    app = tmp_path_factory.mktemp("hostile") / NAME / "app"
    shutil.copytree(base_demo.app_dir, app)
    made = dataclasses.replace(base_demo, app_dir=app)
    created = backup.create(settings.load(app_dir=app)).backup
    assert created
    poison_store(made.backup_dir / "store.sqlite3", created.id)
    poison_notes(made.database)
    poison_vectors(made.chroma_dir)
    poison_logs(made.log_file)
    poison_checkout(app)
    stray = made.database.with_name(f"{made.database.name}?{NAME}")
    shutil.copyfile(made.database, stray)
    with made.env_file.open("a") as file:
        quoted = TEXT.replace("'", "")
        for name in ("CHROMADB_DISTANCE_METRIC", "RAILWAY_VOLUME_NAME", "NESCORD_OPS_OFFSITE_URL",
                     "CHROMADB_COLLECTION_NAME"):  # fmt: skip
            file.write(f"{name}='{quoted}'\n")
        file.write(f"{NAME}\n")
    target = app.parent / "reports"
    poison_reports(target, kit)
    other = app / f"{NAME}.log"
    shutil.copyfile(made.log_file, other)
    return report.run(
        options={"app_dir": str(app), "env_file": str(made.env_file)},
        parameters={"log_file": str(other), "repo": str(app), "keep": 1},
        out=target,
    )


def pages(run: report.Run) -> list[Path]:
    return [*(page.html for page in run.pages), run.index]


def test_nothing_of_the_volume_runs_or_asks_in_a_browser(
    poisoned: report.Run, browser: Any
) -> None:
    assert len(poisoned.pages) >= 6
    for path in pages(poisoned):
        seen = visit(browser, path)
        assert (seen.asked, seen.said, seen.pwned, seen.found) == ([], [], None, []), path.name
        assert "onerror=window.__pwned=1" in seen.text, f"{path.name} shows none of it"


def test_the_escaping_holds_without_the_policy(
    poisoned: report.Run, browser: Any, tmp_path: Path
) -> None:
    for path in pages(poisoned):
        bare = re.sub(r"<meta [^>]*Content-Security-Policy[^>]*>", "", path.read_text())
        assert "Content-Security-Policy" not in bare
        (tmp_path / "bare.html").write_text(bare)
        seen = visit(browser, tmp_path / "bare.html")
        assert (seen.asked, seen.said, seen.pwned, seen.found) == ([], [], None, []), path.name


def test_what_jupyterlab_shows_of_each_result_is_text(
    poisoned: report.Run, browser: Any, tmp_path: Path
) -> None:
    """JupyterLab puts `text/html` into its own page, where no policy of ours is."""
    for page in poisoned.pages:
        book = json.loads(page.notebook.read_text())
        outputs = [o for cell in book["cells"] for o in cell.get("outputs", ())]
        shown = ["".join(o.get("data", {}).get("text/html", "")) for o in outputs]
        figures = ["".join(o.get("data", {}).get("image/svg+xml", "")) for o in outputs]
        assert any(shown)
        (tmp_path / "lab.html").write_text(f"<!doctype html><body>{''.join(shown + figures)}")
        seen = visit(browser, tmp_path / "lab.html")
        assert (seen.asked, seen.said, seen.pwned, seen.found) == ([], [], None, []), page.name


def test_the_browser_would_have_noticed(browser: Any, tmp_path: Path) -> None:
    """The bait bites where nothing is escaped."""
    (tmp_path / "bait.html").write_text(f"<!doctype html><body>{TEXT}")
    seen = visit(browser, tmp_path / "bait.html")
    assert seen.pwned
    assert len(seen.found) > 4
    assert "http://127.0.0.1:9/request" in seen.asked
    assert "pwned" in seen.said


def test_an_error_with_what_was_given_in_it_is_text(
    browser: Any, demo: MakeDemo, tmp_path: Path
) -> None:
    """A notebook that cannot go on shows an error, in its page and in the index."""
    made = demo()
    for number, parameters in enumerate(({"symptom": TEXT}, {f"x{NAME}": TEXT}, {"depth": TEXT})):
        run = report.run(
            ["troubleshoot"],
            options={"app_dir": str(made.app_dir)},
            parameters=parameters,
            out=tmp_path / str(number),
        )
        for path in pages(run):
            seen = visit(browser, path)
            assert (seen.asked, seen.said, seen.pwned, seen.found) == ([], [], None, []), number
        assert "window.__pwned" in visit(browser, run.pages[0].html).text
