"""Tell people how a report ended: a message where they are, and a ping that would be missed.

Discord webhooks are posted here rather than by apprise, whose plugin is fixed to discord.com and
sends `allow_mentions`, which Discord does not know: its `allowed_mentions` keeps text from the
volume from paging anybody. Every other service is apprise's. Addresses are secrets: nothing here
shows one, nor an exception that may have it in its text. A service that is down, slow or talks
nonsense costs a line of warning and `TOTAL_SECONDS`, and never changes a report's result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import logging
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from nescord_ops import __version__, history, show
from nescord_ops.checks import Status
from nescord_ops.errors import OpsError, SettingsError
from nescord_ops.settings import OUR_SECRETS

if TYPE_CHECKING:
    from nescord_ops.publish import Page
    from nescord_ops.report import Run

NOTIFY, PING = OUR_SECRETS
WHEN = ("failure", "change", "always")
TRY_SECONDS = 10.0
TOTAL_SECONDS = 30.0
TRIES = 3
_BODY_CHARACTERS = 1600  # Discord takes 2000 in all (Execute Webhook)
_CLIP = 300
_SUPPRESS_EMBEDS = 4  # the message's flag: no preview of an address that is in the text
_DISCORD = re.compile(r"https?://[^/?#\s]+/api/(v\d+/)?webhooks/\d+/[\w-]+/?(\?[^#\s]*)?")
_WEB = re.compile(r"https?://[^/?#\s@]+[^#\s]*")
_PAUSE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A check that failed or could not be made, and the one thing to do about it."""

    name: str
    status: Status
    summary: str
    hint: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """How a report ended, for one volume or a whole fleet.

    `verdict` is a short sentence, `page` says where the report lies, `about` whose it is, `note`
    what changed. `changed` and `recovered` compare with the report before this one.
    """

    status: Status
    verdict: str
    problems: Sequence[Problem] = ()
    page: str = ""
    about: str = ""
    note: str = ""
    changed: bool = False
    recovered: bool = False

    @property
    def title(self) -> str:
        """Symbol and verdict in one line without any markup or mention."""
        words = re.sub(r"[^\w ,.:;()/+$-]|_", "", _line(self.verdict))[:150]
        return f"{show.SYMBOLS[self.status]} {words}"

    def body(self, limit: int = _BODY_CHARACTERS) -> str:
        """Whose it is, the problems with what to do, as many as fit, and where the report is."""
        first = [_line(text) for text in (self.about, self.note) if text]
        last = [f"Report: {_line(self.page)}"] if self.page else []
        room = limit - _units("\n".join([*first, *last])) - 40
        listed: list[str] = []
        for problem in self.problems:
            lines = [f"{show.SYMBOLS[problem.status]} {_line(problem.name)}: "
                     f"{_line(problem.summary)}"]  # fmt: skip
            lines += [f"  → {_line(problem.hint)}"] if problem.hint else []
            room -= _units("\n".join(lines)) + 1
            if room < 0:
                break
            listed.append("\n".join(lines))
        more = len(self.problems) - len(listed)
        text = "\n".join([*first, *listed, *([f"… and {more} more"] if more else []), *last])
        return text.encode("utf-16-le")[: 2 * limit].decode("utf-16-le", "ignore")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A place to send messages to; its address is in `deliver` alone."""

    name: str
    deliver: Callable[[Message], None] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Outlets:
    """Who is told, when, and the dead man's switch; ready before the report begins."""

    targets: tuple[Target, ...] = ()
    when: str = WHEN[0]
    ping: str = dataclasses.field(default="", repr=False)

    def tell(self, message: Message) -> list[str]:
        """Send what is due and ping; return a line for each that did not arrive. Never raises."""
        work: dict[str, Callable[[], object]] = {}
        for number, target in enumerate(self.targets if self._due(message) else (), 1):
            work[f"notification {number} ({target.name})"] = partial(target.deliver, message)
        if self.ping:
            url = _below(self.ping, "fail") if message.status.exit_code else self.ping
            work[f"ping ({_host(url)})"] = partial(_request, url)
        return _all(work)

    def _due(self, message: Message) -> bool:
        if self.when == "failure":
            return bool(message.status.exit_code) or message.recovered
        return self.when == "always" or message.changed or message.recovered


