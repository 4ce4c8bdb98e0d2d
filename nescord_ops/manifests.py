"""Deployment files as rows: what each line sets, runs or says. Text goes in, nothing is opened.

Rules judge rows and never see a file's format. The text is hostile: nothing in it runs, nothing
is interpolated but a Dockerfile's own arguments, and a message never holds a part of it.
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LIMIT_LINE = 10_000
_GROWTH_CHARS = 100_000  # of a whole Dockerfile by what its arguments stand for
_PATH_CHARS = 200  # of a key; no key of Railway's is as long, and each below would hold it
EXAMPLE, IAC = ".env.example", ".railway/railway.ts"
INSTRUCTIONS = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL"
    "|STOPSIGNAL|USER|VOLUME|WORKDIR"
)
# Every pattern takes time in proportion to its text: what has no end ends with the line or file.
_STRING = r"\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|`[^`]*`?"
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*(?:.*?\*/|.*)", re.DOTALL)
_JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:\n]')
_TOML_LINE = re.compile(r"\s*(?:\[+([^\[\]]+)\]+|([\w.\"'-]+)\s*=)")
_TOML_WHERE = re.compile(r"at line (\d+)")
_TS_VARIABLE = re.compile(rf"\b([A-Z][A-Z0-9_]+)[\"']?\s*:\s*(?:({_STRING})|\w)")
_TS_MOUNTS = re.compile(r"\bvolumeMounts\s*:\s*\{((?:[^{}]|\{[^{}]{0,500}\}){0,2000})\}")
_TS_MOUNT = re.compile(r"[\"'`](/[^\"'`]*)[\"'`]\s*:")
_ASSIGNMENT = re.compile(r"(?<!\w)(\w+)=(\"(?:\\.|[^\"\\])*\"?|'[^']*'?|\S*)")
_COMMAND = re.compile(r"(?:\\\n|[^&;|\n])+")
_HEREDOC = re.compile(r"(?<!\S)\d*<<-?[\"']?(\w+)")  # a word of its own, as for Docker
_REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}\n]{0,200}))?\})")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One thing that a file says. `kind` tells what `name` and `value` are:

    config: a key's path and its value (`context`: the path with its environment); document: a whole
    config; docker: an instruction and its text (`context`: the stage's image); variable: a name and
    its value, None where only Railway knows it (`context`: what kind of committed file says so,
    empty for `.env` and the environment); mounts: the paths of one service; command: a start
    command; nixpacks: nothing; text: a line; file: the number of lines read; broken and unread:
    the reason.
    """

    kind: str
    file: str
    line: int
    name: str
    value: Any
    context: str = ""

    @property
    def where(self) -> str:
        """File and line, as people and editors write them."""
        return f"{self.file}:{self.line}" if self.line else self.file


class BrokenError(Exception):
    """A file that its reader refuses: the line and what is wrong there."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


Parser = Callable[[str, str], Iterator[Row]]


def _line_finder(text: str, first: int = 1) -> Callable[[int], int]:
    """Given a text that begins on line `first`, return what tells the line of a position."""
    ends = [match.start() for match in re.finditer("\n", text)]
    return lambda position: first + bisect.bisect_left(ends, position)


def text_lines(file: str, text: str) -> Iterator[Row]:
    """Rows of a document or script: its lines, but for empty ones."""
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            yield Row("text", file, line, "", content)


def variables(file: str, text: str) -> Iterator[Row]:
    """Rows of a `.env` file as python-dotenv reads it, nothing interpolated.

    A line that it skips is `broken`.
    """
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        written = binding.original.string
        line = binding.original.line + written[: -len(written.lstrip()) or None].count("\n")
        if binding.error or (binding.key and binding.value is None):
            yield Row("broken", file, line, "skipped", "not NAME=VALUE, and skipped by the bot")
        elif binding.key:
            context = "example" if file == EXAMPLE else ""
            yield Row("variable", file, line, binding.key, binding.value, context)


def _json(file: str, text: str) -> Iterator[Row]:
    """Rows of railway.json. Comments are `broken`, and the rest is read without them."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        bare = _without_comments(text)
        try:
            document = json.loads(bare)
        except json.JSONDecodeError:
            raise BrokenError(error.lineno, f"not JSON: {error.msg}") from error
        yield Row("broken", file, error.lineno, "comment", "JSON has no comments")
        text = bare
    yield from _config(file, document, _json_lines(text))


