"""Where everything lies, resolved once into one frozen object that travels whole.

Precedence: explicit argument > environment > `.env` file > NescordBot's own default. The bot's
variables keep the bot's names (README of NescordBot; `config.py` of September 2025), ours start
with `NESCORD_OPS_`. Secrets are looked at for presence only and are never kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
import shlex
import stat
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nescord_ops.errors import SettingsError
from nescord_ops.results import Result

Depth = Literal["quick", "full"]
SECRETS = ("DISCORD_TOKEN", "OPENAI_API_KEY", "GEMINI_API_KEY")
# What a shell may hold for one volume, and a sample or another volume must not see.
OF_A_VOLUME = ("CHROMADB_", "RAILWAY_", "NESCORD_OPS_", "DATABASE_URL", "EMBEDDING_DIMENSION")
# Addresses that are secrets: never in the settings, nor in a kernel's environment.
OUR_SECRETS = ("NESCORD_OPS_NOTIFY_URL", "NESCORD_OPS_PING_URL")
SHOWN = ("CHROMADB_", "DATABASE_URL", "EMBEDDING_DIMENSION", "NESCORD_OPS_", "RAILWAY_VOLUME_")
ENV_FILE_BYTES = 1_000_000
REFERRING_CHARS = 4096  # a value with `${NAME}` in it: each may double the one before
# What the command line's options are called in the environment.
VARIABLES = {
    "app_dir": "NESCORD_OPS_APP_DIR",
    "env_file": "NESCORD_OPS_ENV_FILE",
    "database_url": "DATABASE_URL",
    "chroma_dir": "CHROMADB_PERSIST_DIRECTORY",
}
SQLITE_PREFIX = "sqlite:///"
START_HINT = (
    "set DATABASE_URL and CHROMADB_PERSIST_DIRECTORY, or name the bot's directory with --app-dir; "
    "to try it first: nescord-ops report --demo, or nescord-ops demo DIR"
)
SAMPLE = "sample"  # where a newcomer makes the volume again that a report of a sample was about
SAMPLE_GONE = (
    "This was a sample volume, which is removed. To try the commands, make it again in a directory"
    f" ./{SAMPLE}:"
)
SAMPLE_AGAIN = f"nescord-ops demo {SAMPLE}"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings(Result):
    """Every place and threshold of one run; paths are absolute, sizes in the unit of their name.

    `database` is the file that the bot really opens, `database_meant` the one that its operator
    probably meant where the two differ (facts: the bot strips `sqlite:///` and nothing else).
    """

    app_dir: Path
    env_file: Path | None
    database_url: str
    database: Path
    database_meant: Path | None
    chroma_dir: Path
    collection: str
    distance: str
    dimension: int
    backup_dir: Path
    reports_dir: Path
    log_file: Path
    volume_mount: Path | None
    volume_name: str
    volume_gb: float | None
    present: Mapping[str, bool]
    offsite_url: str = dataclasses.field(default="", repr=False)  # it may hold a password
    age_recipient: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, for reports; there is no secret in them."""
        from nescord_ops.checks import plain

        result = plain(dataclasses.replace(self, offsite_url=masked(self.offsite_url)))
        assert isinstance(result, dict)
        return result

    def _repr_html_(self) -> str:
        from nescord_ops import show

        rows = [
            (name, "not set" if value in (None, "") else str(value))
            for name, value in self.to_dict().items()
            if name != "present"
        ]
        table = show.table(("Setting", "Resolved to"), rows, css="settings", fold=False)
        return f"<details><summary>Settings: where this looked</summary>{table}</details>"


def opened_by_bot(url: str, app_dir: Path) -> tuple[Path, Path | None]:
    """Given DATABASE_URL, return the file that the bot opens and the one probably meant, or None.

    The bot removes the ten characters `sqlite:///` and uses the rest as a path relative to its
    working directory, query string included (measured, NescordBot of September 2025). Raise
    SettingsError if the URL is no SQLite URL; the URL itself may hold a password and is not shown.
    """
    scheme = url.split(":", 1)[0] if ":" in url else ""
    if not url.startswith(SQLITE_PREFIX):
        shown = f"a {scheme!r} URL" if scheme.isalnum() else "no URL"
        raise SettingsError(
            f"DATABASE_URL is {shown}, and NescordBot opens SQLite files only",
            "set it to sqlite:////app/data/nescordbot.db (four slashes: an absolute path)",
        )
    rest = url.removeprefix(SQLITE_PREFIX)
    if not rest or "\0" in rest:
        raise SettingsError(
            "DATABASE_URL names no file", "set it to sqlite:////app/data/nescordbot.db"
        )
    opened = _absolute(rest, app_dir)
    path = rest.split("?", 1)[0]
    if not path.startswith("/"):
        if Path("/", path).is_relative_to(app_dir):
            path = f"/{path}"
        elif Path(path).parts[:1] == (app_dir.name,):
            path = str(app_dir.parent / path)
    meant = _absolute(path, app_dir)
    return opened, None if meant == opened else meant