def outlets(
    urls: Sequence[str] = (),
    ping: str = "",
    when: str = WHEN[0],
    environment: Mapping[str, str] = {},
) -> Outlets:
    """Given addresses (else those of the environment), return the outlets for them.

    Raise SettingsError, before anything runs, for an address that nothing here can use.
    """
    if when not in WHEN:
        raise SettingsError(f"--notify-on is {when!r}", f"name one of {', '.join(WHEN)}")
    ping = ping or environment.get(PING, "").strip()
    if ping and not (_WEB.fullmatch(ping) and _host(ping)):
        raise SettingsError(
            "the ping address is not one that begins with https:// (it is not shown: a secret)",
            f"correct --ping or {PING}: https://hc-ping.com/UUID, for example",
        )
    given = [*urls] or environment.get(NOTIFY, "").split()
    return Outlets(tuple(_target(url, n) for n, url in enumerate(given, 1)), when, ping)


def of_run(made: Run, earlier: Mapping[str, str]) -> Message:
    """Given a run, and the verdicts of its pages before (`before`), return what is to be told."""
    bad = [page.name for page in made.pages if page.status.exit_code]
    openings = [
        p.headline.partition(". ")[0].rstrip(".") for p in made.pages if p.status is made.status
    ]
    opening = next((text for text in openings if "looked at" in text), openings[0])
    resolved = any(page.changes.get("resolved") for page in made.pages)
    unseen = any(page.changes.get("unseen") for page in made.pages)
    was_bad = any(Status(status).exit_code for status in earlier.values())
    recovered = not (made.exit_code or unseen) and (was_bad or resolved)
    compared = [page for page in made.pages if page.name in earlier]
    return Message(
        status=made.status,
        verdict=": ".join(filter(None, [opening, ", ".join(bad)])) if bad else
        f"{opening} again" if recovered else opening,
        problems=problems(made.pages),
        page=str(made.directory),
        about=_volume(made.pages),
        note=made.changed if compared else "",
        changed=resolved
        or any(page.changes.get("new") for page in made.pages)
        or any(earlier[page.name] != page.status for page in compared)
        or (bool(bad) and len(compared) < len(made.pages)),
        recovered=recovered,
    )  # fmt: skip


def of_error(error: BaseException) -> Message:
    """Given what kept a report from being made, return what is to be told."""
    known = isinstance(error, OpsError)
    summary = str(error) if known else type(error).__name__
    hint = error.hint if isinstance(error, OpsError) else "run it by hand with --debug"
    problem = Problem("report", Status.UNKNOWN, summary, hint)
    return Message(Status.UNKNOWN, "Could not check: no report was made", (problem,), changed=True)


def before(made: Run) -> dict[str, str]:
    """The verdict of each page's notebook in its run before, from the history."""
    query = "SELECT status FROM pages WHERE run = ? AND name = ?"
    found = {}
    for page in made.pages:
        given = (page.changes.get("previous_run") or "", page.name)
        for (status,) in history.select(made.directory.parent, query, given):
            with contextlib.suppress(ValueError):
                found[page.name] = Status(status).value
    return found


def problems(pages: Iterable[Page]) -> tuple[Problem, ...]:
    """What failed and what could not be checked, failures first, each said once."""
    found: dict[str, Problem] = {}
    for page in pages:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for check in json.loads(page.json.read_text("utf-8"))["checks"]:
                status = Status(check["status"])
                if status.exit_code and not check.get("expected"):
                    name = f"{page.name} {check['name']}"
                    problem = Problem(name, status, check["summary"], check["hint"])
                    found.setdefault(problem.summary, problem)
    return tuple(sorted(found.values(), key=lambda p: p.status is not Status.FAIL))


def _volume(pages: Iterable[Page]) -> str:
    """The database that the pages are about; empty if none says so."""
    for page in pages:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if found := json.loads(page.json.read_text("utf-8"))["settings"].get("database"):
                return str(found)
    return ""


def _target(url: str, number: int) -> Target:
    """Given an address, return its target; raise SettingsError, which does not show it, if none."""
    if _DISCORD.fullmatch(url) and _host(url):
        return Target(_host(url), lambda message: _discord(url, message))
    scheme = _line(url.partition("://")[0])[:20] if "://" in url else "?"
    try:
        import apprise
    except ImportError as error:
        raise SettingsError(
            f"address {number} of --notify is no Discord webhook, and apprise is not installed",
            "pip install 'nescord-ops[notify]'",
        ) from error
    log = logging.getLogger("apprise")  # it may name addresses
    log.addHandler(logging.NullHandler())
    log.propagate = False
    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="nescord-ops", async_mode=False))
    try:
        understood = sender.add(url)
    except ValueError:  # of urllib's; old versions of apprise let it through
        understood = False
    if not understood:
        raise SettingsError(
            f"address {number} of --notify ({scheme}://…) is neither a Discord webhook nor an "
            "address of apprise's (it is not shown: a secret)",
            f"correct --notify or {NOTIFY}: https://discord.com/api/webhooks/ID/TOKEN, for example",
        )
    return Target(scheme, lambda message: _apprise(sender, message))


