"""A bot's checkout: which of its files are read, how far, and the rows that come of them.

Nothing outside is read through a link, only regular files of up to 1 MB are read, and what
cannot be read is a row that says so.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from nescord_ops import show, volume
from nescord_ops.manifests import (
    LIMIT_LINE,
    PARSERS,
    BrokenError,
    Parser,
    Row,
    dockerfile,
    text_lines,
    variables,
)

LIMIT_BYTES, LIMIT_LINES, LIMIT_ENTRIES = 1_000_000, 100_000, 5000
ENVIRONMENT = "the environment"
TEXT_FOLDERS = ("docs", "scripts", "bin", ".github/workflows")
TEXT_SUFFIXES = (".md", ".sh", ".yml", ".yaml", ".ps1")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkout:
    """A directory and the rows of the files in it."""

    root: Path
    rows: tuple[Row, ...]

    def of(self, kind: str, *names: str) -> list[Row]:
        """Return the rows of a kind, and of these names if any are given."""
        return [r for r in self.rows if r.kind == kind and (not names or r.name in names)]

    def variable(self, name: str) -> list[Row]:
        """Return where the bot gets a variable's value from: not a build's, not an example's."""
        found = self.of("variable", name)
        return [r for r in found if r.context not in ("ARG", "example") and r.value != ""]

    def has(self, *files: str) -> bool:
        """Whether one of these files was read."""
        return any(row.file in files for row in self.of("file"))


class _UnreadableError(Exception):
    """A file that is not looked at, and why."""


def read(root: Path, env_file: Path | None, environment: Mapping[str, str]) -> Checkout:
    """Given a checkout, the `.env` in use and the environment, return their rows.

    Reads at most 1 MB of a file, and documents and scripts until they have 100,000 lines. Never
    raises for what it reads.
    """
    rows = [Row("variable", ENVIRONMENT, 0, k, v) for k, v in environment.items()]
    for name, parser in PARSERS.items():
        rows += _rows(root, name, parser)
    given = [r.value for r in rows if r.name == "build.dockerfilePath" and isinstance(r.value, str)]
    rows += _rows(root, given[0] if given else "Dockerfile", dockerfile)
    if env_file and env_file != root / ".env":
        rows += _rows(env_file.parent, env_file.name, variables)
    limit = len(rows) + LIMIT_LINES
    texts, complete = _texts(root)
    if not complete:
        reason = f"more than {LIMIT_ENTRIES:,} entries"
        rows.append(Row("unread", "documents and scripts", 0, "text", reason))
    for path in texts:
        name = str(path.relative_to(root))
        if len(rows) > limit:
            rows.append(Row("unread", name, 0, "text", f"after {LIMIT_LINES:,} lines of others"))
        else:
            rows += _rows(root, name, text_lines)
    return Checkout(root, tuple(rows))


def _rows(root: Path, name: str, parser: Parser) -> list[Row]:
    """The rows of one file; none if it does not exist."""
    try:
        text = _contents(root, name)
    except _UnreadableError as error:
        return [Row("unread", name, 0, "text" if parser is text_lines else "", str(error))]
    if text is None:
        return []
    rows = [Row("file", name, 0, "", text.count("\n") + (not text.endswith("\n")))]
    try:
        rows.extend(parser(name, text))  # what was read before the damage stays
    except BrokenError as error:
        rows.append(Row("broken", name, error.line, "", str(error)))
    except (RecursionError, ValueError):  # Python's own limits: its stack, and digits of a number
        rows.append(Row("broken", name, 1, "", "nested too deeply, or a number too long"))
    return rows


def tracked(root: Path, name: str) -> bool | None:
    """Given a checkout and a file at its top, return whether git tracks it; None: cannot tell.

    Reads `.git/index` itself (git-scm.com/docs/index-format, versions 2 and 3): git would run
    what a hostile repository's configuration names. An index may lie in two files.
    """
    try:
        index = _bytes(root, ".git/index", 4 * LIMIT_BYTES)
    except _UnreadableError:
        return None
    if not index or index[:8] not in (b"DIRC\0\0\0\2", b"DIRC\0\0\0\3"):
        return None
    flags = b"[%b]%c(?s:..)?" % (bytes(range(0, 256, 16)), len(name))  # extended: two bytes more
    if re.search(flags + re.escape(name.encode()) + b"\0", index):
        return True
    return None if any((root / ".git").glob("sharedindex.*")) else False


def _bytes(root: Path, name: str, limit: int) -> bytes | None:
    """The bytes of a file inside `root`, or None; raise _UnreadableError for anything odd."""
    try:
        real = os.path.realpath(root / name)
        if not Path(real).is_relative_to(os.path.realpath(root)):
            raise _UnreadableError("leads out of the checkout")
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "has an impossible name"
        raise _UnreadableError(f"cannot be opened ({reason})") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _UnreadableError("is not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise _UnreadableError(f"is larger than {show.size(limit)!s}")
    return data


def _contents(root: Path, name: str) -> str | None:
    """The text of a file inside `root`, or None; raise _UnreadableError if it is not text."""
    data = _bytes(root, name, LIMIT_BYTES)
    if data is None:
        return None
    if b"\0" in data:
        raise _UnreadableError("has NUL bytes in it")
    if max(map(len, data.split(b"\n"))) > LIMIT_LINE:
        raise _UnreadableError(f"has a line of more than {LIMIT_LINE:,} bytes")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _UnreadableError("is not UTF-8 text") from error


def _texts(root: Path) -> tuple[list[Path], bool]:
    """Documents and scripts at the top and below the usual folders, and whether these are all."""
    folders = (root / name for name in TEXT_FOLDERS)
    below = itertools.chain.from_iterable(volume.walk(f) for f in folders if f.is_dir())
    top = sorted(entry for entry in root.iterdir() if not entry.is_dir())
    found = (*top, *sorted(path for path, _ in itertools.islice(below, LIMIT_ENTRIES)))
    texts = [p for p in found if p.suffix in TEXT_SUFFIXES or p.name == "Makefile"]
    return texts, next(below, None) is None
