from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.model.conftest import TwinOf
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest, NotFound
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.provider import CheckpointProvider, Matrices, StoreProvider
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part

EXPERTS = 8


@pytest.fixture(scope="module", params=["raw", "zstd"])
def store(request: pytest.FixtureRequest, twin_of: TwinOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "store"
    pack_store(catalogue(twin_of("qwen2_moe").path), path, PackOptions(codec=create_codec(request.param), workers=1))
    return path


@pytest.fixture
def manifest(store: Path) -> Manifest:
    return read_manifest(store)


@pytest.fixture
def provider(store: Path, manifest: Manifest) -> Iterator[StoreProvider]:
    provider = StoreProvider(store, manifest, cache_bytes=3 * manifest.max_tensor_bytes)
    yield provider
    provider.close()


def collected(provider: StoreProvider | CheckpointProvider, layer: int, ids: list[int]) -> dict[int, Matrices]:
    return {expert: tuple(map(torch.clone, matrices)) for expert, matrices in provider.experts(layer, ids)}


def test_both_providers_give_the_checkpoints_own_bytes(provider: StoreProvider, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    from_checkpoint = CheckpointProvider(catalogue(twin.path).layers)
    for layer, entry in enumerate(twin.layers):
        module = twin.stock.get_submodule(entry.module)
        ids = list(range(EXPERTS))
        recovered, raw = collected(provider, layer, ids), collected(from_checkpoint, layer, ids)
        for expert in ids:
            expected = (module.gate_up_proj[expert], module.down_proj[expert])
            for given in (recovered, raw):
                assert all(torch.equal(a, b) for a, b in zip(given[expert], expected, strict=True))
                assert all(matrix.is_contiguous() and matrix.data_ptr() % 64 == 0 for matrix in given[expert])
    from_checkpoint.close()


def test_what_is_kept_is_given_first_and_not_read_again(
    provider: StoreProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = StoreReader.read

    def counted(self: StoreReader, key: ExpertKey, parts: Part, slot: memoryview) -> int:
        reads.append(key.expert)
        return read(self, key, parts, slot)

    monkeypatch.setattr(StoreReader, "read", counted)
    assert list(collected(provider, 0, [2, 5])) == [2, 5]
    assert list(collected(provider, 0, [1, 5, 7])) == [5, 1, 7]
    assert reads == [2, 5, 1, 7]
    collected(provider, 0, [2])
    assert reads == [2, 5, 1, 7, 2]
    assert len(provider._cached) == 3


def test_an_interrupted_pass_leaves_the_provider_usable(provider: StoreProvider) -> None:
    expected = collected(provider, 1, [0, 1])
    arrivals = provider.experts(1, [0, 1])
    next(arrivals)
    arrivals.close()
    again = collected(provider, 1, [0, 1])
    assert all(torch.equal(a, b) for e in (0, 1) for a, b in zip(again[e], expected[e], strict=True))


def test_a_damaged_expert_fails_alone(store: Path, manifest: Manifest, tmp_path: Path) -> None:
    for path in store.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = manifest.record(ExpertKey(0, 3))
    file = tmp_path / manifest.files[record.file].name
    content = bytearray(file.read_bytes())
    content[record.offset + record.tensors[0].sm_chunk.offset] ^= 1
    file.write_bytes(content)
    provider = StoreProvider(tmp_path, manifest, cache_bytes=EXPERTS * manifest.max_tensor_bytes)
    with pytest.raises(CorruptData, match="expert 3 of MoE layer 0"):
        collected(provider, 0, [2, 3, 4])
    assert set(collected(provider, 0, [2, 4])) == {2, 4}
    provider.close()


def test_experts_that_do_not_exist_are_not_found(provider: StoreProvider, twin_of: TwinOf) -> None:
    from_checkpoint = CheckpointProvider(catalogue(twin_of("qwen2_moe").path).layers)
    for one in (provider, from_checkpoint):
        with pytest.raises(NotFound, match=f"expert {EXPERTS} of MoE layer 0"):
            collected(one, 0, [EXPERTS])


def test_a_cache_that_holds_no_expert_is_refused(store: Path, manifest: Manifest) -> None:
    with pytest.raises(InvalidRequest, match=r"a cache of \d+ bytes holds no expert"):
        StoreProvider(store, manifest, cache_bytes=manifest.max_tensor_bytes - 1)