class _Undelivered(Exception):  # noqa: N818 - a piece of news, and never seen outside
    """Why a message did not arrive, in words that hold no address."""


def _discord(url: str, message: Message) -> None:
    """Post a message to a webhook; text from the volume stands in a code block, as it is."""
    text = message.body().replace("`", "'")
    document = {
        "content": f"**{message.title}**\n```\n{text or 'Nothing to do.'}\n```",
        "allowed_mentions": {"parse": []},
        "flags": _SUPPRESS_EMBEDS,
    }
    parts = urlsplit(url)
    query = "&".join(filter(None, [parts.query, "wait=true"]))  # answer once it is stored
    answer = _request(urlunsplit(parts._replace(query=query)), json.dumps(document).encode())
    try:
        stored = not answer or "id" in json.loads(answer)
    except (ValueError, TypeError):
        stored = False
    if not stored:
        raise _Undelivered("the answer does not say that the message was stored")


def _apprise(sender: Any, message: Message) -> None:
    """Send a message through apprise, as plain text in which nothing is a mention or a link."""
    text = re.sub(r"([@<\]])", "\\1\u200b", message.body())
    if not sender.notify(title=message.title, body=text, body_format="text"):
        raise _Undelivered("apprise could not deliver it")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that is a secret is not carried elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _request(url: str, body: bytes | None = None) -> bytes:
    """GET, or POST JSON, in bounded tries; return the start of the answer or raise _Undelivered."""
    opener = urllib.request.build_opener(_NoRedirect)
    headers = {"User-Agent": f"nescord-ops/{__version__}"}  # Discord refuses Python's own
    headers |= {} if body is None else {"Content-Type": "application/json"}
    reason = ""
    for attempt in range(1, TRIES + 1):
        pause: float = attempt
        try:
            request = urllib.request.Request(url, body, headers)  # noqa: S310 - http(s), matched
            with opener.open(request, timeout=TRY_SECONDS) as answer:
                content: bytes = answer.read(65_536)
                return content
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                break
            with contextlib.suppress(TypeError, ValueError):
                pause = max(pause, float(error.headers["Retry-After"]))
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None)  # which may be text
            cause = cause if isinstance(cause, Exception) else error
            slow = isinstance(cause, TimeoutError)
            said = f"no answer in {TRY_SECONDS:g} s" if slow else getattr(cause, "strerror", "")
            reason = said or type(cause).__name__
        except ValueError as error:  # an address that cannot be sent
            reason = type(error).__name__
            break
        if attempt < TRIES:
            time.sleep(min(pause, _PAUSE_SECONDS))
    raise _Undelivered(reason)


def _all(work: Mapping[str, Callable[[], object]]) -> list[str]:
    """Do everything at once, in threads that are given up with the time; return what failed."""
    reasons: dict[str, str] = {}

    def one(name: str, do: Callable[[], object]) -> None:
        try:
            do()
        except _Undelivered as error:
            reasons[name] = str(error)
        except Exception as error:  # a library's; its text may have the address in it
            reasons[name] = type(error).__name__
        else:
            reasons[name] = ""

    threads = [threading.Thread(target=one, args=item, daemon=True) for item in work.items()]
    deadline = time.monotonic() + TOTAL_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no end after {TOTAL_SECONDS:g} s"
    said = {name: reasons.get(name, late) for name in work}
    return [f"{name} was not delivered: {show.printable(why)}" for name, why in said.items() if why]


def _below(url: str, name: str) -> str:
    """Given a ping address, return the one below it; a query stays at the end."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _host(url: str) -> str:
    """The host of an address, which may be shown; empty if it makes no sense."""
    try:
        return show.printable(urlsplit(url).hostname or "")
    except ValueError:
        return ""


def _line(text: str) -> str:
    """Text from the volume as one line, and not a long one."""
    return show.clipped(" ".join(show.printable(text).split()), _CLIP)


def _units(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text.encode("utf-16-le", "replace")) // 2
