"""How much memory is left, in a container as well."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int | None:
    """The memory that may still be used here: the container's limit, else the machine's; or None.

    Sources: cgroup v2 `memory.max` and `memory.current`, proc(5) `MemAvailable`.
    """
    rooms = []
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            statistics = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            used = int((group / "memory.current").read_text())
            rooms.append(int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                rooms.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    return min(rooms, default=None)
