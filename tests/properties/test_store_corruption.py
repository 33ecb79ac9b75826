"""A damaged store is an error that names the damage; never a tensor, never a crash."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.sources import DiskSource, make_source
from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.errors import CorruptData, ZipMoeError
from zipmoe.store.format.inspection import describe_store
from zipmoe.store.format.layout import ExpertRecord
from zipmoe.store.format.manifest import MANIFEST_NAME, parse_manifest, read_manifest, seal_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.store.verify.verify import verify_against, verify_store
from zipmoe.types import ExpertKey, Part

# The store is damaged and mended in place.
in_place = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=codec_names())
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corruption")
    source = make_source(folder / "source", experts=2)
    pack_store(source, folder / "store", PackOptions(codec=create_codec(request.param), workers=1))
    return folder / "store"


@functools.cache
def source_of(store: Path) -> DiskSource:
    return make_source(store.parent / "source", experts=2)


def recover_all(store: Path) -> Iterator[tuple[ExpertKey, int, bytes]]:
    """Reads and recovers every expert the way the services do."""
    manifest = read_manifest(store)
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    reader = StoreReader(store, manifest)
    slot = aligned_memory(manifest.max_record_bytes)
    try:
        for key in manifest.expert_keys():
            reader.read(key, Part.ALL, slot)
            for index, tensor in enumerate(manifest.record(key).tensors):
                out = memoryview(bytearray(tensor.spec.nbytes))
                recover_tensor(codec, tensor, slot, out)
                yield key, index, bytes(out)
    finally:
        reader.close()


class Damaged:
    """Restores a file of the store at the end of the block."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._before = path.read_bytes()
        path.write_bytes(content)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._before)


@in_place
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found_by_verify(store: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(store.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with Damaged(path, bytes(content)):
        if path.name == MANIFEST_NAME:
            try:
                manifest = read_manifest(store)
            except ZipMoeError:
                return
            # White space is all that may differ unnoticed.
            assert content.split() == path.read_bytes().split()
            assert manifest.family == "qwen2_moe"
            return
        report = verify_store(store, workers=1)
    assert {damage.file for damage in report.damages} == {path.name}


@in_place
@given(data=st.data())
def test_any_changed_byte_of_a_chunk_is_refused_by_every_read_of_it(store: Path, data: st.DataObject) -> None:
    manifest = read_manifest(store)
    key = data.draw(st.sampled_from(list(manifest.expert_keys())))
    record = manifest.record(key)
    parts = data.draw(st.sampled_from([Part.E, Part.SM]))
    span = data.draw(st.sampled_from(list(record.chunks(parts))))
    place = record.offset + data.draw(st.integers(span.offset, span.end - 1))
    path = store / manifest.files[record.file].name
    content = bytearray(path.read_bytes())
    content[place] ^= data.draw(st.integers(1, 255))
    slot = aligned_memory(manifest.max_record_bytes)
    with Damaged(path, bytes(content)):
        reader = StoreReader(store, manifest)
        with pytest.raises(CorruptData, match="wrong checksum"):
            reader.read(key, parts, slot)
        with pytest.raises(CorruptData, match="wrong checksum"):
            reader.read(key, Part.ALL, slot)
        # The other part, and all other experts, are served.
        reader.read(key, Part.ALL & ~parts, slot)
        for other in manifest.expert_keys():
            if other != key:
                reader.read(other, Part.ALL, slot)
        reader.close()


@in_place
@given(data=st.data())
def test_a_file_of_any_other_length_is_refused_at_opening(store: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in sorted(store.iterdir()) if path.name != MANIFEST_NAME]))
    content = path.read_bytes()
    change = data.draw(st.one_of(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=5000)))
    with Damaged(path, content[:change] if isinstance(change, int) else content + change):
        with pytest.raises(CorruptData, match="the manifest says"):
            read_manifest(store)
        assert path.name in {damage.file for damage in verify_store(store, workers=1).damages}


@in_place
@given(data=st.data())
def test_any_manifest_cut_short_or_overwritten_is_refused(store: Path, data: st.DataObject) -> None:
    text = (store / MANIFEST_NAME).read_bytes()
    begin = data.draw(st.integers(0, len(text) - 2))
    changed = text[:begin] + data.draw(st.binary(max_size=20))
    if changed.rstrip() != text.rstrip():
        with pytest.raises(ZipMoeError):
            parse_manifest(changed)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([0, 1, 8, 4096, 1 << 31, (1 << 60) - 1, 1 << 60, (1 << 64) - 1])
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["0" * 16, "f" * 16, "../x", "experts-00000.bin", "raw", "zstd"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        yield (*prefix, key)
        yield from paths(item, (*prefix, key))


def change(document: dict[str, Any], data: st.DataObject) -> None:
    """Changes one place of a document in any way that JSON allows."""
    path = data.draw(st.sampled_from(list(paths(document))))
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    how = data.draw(st.sampled_from(["replace", "nudge", "delete", "repeat"]))
    if how == "nudge" and type(holder[path[-1]]) is int:
        holder[path[-1]] += data.draw(st.sampled_from([-4096, -64, -1, 1, 64, 4096, 1 << 32]))
    elif how == "delete":
        del holder[path[-1]]
    elif how == "repeat" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[path[-1]]))
    else:
        holder[path[-1]] = data.draw(json_values)


@settings(parent=in_place, max_examples=200)
@given(data=st.data())
def test_a_hostile_manifest_with_a_right_digest_raises_our_errors_or_gives_the_right_bytes(
    store: Path, data: st.DataObject
) -> None:
    document = json.loads((store / MANIFEST_NAME).read_bytes())
    del document["digest"]
    for _ in range(data.draw(st.integers(1, 3))):
        change(document, data)
    source = source_of(store)
    with Damaged(store / MANIFEST_NAME, seal_manifest(document)):
        try:
            recovered = list(recover_all(store))
            describe_store(store)
        except ZipMoeError:
            recovered = []
        for _, _, content in recovered:
            # A changed shape or order may cut the same bytes otherwise, but every byte passed its chunk's checksum.
            assert len(content) <= 2880
        try:
            report = verify_against(store, source, workers=1)
        except ZipMoeError:
            return
    if report.intact:
        for key, index, content in recovered:
            assert content == source.tensor_bytes(key.layer, key.expert, index)


@in_place
@given(data=st.data())
def test_chunks_never_reach_outside_their_record(store: Path, data: st.DataObject) -> None:
    document = json.loads((store / MANIFEST_NAME).read_bytes())
    del document["digest"]
    change(document, data)
    try:
        manifest = parse_manifest(seal_manifest(document))
    except ZipMoeError:
        return
    for key in manifest.expert_keys():
        record: ExpertRecord = manifest.record(key)
        position = 0
        for span in record.chunks(Part.ALL):
            assert position <= span.offset < span.end <= record.nbytes
            position = span.end
        assert record.offset + record.nbytes <= manifest.files[record.file].nbytes
        assert record.nbytes <= manifest.max_record_bytes


def test_a_store_that_was_mended_is_whole(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    assert verify_against(tmp_path / "copy", source_of(store)).intact
