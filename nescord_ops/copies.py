"""The copies at an off-site place, as they are written there and read back.

A copy is two objects: `ID.tar.zst.age` (`ID.tar.zst` if plain) and, written last, `ID.json` with
its size and SHA-256 and the record of what is in it. A stream without its JSON does not exist. No
name in a JSON is a name of an object: whoever alters one cannot point it elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops import __version__, remote, show, stream
from nescord_ops.checks import Status, plain
from nescord_ops.errors import OffsiteError
from nescord_ops.evidence import ID
from nescord_ops.remote import Remote
from nescord_ops.results import Result
from nescord_ops.snapshot import Progress, scratch
from nescord_ops.stream import OTHER_HINT, DamagedError, Record

LIST_HINT = "nescord-ops offsite list"
_OBJECT = re.compile(rf"({ID})(\.tar\.zst|\.tar\.zst\.age|\.json)(\.part)?")
_DATES = ("pushed_at", "checked_at", "proven_at")
_FACTS = ("stream_bytes", "sha256", "encrypted", *_DATES, "fault")
_ROOM_BYTES = 1 << 20  # for what is not the copy itself


@dataclasses.dataclass(frozen=True, slots=True)
class Copy(Result):
    """One off-site copy: a stream of `stream_bytes` with the files of `record`.

    `record` is None if the JSON cannot be read. `fault` says why it is not good. `checked_at` is
    when a check last read all of it back, `proven_at` when that restored it, None if never.
    """

    id: str
    record: Record | None
    stream_bytes: int = 0
    sha256: str = ""
    encrypted: bool = True
    pushed_at: datetime | None = None
    checked_at: datetime | None = None
    proven_at: datetime | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """The name of its stream."""
        return f"{self.id}.tar.zst{'.age' if self.encrypted else ''}"

    @property
    def taken_at(self) -> datetime:
        """When the backup was taken; long ago if nobody knows."""
        return self.record.taken_at if self.record else datetime.fromtimestamp(0, UTC)

    @property
    def status(self) -> Status:
        """ok if checked, warn if not yet, fail if nothing can be expected of it."""
        if self.fault:
            return Status.FAIL
        return Status.OK if self.checked_at else Status.WARN

    @property
    def summary(self) -> str:
        """The whole copy in one line."""
        if self.fault or not self.record:
            return self.fault
        known = f"checked on {show.moment(self.checked_at)}" if self.checked_at else "never checked"
        if self.proven_at:
            known = f"proven by a drill on {show.moment(self.proven_at)}"
        sizes = f"{show.size(self.record.size_bytes)} in {show.size(self.stream_bytes)}"
        sealed = "encrypted" if self.encrypted else "not encrypted"
        return f"{show.moment(self.taken_at)}, {sizes}, {sealed}: {known}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it beside its record, as JSON values."""
        return {name: plain(getattr(self, name)) for name in _FACTS}


def write(place: Remote, copy: Copy) -> None:
    """Write the JSON of a copy, which makes it one. `copy` has a record."""
    assert copy.record
    versions = {"versions": {"nescord-ops": __version__}}
    document = copy.facts | versions | {"record": copy.record.to_dict()}
    remote.write(place, f"{copy.id}.json", json.dumps(document, indent=1).encode())


def every(place: Remote) -> tuple[Copy, ...]:
    """Return every copy at a place, newest first; those that nobody can date come last."""
    there = remote.names(place)
    ids = (name.removesuffix(".json") for name in there if name.endswith(".json"))
    found = (look(place, identity, there) for identity in ids)
    return tuple(sorted(filter(None, found), key=lambda c: (c.taken_at, c.id), reverse=True))


def find(place: Remote, identity: str) -> Copy | None:
    """Return the copy of that id, if there is one."""
    return look(place, identity, remote.names(place))


def absent(place: Remote, identity: str) -> OffsiteError:
    """The error that there is no such copy."""
    return OffsiteError(f"there is no copy {identity[:80]!r} at {place.url}", LIST_HINT)


