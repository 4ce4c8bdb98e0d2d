"""A place away from the volume, behind any fsspec URL: whole objects or none, in bounded time.

Every request runs in a thread of its own and is waited for ANSWER_SECONDS at the most, whatever
library is beneath: one that hangs is left to itself. S3 (s3fs) repeats what failed with backoff.

An object becomes visible when it is whole: on S3 by completing its multipart upload, elsewhere by
renaming `….part`. Messages carry no user, password or query of a URL, nor AWS's keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from nescord_ops.errors import OffsiteError, OpsError
from nescord_ops.settings import masked
from nescord_ops.storefile import sync
from nescord_ops.volume import private

ANSWER_SECONDS = 120.0
_CLEANING_SECONDS = 10.0
PART_BYTES = 5 << 20  # the least that S3 takes, up to 10,000 times: enough for 47 GB
_READ_BYTES = 4 << 20
_PIECES = 16  # of 64 KiB, as they come from age
_PARTS = 9_000
_PART = ".part"
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"mode": "standard", "max_attempts": 5},
    },
}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_EXTRAS = {"s3": "s3", "s3a": "s3", "sftp": "sftp", "ssh": "sftp"}
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """A directory of a file system of fsspec; `url` is how it is shown."""

    files: Any
    root: str
    url: str
    scheme: str

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine."""
        return self.scheme in ("file", "local")

    @property
    def s3(self) -> bool:
        """Whether it is a bucket, or a part of one."""
        return self.scheme in ("s3", "s3a")

    def path(self, name: str) -> str:
        """Return the path of an object."""
        return f"{self.root}/{name}"


def connect(url: str) -> Remote:
    """Given an fsspec URL or a directory, return it. Raise OffsiteError if it cannot be used."""
    hint = "set NESCORD_OPS_OFFSITE_URL: a directory, s3://bucket/prefix or sftp://host/path"
    if not url:
        raise OffsiteError("no place is set for off-site copies", hint)
    scheme = url.partition("://")[0] if "://" in url else "file"
    if "::" in url or not scheme.isalnum():
        raise OffsiteError(f"{masked(url)} is no place for off-site copies", hint)
    from fsspec.core import url_to_fs

    options = _S3_OPTIONS if _EXTRAS.get(scheme) == "s3" else {}
    try:
        files, root = _wait(
            url, _begin(lambda: url_to_fs(url, skip_instance_cache=True, **options))
        )
    except ImportError:
        extra = _EXTRAS.get(scheme)
        wanted = f"pip install 'nescord-ops[{extra}]'" if extra else "install what fsspec needs"
        raise OffsiteError(f"{scheme}:// needs a package that is absent", wanted) from None
    return Remote(files, str(root).rstrip("/") or "/", masked(url), scheme)


def names(remote: Remote, *, create: bool = False) -> dict[str, int]:
    """Return the objects of a place and their bytes; with `create`, make it if it is absent.

    An absent prefix of a bucket is an empty one. Raise OffsiteError if the place does not exist.
    """

    def listed() -> list[dict[str, Any]]:
        if create and not remote.s3:
            remote.files.makedirs(remote.root, exist_ok=True)
        remote.files.invalidate_cache()
        try:
            return list(remote.files.ls(remote.root, detail=True))
        except FileNotFoundError:
            if not remote.s3:
                raise
            bucket = remote.root.split("/", 1)[0]
            remote.files.call_s3("head_bucket", Bucket=bucket)
            return []

    files = (row for row in _ask(remote, listed) if row["type"] == "file")
    return {row["name"].rpartition("/")[2]: int(row["size"] or 0) for row in files}


def read(remote: Remote, name: str, limit_bytes: int) -> bytes:
    """Return a small object, or the first bytes of a large one."""
    return _ask(remote, lambda: _range(remote, name, 0, limit_bytes))


def chunks(remote: Remote, name: str, size: int) -> Iterator[bytes]:
    """Yield the bytes of an object of that size, a few MB at a time, the next one being fetched."""

    def fetch(start: int) -> Future[bytes]:
        return _begin(lambda: _range(remote, name, start, min(start + _READ_BYTES, size)))

    coming = fetch(0)
    for start in range(0, size, _READ_BYTES):
        chunk = _wait(remote.url, coming)
        if len(chunk) != min(_READ_BYTES, size - start):
            raise OffsiteError(f"{name} ends early", "push it again, or pull another one")
        if start + _READ_BYTES < size:
            coming = fetch(start + _READ_BYTES)
        yield chunk


def _range(remote: Remote, name: str, start: int, end: int) -> bytes:
    return bytes(remote.files.cat_file(remote.path(name), start=start, end=end))


def write(remote: Remote, name: str, content: bytes) -> None:
    """Write a small object, whole or not at all."""
    with upload(remote, name, len(content)) as taking:
        taking.write(content)