def _without_comments(text: str) -> str:
    """JavaScript without its comments, every line where it was."""
    return _COMMENT.sub(lambda m: m[1] or re.sub(r"[^\n]", " ", m[0]), text)


def _json_lines(text: str) -> dict[tuple[str, ...], int]:
    """Given valid JSON, return the line of each key by its path."""
    found: dict[tuple[str, ...], int] = {}
    stack: list[str | int] = []
    line, string = 1, (1, "")
    for match in _JSON_TOKEN.finditer(text):
        seen = match[0]
        if seen == "\n":
            line += 1
        elif seen in "{[":
            stack.append(0 if seen == "[" else "")
        elif seen in "}]":
            stack.pop()
        elif seen == ":":
            stack[-1] = string[1]
            found[tuple(map(str, stack))] = string[0]
        elif seen == ",":
            if isinstance(stack[-1], int):
                stack[-1] += 1
        else:
            string = (line, json.loads(seen))
    return found


def _toml(file: str, text: str) -> Iterator[Row]:
    """Rows of railway.toml."""
    yield from _config(file, _toml_document(text), _toml_lines(text))


def _nixpacks(file: str, text: str) -> Iterator[Row]:
    """Rows of nixpacks.toml: the file itself, its variables and its start command."""
    document, lines = _toml_document(text), _toml_lines(text)
    yield Row("nixpacks", file, 1, "", None)
    for section, kind in (("variables", "variable"), ("start", "command")):
        table = document.get(section)
        for key, value in table.items() if isinstance(table, dict) else ():
            if kind == "variable" or key == "cmd":
                line = lines.get((section, key), 1)
                yield Row(kind, file, line, key, str(value), "nixpacks")


