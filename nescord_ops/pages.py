"""Contents as pages: cut, named, packed, and run on every core without holding them all.

A page is 64 KiB of a file and is named by its SHA-256. It is packed with zstd level 1, alone or as
its difference from the page that stood at the same place before: that page is then the dictionary.
Measured on two cores with SHA-NI (zstandard 0.25, Python 3.11), per second and core:

- SHA-256 1.2 GB in pages of 4 KiB and 1.6 GB in 64 KiB; BLAKE2b 0.8 and 0.9; SHA-512/256 0.6 and
  0.8. Without SHA-NI BLAKE2b would win; `sha256sum` is everywhere.
- notes pack to 45 % in 4 KiB, 37 % in 16 KiB, 34 % in 64 KiB, 32 % in 128 KiB; vectors to 93 % in
  each. Level 3 gains 2 % of the size and costs a third of the speed (450 to 330 MB).
- one rewritten 4 KiB page of notes costs 0.6 KB as a difference (26 KB as a page of 64 KiB, 1.8 KB
  as one of 4 KiB), relinked vectors 0.3 KB a page, and 0.2 ms to find: so large pages, with
  few rows and names to look up, grow less than small ones.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import TypeVar

import zstandard

PAGE_BYTES = 1 << 16
LEVEL = 1
_ZERO = bytes(PAGE_BYTES)
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
WORKERS = max(2, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


class _Own(threading.local):
    """What each thread uses for all its pages: a new one for each takes a tenth of their time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_own = _Own()


def name(content: bytes) -> bytes:
    """Given a page's content, return its name: the SHA-256."""
    return hashlib.sha256(content).digest()


def length(size: int, position: int) -> int:
    """Given a file's size in bytes, return how many of them its page at `position` holds."""
    return min(PAGE_BYTES, size - position * PAGE_BYTES)


def read(handle: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Given an open file and its size, yield (position, content) of every page that is not zero.

    Holes are skipped without being read (lseek(2), SEEK_DATA), so a sparse file costs what it
    holds. Raise EOFError if the file ends within a page: behind its last page may be a hole.
    """
    position = 0
    while position * PAGE_BYTES < size:
        try:
            data = os.lseek(handle, position * PAGE_BYTES, os.SEEK_DATA)
            end = os.lseek(handle, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        for position in range(data // PAGE_BYTES, -(-min(end, size) // PAGE_BYTES)):
            content = os.pread(handle, length(size, position), position * PAGE_BYTES)
            if len(content) < length(size, position):
                raise EOFError
            if content != _ZERO[: len(content)]:
                yield position, content
        position += 1


def pack(content: bytes, base: bytes | None) -> tuple[bytes, bool]:
    """Given a page and maybe the one before it, return it packed, and whether as a difference.

    A difference from the same old page grows with every change, so it is kept while it is less
    than an eighth of a page: with F bytes for a whole page and d for one change, the mean cost
    of a change is least when a new start is made at sqrt(2 F d), here 5.6 KB for notes (F = 26,
    d = 0.6) and 6.3 KB for vectors (60, 0.33).
    """
    if base is not None:
        packed = zstandard.ZstdCompressor(level=LEVEL, dict_data=_dictionary(base)).compress(
            content
        )
        if 8 * len(packed) < len(content):
            return packed, True
    return _own.compressor.compress(content), False


def unpack(packed: bytes, base: bytes | None, expected: bytes) -> bytes:
    """Given a packed page, the packed page that it differs from, and its name, return its content.

    Raise ValueError if it is not what its name says. A damaged header cannot make it take more
    memory than a page.
    """
    content = _decompress(packed, None if base is None else _decompress(base, None))
    if name(content) != expected:
        raise ValueError("a page is not what its name says")
    return content


def _decompress(packed: bytes, base: bytes | None) -> bytes:
    try:
        if not 0 < zstandard.frame_content_size(packed) <= PAGE_BYTES:
            raise ValueError("a page is no page")
        decompressor = _own.decompressor
        if base is not None:
            decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(base))
        return decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a page cannot be unpacked: {error}") from error


def _dictionary(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def ahead(
    pool: Executor, work: Callable[[_Given], _Made], items: Iterable[_Given]
) -> Iterator[_Made]:
    """Given work for each item, yield the results in order while the next few are being made.

    hashlib and zstandard release the GIL, so threads are enough. Takes no more items than the
    workers need: the memory is flat however many there are. Leaves no work behind when it ends,
    so what the work uses may then be closed.
    """
    pending: deque[Future[_Made]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


def batched(items: Iterable[_Given], count: int = 16) -> Iterator[list[_Given]]:
    """Yield the items in lists of `count`: sixteen pages are a megabyte for a worker at a time."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, count)):
        yield batch
