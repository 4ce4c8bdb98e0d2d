"""Chroma's files read without Chroma: real stores, damaged headers, hostile pickles."""

from __future__ import annotations

import contextlib
import pickle
import resource
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nescord_ops import chroma, chroma_build, client, graph
from nescord_ops.demo import Demo
from nescord_ops.errors import UnreadError, VolumeError


@pytest.fixture(scope="module")
def persisted(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chroma directory with 300 vectors in its HNSW files, written by chromadb itself."""
    root = tmp_path_factory.mktemp("persisted") / "chromadb"
    shutil.copytree(base_demo.chroma_dir, root)
    chroma_build.run(root, "persist")
    return root


@pytest.fixture
def index(persisted: Path, tmp_path: Path) -> Path:
    """The HNSW files of a copy of that directory."""
    shutil.copytree(persisted, tmp_path / "chromadb")
    (directory,) = chroma.segment_directories(tmp_path / "chromadb")
    return directory


def test_the_header_of_a_real_index_gives_the_dimension(index: Path) -> None:
    header = chroma.read_hnsw(index)
    assert header.dimension == 768
    assert header.elements == 300


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_id_map_is_that_of_pythons_own_pickle(protocol: int, tmp_path: Path) -> None:
    ids = {f"note_{n}": n for n in range(2500)}
    labels = {label: id_ for id_, label in ids.items()}
    content = {"dimensionality": None, "id_to_label": ids, "label_to_id": labels, "x": {}}
    (tmp_path / chroma.PICKLE).write_bytes(pickle.dumps(content, protocol))
    assert dict(chroma.id_map(tmp_path)) == ids


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("/tmp/nescord-ops-must-not-exist"),)


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_the_id_map_is_refused_and_never_runs(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"id_to_label": {"a": Hostile()}}, protocol)
    (tmp_path / chroma.PICKLE).write_bytes(content)
    with pytest.raises(VolumeError, match=r"not loaded|damaged|not Chroma"):
        list(chroma.id_map(tmp_path))
    assert not Path("/tmp/nescord-ops-must-not-exist").exists()


@pytest.mark.parametrize("item", [("a", 1 << 63), ("\ud800", 1)])
def test_what_sqlite_does_not_take_is_no_item_of_an_id_map(
    item: tuple[str, int], tmp_path: Path
) -> None:
    content = pickle.dumps({"id_to_label": dict([item, ("b", 2)]), "x": None}, 4)
    (tmp_path / chroma.PICKLE).write_bytes(content.replace(b"\x94", b""))  # without a memo
    with pytest.raises(VolumeError, match="is damaged"):
        list(chroma.id_map(tmp_path))


@given(st.binary(max_size=300))
def test_any_bytes_as_id_map_are_refused_or_plain(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / chroma.PICKLE).write_bytes(content)
    with contextlib.suppress(VolumeError):
        assert all(isinstance(label, int) for _, label in chroma.id_map(directory))


@given(st.binary(min_size=100, max_size=100))
def test_any_header_is_refused_or_makes_sense(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / "header.bin").write_bytes(content)
    (directory / "data_level0.bin").write_bytes(bytes(10_000))
    try:
        header = chroma.read_hnsw(directory)
    except VolumeError:
        return
    assert header.dimension > 0
    assert header.elements * header.element_bytes <= 10_000


def test_damaged_vectors_are_counted(index: Path) -> None:
    header = chroma.read_hnsw(index)
    data = index / "data_level0.bin"
    whole = bytearray(data.read_bytes())
    labels = [
        struct.unpack_from("<Q", whole, n * header.element_bytes + header.label_offset)[0]
        for n in range(header.elements)
    ]
    assert chroma.read_vectors(index, header, labels, unit=True) == chroma.Vectors(300, 0, 0, 0, 0)
    struct.pack_into("<f", whole, header.data_offset, float("nan"))
    struct.pack_into("<f", whole, header.element_bytes + header.data_offset, 2.0)
    struct.pack_into("<Q", whole, 2 * header.element_bytes + header.label_offset, 9999)
    data.write_bytes(whole)
    assert chroma.read_vectors(index, header, labels, unit=True) == chroma.Vectors(300, 2, 1, 1, 0)
    assert chroma.read_vectors(index, header, labels, unit=False).broken == 1
    whole[header.label_offset + 7] = 0x80
    data.write_bytes(whole)
    with (
        graph.opened(index, header, "cosine") as opened,
        pytest.raises(VolumeError, match="element 0 has the label"),
    ):
        opened.label(0)


def led(index: Path) -> list[bool]:
    """Which elements the graph in the files leads to."""
    header = chroma.read_hnsw(index)
    with graph.opened(index, header, "cosine") as opened:
        return [opened.leads_to(number) for number in range(header.elements)]


def test_a_search_of_the_files_finds_what_chroma_finds(index: Path) -> None:
    header = chroma.read_hnsw(index)
    with graph.opened(index, header, "cosine") as opened:
        assert header.top_layer > 0
        assert 0 < len(opened.upper) < header.elements / 4
        assert len(set(opened.sample(20))) == 20
    found, ids = sum(led(index)), [id_ for id_, _ in chroma.id_map(index)]
    request = {
        **{"directory": str(index.parent), "collection": "nescord_knowledge", "dimension": 768},
        **{"sample": ids, "with_vectors": True, "records": None},
    }
    answer = client.ask([{**request, "action": "plant"}, {**request, "action": "find"}])
    assert answer.result["fetched"] == 300
    assert answer.result["nearest"] == pytest.approx(found, abs=15)  # both are approximate


def test_a_graph_without_links_leads_nowhere_and_links_out_of_it_are_damage(index: Path) -> None:
    header = chroma.read_hnsw(index)
    data, lists = index / "data_level0.bin", index / "link_lists.bin"
    whole = bytearray(data.read_bytes())
    for number in range(header.elements):
        whole[number * header.element_bytes : number * header.element_bytes + 2] = bytes(2)
    data.write_bytes(whole)
    assert sum(led(index)) <= header.elements / 4
    for number in range(header.elements):  # any, since chance decides which ones a search visits
        struct.pack_into("<HHI", whole, number * header.element_bytes, 1, 0, header.elements)
    data.write_bytes(whole)
    assert chroma.read_vectors(index, header, (), unit=True).misled == header.elements
    with pytest.raises(VolumeError, match="leads out of the index"):
        led(index)
    lists.write_bytes(lists.read_bytes()[:100])
    with pytest.raises(VolumeError, match=r"link_lists\.bin ends"):
        led(index)


def test_an_index_that_may_not_be_opened_is_not_called_damaged(index: Path) -> None:
    header = chroma.read_hnsw(index)
    chroma.read_vectors(index, header, [], unit=True)  # numpy is there from here on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        for read in (
            lambda: chroma.read_hnsw(index),
            lambda: [*chroma.id_map(index)],
            lambda: chroma.read_vectors(index, header, [], unit=True),
        ):
            with pytest.raises(UnreadError, match="Too many open files"):
                read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE collections SET dimension = 1 << 40",
        "UPDATE collections SET dimension = -1",
        "UPDATE max_seq_id SET seq_id = x''",
    ],
)
def test_numbers_that_no_chroma_writes_are_refused(script: str, index: Path) -> None:
    with contextlib.closing(sqlite3.connect(index.parent / chroma.DATABASE)) as store:
        store.execute(script)
        with pytest.raises(sqlite3.DatabaseError, match=r"not as Chroma|a sequence number"):
            chroma.collections(store)


def test_a_data_file_that_is_too_short_is_refused(index: Path) -> None:
    with (index / "data_level0.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(VolumeError, match="holds"):
        chroma.read_hnsw(index)


def test_only_directories_named_by_a_uuid_are_indices(index: Path) -> None:
    root = index.parent
    (root / "notes").mkdir()
    (root / "0f0e0d0c-0b0a-4908-8706-050403020100").symlink_to(index)
    assert chroma.segment_directories(root) == (index,)
    shutil.rmtree(index)
    assert chroma.segment_directories(root) == ()