def _toml_document(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = _TOML_WHERE.search(str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise BrokenError(line, "not TOML") from error


def _toml_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each key by its path, as far as keys stand on lines of their own."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for line, content in enumerate(text.split("\n"), 1):
        if match := _TOML_LINE.match(content):
            names = tuple(name.strip(" \"'") for name in (match[1] or match[2]).split("."))
            section = names if match[1] else section
            found.setdefault(names if match[1] else (*section, *names), line)
    return found


def _config(file: str, document: Any, lines: Mapping[tuple[str, ...], int]) -> Iterator[Row]:
    """Rows of a parsed config: every key, those of one environment as if they were for all."""

    def walk(value: Any, path: tuple[str, ...], above: int) -> Iterator[Row]:
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            here = (*path, str(key))
            line, where = lines.get(here, above), ".".join(here)
            if len(where) > _PATH_CHARS:
                continue
            name = ".".join(here[2:]) if here[0] == "environments" else where
            yield Row("config", file, line, name, item, where)
            if name == "deploy.startCommand" and isinstance(item, str):
                yield Row("command", file, line, "", item)
            if isinstance(item, dict | list):
                yield from walk(item, here, line)

    yield Row("document", file, 1, "", document)
    if isinstance(document, dict):
        yield from walk(document, (), 1)


def dockerfile(file: str, text: str) -> Iterator[Row]:
    """Rows of a Dockerfile: instructions, of RUN each command; variables; the start command.

    Knows continuation lines, comments, heredocs and plain `$NAME`, as docs.docker.com has them.
    The USER that counts is the last one of the last stage.
    """
    known: dict[str, str] = {}
    image, user, grown = "", None, 0
    for line, word, written in _instructions(text):
        body = written
        if len(body) < LIMIT_LINE and grown < _GROWTH_CHARS:
            body = _REFERENCE.sub(lambda m: known.get(m[1] or m[2], m[3] or m[0]), body)
            grown += len(body) - len(written)
        joined = " ".join(body.replace("\\\n", " ").split())
        if word == "RUN":
            yield from _commands(file, line, body, image)
        elif word == "USER":
            user = Row("docker", file, line, word, joined)
        else:
            yield Row("docker", file, line, word, joined, image)
        if word == "FROM":
            image, user = joined.lower(), None
        elif word in ("CMD", "ENTRYPOINT"):
            yield Row("command", file, line, "", " ".join(re.split(r"[\[\]\", ]+", joined)).strip())
        elif word in ("ENV", "ARG"):
            old_form = word == "ENV" and "=" not in joined.split(" ")[0]
            pairs = [joined.partition(" ")[::2]] if old_form else _ASSIGNMENT.findall(joined)
            for name, value in pairs:
                known[name] = value.strip("\"'")[:200]
                yield Row("variable", file, line, name, value.strip("\"'"), word)
    if not image:
        raise BrokenError(1, "no FROM: not a Dockerfile")
    if user:
        yield user


def _commands(file: str, line: int, body: str, image: str) -> Iterator[Row]:
    """Rows of one RUN: each shell command with its own line."""
    line_of = _line_finder(body, line)
    for match in _COMMAND.finditer(body):
        command = match[0].lstrip("\\\n ")
        words = " ".join(command.replace("\\\n", " ").split())
        yield Row("docker", file, line_of(match.end() - len(command)), "RUN", words, image)


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, instruction and text of each instruction; comments inside it become empty lines."""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        content = lines[number].strip()
        number, start = number + 1, number + 1
        if not content or content.startswith("#"):
            continue
        word, body = (*content.split(None, 1), "")[:2]
        if not INSTRUCTIONS.fullmatch(word.upper()):
            raise BrokenError(start, "no instruction of a Dockerfile begins like that")
        parts = [body]
        while parts[-1].endswith("\\") and number < len(lines):
            more = lines[number].strip()
            parts.append("\\" if not more or more.startswith("#") else more)
            number += 1
        ends = _HEREDOC.findall("\n".join(parts)) if word.upper() in ("RUN", "COPY", "ADD") else ()
        for end in ends:
            while number < len(lines) and lines[number].strip() != end:
                parts.append(lines[number])
                number += 1
            if number == len(lines):
                raise BrokenError(start, "this heredoc has no end")
            number += 1
        yield start, word.upper(), "\n".join(parts)


def _typescript(file: str, text: str) -> Iterator[Row]:
    """Rows of `.railway/railway.ts`: its variables and the mounts of each service.

    Read by pattern, not by a compiler: what a program computes is not seen.
    """
    text = _without_comments(text)
    line_of = _line_finder(text)
    for match in _TS_VARIABLE.finditer(text):
        value = match[2][1:-1] if match[2] else None
        yield Row("variable", file, line_of(match.start()), match[1], value, "iac")
    mounts = [(line_of(m.start()), _TS_MOUNT.findall(m[1])) for m in _TS_MOUNTS.finditer(text)]
    for line, paths in mounts or [(1, [])]:
        yield Row("mounts", file, line, "", tuple(paths))


def _procfile(file: str, text: str) -> Iterator[Row]:
    """Rows of a Procfile: the command behind each name."""
    for line, content in enumerate(text.split("\n"), 1):
        if ":" in content and not content.lstrip().startswith("#"):
            yield Row("command", file, line, "", content.partition(":")[2].strip())


PARSERS: Mapping[str, Parser] = {
    "railway.json": _json,
    "railway.toml": _toml,
    "nixpacks.toml": _nixpacks,
    ".env": variables,
    EXAMPLE: variables,
    "Procfile": _procfile,
    IAC: _typescript,
}
