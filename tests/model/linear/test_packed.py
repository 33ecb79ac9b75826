"""Experts computed from their chunks, against the same experts recovered and computed by torch."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import silu

from tests.services.tiny_store import TinyStore, make_store
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.linear.packed import PackedMatrix, packed_matrices
from zipmoe.model.raw_tensor import empty_bytes
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.types import ExpertKey, Part

KEY = ExpertKey(1, 2)


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    first, second = gate_up.chunk(2, dim=-1)
    return silu(first) * second


MODULE = SimpleNamespace(_apply_gate=gate)


@pytest.fixture(scope="module", params=[((96, 128), (128, 48)), ((352, 200), (200, 176))])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    folder = tmp_path_factory.mktemp("store")
    return make_store(folder, layers=2, experts=3, shapes=request.param, e_chunks=3, codec="cascade")


@pytest.fixture
def slot(store: TinyStore) -> Iterator[memoryview]:
    memory = aligned_memory(store.manifest.max_record_bytes)
    reader = StoreReader(store.path, store.manifest)
    reader.read(KEY, Part.ALL, memory)
    yield memory
    reader.close()


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def recovered(store: TinyStore, slot: memoryview) -> tuple[torch.Tensor, ...]:
    matrices = []
    for tensor in store.manifest.record(KEY).tensors:
        storage, out = empty_bytes(tensor.spec.nbytes)
        recover_tensor(create_codec("cascade"), tensor, slot, out)
        matrices.append(storage.view(torch.bfloat16).view(tensor.spec.rows, tensor.spec.cols))
    return tuple(matrices)


def packed(store: TinyStore, slot: memoryview) -> tuple[PackedMatrix, ...]:
    record = store.manifest.record(KEY)
    return packed_matrices(record, slot, slot[record.e_bytes :])


@pytest.mark.parametrize("linears", [Linears(), Linears(OrderTable(orders=[]))], ids=["kernels", "torch"])
def test_a_packed_expert_gives_the_bits_of_the_recovered_one(
    store: TinyStore, slot: memoryview, linears: Linears
) -> None:
    matrices = recovered(store, slot)
    direct = DirectFfn(MODULE._apply_gate, transposed=False)
    fused = DirectFfn(MODULE._apply_gate, transposed=False, linear=linears)
    assert fused.takes_packed and not direct.takes_packed
    for rows in (1, 2, 4, 16, 70):
        x = torch.randn(rows, matrices[0].shape[1]).bfloat16()
        weights = torch.rand(rows, 1).bfloat16()
        wanted = direct(x, weights, matrices, ())
        assert torch.equal(fused(x, weights, packed(store, slot), ()), wanted), f"{rows} rows"


def test_a_damaged_chunk_is_corrupt_data(store: TinyStore, slot: memoryview) -> None:
    record = store.manifest.record(KEY)
    slot[record.tensors[0].e_chunks[1].offset] ^= 1
    for linears in (Linears(), Linears(OrderTable(orders=[]))):
        with pytest.raises(CorruptData):
            linears(torch.zeros(1, record.tensors[0].spec.cols).bfloat16(), packed(store, slot)[0])


def test_transposed_experts_are_recovered_first() -> None:
    assert not DirectFfn(MODULE._apply_gate, transposed=True, linear=Linears()).takes_packed
