"""Sample volumes for every test: one healthy one a session, and copies of it with faults."""

from __future__ import annotations

import dataclasses
import html.parser
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import pytest

from nescord_ops import demo as demos
from nescord_ops.demo import Demo
from nescord_ops.faults import FAULTS

# The same examples each time, however slow the machine: the default suite answers alike everywhere.
# What draws anew is `tests/bench/fuzz.py`, and any test with `--hypothesis-profile default`.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

MakeDemo = Callable[..., Demo]
_PREFIXES = ("NESCORD_OPS_", "RAILWAY_", "CHROMADB_")
_NAMES = (
    "DATABASE_URL",
    "EMBEDDING_DIMENSION",
    "DISCORD_TOKEN",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests reaches them."""
    for name in os.environ:
        if name.startswith(_PREFIXES) or name in _NAMES:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def base_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A healthy volume of 300 notes. Copy it, do not change it."""
    return demos.create(tmp_path_factory.mktemp("base") / "app", now=datetime.now(UTC))


@pytest.fixture
def demo(base_demo: Demo, tmp_path: Path) -> MakeDemo:
    """Return a factory: `demo("stale-vector")` is a copy of the healthy volume with that fault."""

    def make(*faults: str, directory: Path | None = None) -> Demo:
        target = directory or tmp_path / "app"
        shutil.copytree(base_demo.app_dir, target)
        made = dataclasses.replace(base_demo, app_dir=target)
        for name in faults:
            FAULTS[name].plant(made)
        return made

    return make


def leave_journal(file: Path, change: str, named: Path) -> None:
    """Kill a process amid a change of a database, and let the journal name another file.

    SQLite removes the super-journal that a hot journal names, whatever file that is.
    """
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size=5'); c.execute('BEGIN IMMEDIATE');"
        "c.execute(sys.argv[2]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(file), change], check=True)
    name = os.fsencode(named)
    with file.with_name(f"{file.name}-journal").open("ab") as journal:
        journal.write(struct.pack(">I", (1 << 30) // 4096 + 1) + name)
        journal.write(struct.pack(">II", len(name), sum(name)))
        journal.write(bytes.fromhex("d9d505f920a163d7"))


class Tags(html.parser.HTMLParser):
    """Every element and attribute of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