def load(
    *,
    app_dir: str | Path | None = None,
    env_file: str | Path | None = None,
    database_url: str | None = None,
    chroma_dir: str | Path | None = None,
    backup_dir: str | Path | None = None,
    reports_dir: str | Path | None = None,
    required: bool = True,
) -> Settings:
    """Return the settings of this installation; an empty argument counts as not given.

    Reads the environment and one `.env` file (`env_file`, else the one in the bot's directory).
    Raise SettingsError if nothing is configured and the bot's default places do not exist (unless
    not `required`: a checkout has no data), or if a value makes no sense.
    """
    app = _app_dir(app_dir)
    file = _env_file(env_file, app)
    values = _environment(file)
    explicit = {
        "DATABASE_URL": database_url,
        "CHROMADB_PERSIST_DIRECTORY": chroma_dir,
        "NESCORD_OPS_BACKUP_DIR": backup_dir,
        "NESCORD_OPS_REPORTS_DIR": reports_dir,
    }
    values |= {name: str(value) for name, value in explicit.items() if value}
    for name, value in values.items():
        if "\0" in value and name not in SECRETS:
            raise SettingsError(f"{name} has a NUL byte in it", f"correct {name}")
    url = values.get("DATABASE_URL") or "sqlite:///data/nescordbot.db"
    database, meant = opened_by_bot(url, app)
    chroma = _absolute(values.get("CHROMADB_PERSIST_DIRECTORY") or "data/chromadb", app)
    named = {"DATABASE_URL", "CHROMADB_PERSIST_DIRECTORY"} & values.keys()
    if required and not (named or database.exists() or chroma.exists()):
        raise SettingsError(
            f"nothing is configured: no DATABASE_URL, no {database}, no {chroma}", START_HINT
        )
    mount = values.get("RAILWAY_VOLUME_MOUNT_PATH")
    return Settings(
        app_dir=app,
        env_file=file,
        database_url=url,
        database=database,
        database_meant=meant,
        chroma_dir=chroma,
        collection=values.get("CHROMADB_COLLECTION_NAME", "nescord_knowledge"),
        distance=values.get("CHROMADB_DISTANCE_METRIC", "cosine"),
        dimension=int(_number("EMBEDDING_DIMENSION", values.get("EMBEDDING_DIMENSION", "768"))),
        backup_dir=_absolute(
            values.get("NESCORD_OPS_BACKUP_DIR") or str((meant or database).parent / "backups"), app
        ),
        reports_dir=Path(values.get("NESCORD_OPS_REPORTS_DIR") or "reports").absolute(),
        log_file=_absolute(values.get("NESCORD_OPS_LOG_FILE") or "logs/bot.log", app),
        volume_mount=Path(mount) if mount else None,
        volume_name=values.get("RAILWAY_VOLUME_NAME", ""),
        volume_gb=(
            _number("NESCORD_OPS_VOLUME_GB", values["NESCORD_OPS_VOLUME_GB"])
            if "NESCORD_OPS_VOLUME_GB" in values
            else None
        ),
        present={name: name in values for name in SECRETS},
        offsite_url=values.get("NESCORD_OPS_OFFSITE_URL", ""),
        age_recipient=_recipient(values.get("NESCORD_OPS_AGE_RECIPIENT", "")),
    )


def addresses(
    *, app_dir: str | Path | None = None, env_file: str | Path | None = None
) -> dict[str, str]:
    """Return the variables of `OUR_SECRETS` that are set, from the environment or the `.env` file.

    Where the settings make no sense, from the environment alone: that is to be told too.
    """
    values: Mapping[str, str] = os.environ
    with contextlib.suppress(SettingsError):
        values = _environment(_env_file(env_file, _app_dir(app_dir)))
    return {name: values[name] for name in OUR_SECRETS if values.get(name)}


def _app_dir(given: str | Path | None) -> Path:
    """The bot's working directory: argument, NESCORD_OPS_APP_DIR, /app where it exists, here."""
    named = str(given or os.environ.get("NESCORD_OPS_APP_DIR") or "")
    if "\0" in named:
        raise SettingsError("the bot's directory has a NUL byte in its name", START_HINT)
    default = Path("/app") if Path("/app").is_dir() else Path.cwd()
    app = Path(named).expanduser().absolute() if named else default
    if not app.is_dir():
        raise SettingsError(f"the bot's directory {app} is not a directory", START_HINT)
    return app