@contextlib.contextmanager
def upload(remote: Remote, name: str, size_bytes: int) -> Iterator[Upload]:
    """Yield what takes an object of about that size, which becomes visible when it is whole.

    If the block raises nothing becomes visible.
    """
    renamed = not remote.s3
    target = remote.path(name)
    path = target + _PART if renamed else target
    options = {} if renamed else {"autocommit": False}
    block = max(PART_BYTES, size_bytes // _PARTS)

    def opened() -> Any:
        if remote.local:  # fsspec would follow a link that somebody else put there
            Path(path).unlink(missing_ok=True)
            return open(path, "xb", opener=private)
        return remote.files.open(path, "wb", block_size=block, **options)

    file = _ask(remote, opened)
    taking = Upload(remote, file)
    try:
        yield taking
        taking.flush()
        taking.going = _begin(lambda: _finish(remote, taking, path, target))
        _wait(remote.url, taking.going)
    except BaseException:
        taking.abandoned = True
        if remote.s3:
            file.closed = True  # or it would go on uploading when it is collected as garbage
        gone = _begin(lambda: _abandon(remote, taking, path))
        wait([gone], timeout=_CLEANING_SECONDS)  # what is left, the next push sweeps away
        raise
    finally:
        taking.worker.end()


def _finish(remote: Remote, taking: Upload, path: str, target: str) -> None:
    """Make a written object visible, unless nobody waits for it any more."""
    file = taking.file
    if remote.local:
        file.flush()
        os.fsync(file.fileno())
    file.close()
    if taking.abandoned:
        return
    if remote.s3:
        file.commit()
    elif remote.local:
        Path(path).rename(target)
        sync(Path(target).parent)
    else:
        remote.files.mv(path, target)


def _abandon(remote: Remote, taking: Upload, path: str) -> None:
    """Remove what was written of an object, once what is on its way has come to its end."""
    wait([taking.going])
    if remote.s3:
        taking.file.discard()
        return
    taking.file.close()
    remote.files.rm_file(path)


class Upload:
    """Takes an object: a piece is hashed and written while the next one is being collected."""

    def __init__(self, remote: Remote, file: Any) -> None:
        self.remote = remote
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.abandoned = False
        self._collected: list[bytes] = []
        self.worker = _Worker()
        self.going = self.worker.begin(lambda: None)

    def write(self, data: bytes) -> None:
        """Take some bytes. Raise OffsiteError if what was taken before could not be written."""
        self._collected.append(data)
        self.bytes += len(data)
        if len(self._collected) >= _PIECES:
            self._send()

    def flush(self) -> None:
        """Write what was collected, and wait for it."""
        self._send()
        _wait(self.remote.url, self.going)

    def _send(self) -> None:
        _wait(self.remote.url, self.going)
        piece, self._collected = b"".join(self._collected), []
        self.going = self.worker.begin(lambda: self._put(piece))

    def _put(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.file.write(piece)


def remove(remote: Remote, name: str) -> None:
    """Remove an object."""
    _ask(remote, lambda: remote.files.rm_file(remote.path(name)))


def sweep(remote: Remote, is_ours: Callable[[str], bool]) -> int:
    """Abort the multipart uploads of ours that nobody will complete; return how many."""
    if not remote.s3:
        return 0
    bucket, _, prefix = remote.root.partition("/")
    prefix = f"{prefix}/" if prefix else ""

    def swept() -> int:
        found = remote.files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        uploads = [u for u in found.get("Uploads") or () if is_ours(u["Key"].removeprefix(prefix))]
        for each in uploads:
            remote.files.call_s3(
                "abort_multipart_upload",
                Bucket=bucket,
                Key=each["Key"],
                UploadId=each["UploadId"],
            )
        return len(uploads)

    return _ask(remote, swept)


class _Worker:
    """A thread that does one thing after another; a new one for each would cost memory."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self.tasks = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="offsite").start()

    def begin(self, work: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        self.tasks.put((future, work))
        return future

    def end(self) -> None:
        self.tasks.put(None)

    def _run(self) -> None:
        while task := self.tasks.get():
            _fulfil(*task)


def _begin(work: Callable[[], _T]) -> Future[_T]:
    """Run work in a thread of its own, which a process that ends does not wait for."""
    future: Future[_T] = Future()
    arguments = (future, work)
    threading.Thread(target=_fulfil, args=arguments, daemon=True, name="offsite").start()
    return future


def _fulfil(future: Future[_T], work: Callable[[], _T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _wait(url: str, future: Future[_T]) -> _T:
    """Return what the work came to. Raise OffsiteError if it failed or takes too long."""
    try:
        return future.result(timeout=ANSWER_SECONDS)
    except (OpsError, ImportError):
        raise
    except TimeoutError:
        text = f"{masked(url)} did not answer within {ANSWER_SECONDS:.0f} s"
        raise OffsiteError(text, "see that the server is up, then run it again") from None
    except Exception as error:
        raise _explained(url, error) from None


def _ask(remote: Remote, work: Callable[[], _T]) -> _T:
    return _wait(remote.url, _begin(work))


def _explained(url: str, error: Exception) -> OffsiteError:
    said = masked(" ".join(str(error).split()))
    hint = "see that the server is up, then run it again"
    for name in _SECRETS:  # before it is cut, or a part of one might stay
        said = said.replace(os.environ.get(name) or "\0", "***")
    said = said[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        hint = "make the bucket or directory, or correct NESCORD_OPS_OFFSITE_URL"
        said = f"no such bucket, directory or object ({said})"
    elif isinstance(error, PermissionError):
        hint = "see that its key may list, read, write and delete there"
        said = f"no permission ({said})"
    elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, for example with `nescord-ops offsite prune --keep 2`"
    elif isinstance(error, ValueError):
        hint = "correct NESCORD_OPS_OFFSITE_URL, or AWS_ENDPOINT_URL"
    elif type(error).__name__ == "NoCredentialsError":
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL"
    return OffsiteError(f"{masked(url)}: {said}", hint)
