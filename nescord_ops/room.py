"""The volume from outside: its size and what is left of it, from whoever knows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from nescord_ops import footprint, volume
from nescord_ops.errors import VolumeError
from nescord_ops.footprint import Component
from nescord_ops.prices import FILE_SYSTEM_RATIO, GB
from nescord_ops.results import Result
from nescord_ops.settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Room(Result):
    """The volume from outside, in bytes, None for what is not known.

    `source` says who knows: the mount's file system, NESCORD_OPS_VOLUME_GB or nobody. Off a mount
    `used_bytes` is the data's own. `overhead_bytes` is the file system's share, billed as well.
    """

    source: str
    size_bytes: int | None
    used_bytes: int
    free_bytes: int | None
    overhead_bytes: int | None


def space(settings: Settings) -> volume.Space | None:
    """Given settings, return the volume's room; None where nobody knows its size."""
    parts = footprint.components(footprint.scan(settings), free_bytes={})
    room = room_of(settings, parts)
    if room.size_bytes is None or room.free_bytes is None:
        return None
    return volume.Space(room.size_bytes, room.used_bytes, room.free_bytes)


def room_of(settings: Settings, components: tuple[Component, ...]) -> Room:
    """Given the data's components, return the volume's size and what is left of it.

    From its mount, or else from the settings.
    """
    own = sum(c.allocated_bytes for c in components if c.on_volume)
    mount = settings.volume_mount
    on = volume.mount_of(mount) if mount else None
    if mount and on and on.path == Path(os.path.realpath(mount)):
        try:
            space = volume.space(mount)
        except VolumeError:
            return Room("not known", None, own, None, None)
        overhead = round(space.total_bytes * FILE_SYSTEM_RATIO)
        source = f"file system at {mount}"
        return Room(source, space.total_bytes, space.used_bytes, space.free_bytes, overhead)
    if settings.volume_gb is None:
        return Room("not known", None, own, None, None)
    size = round(settings.volume_gb * GB)
    overhead = round(size * FILE_SYSTEM_RATIO)
    free = max(0, size - overhead - own)
    with contextlib.suppress(VolumeError):  # a fuller disk has the last word
        free = min(free, volume.space(settings.database.parent).free_bytes)
    return Room("NESCORD_OPS_VOLUME_GB", size, own, free, overhead)
