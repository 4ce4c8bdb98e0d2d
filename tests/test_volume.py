"""The volume from outside: bytes, probes and mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nescord_ops import volume
from nescord_ops.errors import VolumeError


def test_usage_counts_blocks_and_bytes_and_every_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5000))
    os.link(tmp_path / "a", tmp_path / "b")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    seen = volume.usage(tmp_path)
    assert seen.apparent_bytes == 5000 + (1 << 30)
    assert seen.files == 2
    assert 5000 <= seen.allocated_bytes < 1 << 20


def test_usage_does_not_follow_links_nor_loops(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to("/usr")
    assert volume.usage(tmp_path).apparent_bytes == 0


def test_usage_of_what_is_missing_says_so(tmp_path: Path) -> None:
    assert volume.usage(tmp_path / "nowhere").skipped == 1


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    volume.probe_write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_of_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="takes no writes"):
        volume.probe_write(tmp_path / "nowhere")


def test_links_that_lead_in_a_circle_have_a_mount_too(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert volume.mount_of(tmp_path / "circle" / "chromadb") == volume.mount_of(tmp_path)


def test_the_mount_of_a_path_is_the_longest_one(tmp_path: Path) -> None:
    proc = volume.mount_of(Path("/proc/self"))
    assert proc
    assert proc.filesystem == "proc"
    here = volume.mount_of(tmp_path / "not" / "there")
    assert here
    assert tmp_path.is_relative_to(here.path)