def _env_file(given: str | Path | None, app: Path) -> Path | None:
    """The `.env` file: the one named, which must exist, else the bot's, which need not."""
    given = given or os.environ.get("NESCORD_OPS_ENV_FILE")
    file = Path(given).expanduser().absolute() if given else app / ".env"
    try:
        seen = file.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        seen = None
    except OSError as error:
        text = f"{file} cannot be read: {error.strerror}"
        raise SettingsError(text, "run it as the bot's user or root") from error
    if seen is None or not stat.S_ISREG(seen.st_mode):
        if given:
            raise SettingsError(f"{file} is not a file", "name an existing file with --env-file")
        return None
    if seen.st_size > ENV_FILE_BYTES:
        raise SettingsError(f"{file} is larger than 1 MB", "name the bot's file with --env-file")
    return file


def _environment(file: Path | None) -> dict[str, str]:
    """Every variable that is set and not empty, secrets as presence only."""
    try:
        written = _written(file) if file else {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file} cannot be read: {error}", "make it a readable UTF-8 text file"
        ) from error
    values = {**written, **os.environ}
    found = {name: value for name, value in values.items() if value and value.strip()}
    secrets = [found[name] for name in SECRETS if len(found.get(name, "")) >= 8]
    for name, value in found.items():
        if name.startswith(SHOWN) and any(secret in value for secret in secrets):
            raise SettingsError(f"{name} has a key or token in it", f"correct {name}")
    return {name: "set" if name in SECRETS else value for name, value in found.items()}


def _written(file: Path) -> dict[str, str | None]:
    """Read a `.env` file as the bot does, with python-dotenv, in bounded time and memory.

    Raise SettingsError for a value that grows by its references, OSError or UnicodeDecodeError.
    """
    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    found: dict[str, str | None] = {}
    known: ChainMap[str, str | None] = ChainMap(found, os.environ)  # type: ignore[arg-type]
    for binding in parse_stream(io.StringIO(file.read_text("utf-8"))):
        value = binding.value
        if value and "${" in value:
            if len(value) <= REFERRING_CHARS:
                value = "".join(atom.resolve(known) for atom in parse_variables(value))
            if len(value) > REFERRING_CHARS:
                text = f"{binding.key} in {file} is too long for a value that refers to others"
                raise SettingsError(text, f"correct {binding.key}")
        if binding.key is not None:
            found[binding.key] = value
    return found


def _number(name: str, text: str) -> float:
    """Given a positive number as text, return it; raise SettingsError for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise SettingsError(
            f"{name} is {text!r}, not a positive number", f"correct or unset {name}"
        )
    return number


def command(places: Mapping[str, Any]) -> str:
    """Given settings as a dictionary, return how `nescord-ops` is called for them from anywhere."""
    app_dir, env_file = places.get("app_dir"), places.get("env_file")
    words = ["nescord-ops"]
    if not app_dir:
        return words[0]
    words += ["--app-dir", str(app_dir)]
    if env_file and Path(env_file) != Path(app_dir, ".env"):
        words += ["--env-file", str(env_file)]
    try:
        found = load(app_dir=app_dir, env_file=env_file).to_dict()
    except SettingsError:
        found = {}
    if any(found.get(name) != places.get(name) for name in ("database", "chroma_dir")):
        words += ["--database-url", str(places.get("database_url"))]
        words += ["--chroma-dir", str(places.get("chroma_dir"))]
    return shlex.join(words)


def masked(url: str) -> str:
    """Given a URL, return it without its user, password and query, which may be secret."""
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    rest, _, query = rest.partition("?")
    if "@" in query:  # the question mark may be a password's
        return f"{scheme}://***"
    _, found, place = rest.rpartition("@")
    return f"{scheme}://{'***@' if found else ''}{place}{'?***' if query else ''}"


def _recipient(text: str) -> str:
    """Given age recipients, return them; raise SettingsError, which does not show them, if not.

    Whoever put the secret key there must not find it in a report.
    """
    if all(re.fullmatch("age1[0-9a-z]+", part) for part in re.split(r"[\s,]+", text) if part):
        return text
    raise SettingsError(
        "NESCORD_OPS_AGE_RECIPIENT is no age recipient, which begins with age1",
        "nescord-ops offsite keygen makes an identity and prints its recipient",
    )


def _absolute(path: str, base: Path) -> Path:
    """Given a path as the bot sees it, return it absolute and normalised, links not followed."""
    return Path(os.path.normpath(base / path))