def look(place: Remote, identity: str, there: dict[str, int]) -> Copy | None:
    """Given the names at a place, return the copy of that id, or None: is it as it was pushed?"""
    if f"{identity}.json" not in there or not re.fullmatch(ID, identity):
        return None
    content = remote.read(place, f"{identity}.json", stream.RECORD_BYTES)
    try:
        copy = _parsed(identity, json.loads(content))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return Copy(identity, None, fault=f"{identity}.json is not as this program writes it")
    except DamagedError as error:
        return Copy(identity, None, fault=str(error))
    arrived = there.get(copy.name)
    if arrived == copy.stream_bytes:
        return copy
    have = "is missing" if arrived is None else f"has {arrived:,} bytes"
    fault = f"its stream {have}, and {copy.stream_bytes:,} were pushed"
    return dataclasses.replace(copy, record=None, fault=fault)


def _parsed(identity: str, document: Any) -> Copy:
    """Given the JSON of a copy, return what it says. Raise as Python does for other shapes."""
    facts = {name: document[name] for name in _FACTS}
    for name in _DATES:
        if facts[name] is not None:
            facts[name] = datetime.fromisoformat(facts[name]).astimezone(UTC)
    if not (
        type(facts["stream_bytes"]) is int
        and 0 < facts["stream_bytes"] < 1 << 62
        and re.fullmatch("[0-9a-f]{64}", facts["sha256"])
        and isinstance(facts["encrypted"], bool)
        and isinstance(facts["fault"], str)
    ):
        raise ValueError(identity)
    return Copy(identity, stream.record(document["record"], identity), **facts)


def sweep(place: Remote, there: dict[str, int]) -> None:
    """Remove what interrupted pushes left: streams without JSON, parts of objects, uploads."""
    for name in there:
        parts = _OBJECT.fullmatch(name)
        if parts and (parts[3] or f"{parts[1]}.json" not in there):
            remote.remove(place, name)
    remote.sweep(place, lambda name: _OBJECT.fullmatch(name) is not None)


def remove(place: Remote, identity: str) -> None:
    """Remove a copy: its JSON first, after which it does not exist."""
    there = remote.names(place)
    for suffix in (".json", ".tar.zst.age", ".tar.zst"):
        if f"{identity}{suffix}" in there:
            remote.remove(place, f"{identity}{suffix}")


class Source(stream.Pieces):
    """Reads the stream of a copy, and at its end compares its SHA-256."""

    def __init__(self, place: Remote, copy: Copy, say: Progress) -> None:
        self.copy = copy
        self.digest = hashlib.sha256()
        super().__init__(self._counted(remote.chunks(place, copy.name, copy.stream_bytes), say))

    def _counted(self, chunks: Iterator[bytes], say: Progress) -> Iterator[bytes]:
        done = 0
        for chunk in chunks:
            self.digest.update(chunk)
            done += len(chunk)
            say(f"reading {show.size(done)} of {show.size(self.copy.stream_bytes)}")
            yield chunk

    def finish(self) -> None:
        """Read the rest. Raise DamagedError unless all of it is the stream of the JSON."""
        while self.read(stream.COPY_BYTES):
            pass
        if self.digest.hexdigest() != self.copy.sha256:
            text = f"the bytes of {self.copy.name} are not those that were pushed"
            raise DamagedError(text, OTHER_HINT)


@contextlib.contextmanager
def laid_out(
    source: Source, secrets: Sequence[Any] | None, where: Path | None = None
) -> Iterator[Path]:
    """Yield a directory in scratch space with the files of a copy, each of them verified.

    Raise DamagedError if there is anything wrong, CaptureError or VolumeError without room.
    """
    record = source.copy.record
    assert record
    with scratch(record.evidence["allocated_bytes"] + _ROOM_BYTES, where) as root:
        stream.unpack(source.read, root / "copy", record, secrets)
        source.finish()
        yield root / "copy"
