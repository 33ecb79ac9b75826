from __future__ import annotations

import mmap
from collections.abc import Generator, Mapping

import pytest
import torch

from tests.model.conftest import TwinOf
from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.model.build.build import build_model
from zipmoe.model.experts.device import (
    RING_SLOTS,
    CopyPlacement,
    HostPlacement,
    MappedPlacement,
    RegisteredMemory,
    create_placement,
    resolve_device,
)
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.matrices import Matrices
from zipmoe.model.passes.sequence import Sequence as ModelSequence

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:x", "cuda:-1", "CUDA"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="has to be cpu, cuda, cuda:N or auto"):
        resolve_device(name)


@NO_CUDA
def test_cuda_that_is_not_there_is_unavailable_not_replaced_by_the_cpu() -> None:
    with pytest.raises(Unavailable, match="finds 0 CUDA devices"):
        resolve_device("cuda")


def test_on_the_cpu_experts_are_computed_where_they_are() -> None:
    placement = create_placement(torch.device("cpu"), slot_bytes=4096)
    matrices = (torch.randn(2, 3), torch.randn(3, 2))
    assert isinstance(placement, HostPlacement)
    assert placement.load(matrices) is matrices
    placement.settle()


@pytest.fixture
def cuda() -> torch.device:
    return resolve_device("cuda")


@pytest.fixture
def mapping() -> torch.Tensor:
    """Page-aligned host memory, as an arena's."""
    return torch.frombuffer(mmap.mmap(-1, 1 << 20), dtype=torch.uint8)


def matrices_in(mapping: torch.Tensor, seed: int) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    first = mapping[: 2 * 96 * 64].view(torch.bfloat16).view(96, 64)
    second = mapping[1 << 16 : (1 << 16) + 2 * 64 * 48].view(torch.bfloat16).view(64, 48)
    for matrix in (first, second):
        matrix.copy_(torch.randn(matrix.shape, generator=generator))
    return first, second


@pytest.mark.gpu
def test_host_memory_may_change_after_settle_without_changing_what_was_enqueued(
    cuda: torch.device, mapping: torch.Tensor
) -> None:
    registered = RegisteredMemory(cuda, mapping.data_ptr(), mapping.nbytes, read_only=False)
    kinds = [CopyPlacement(cuda, 1 << 17), create_placement(cuda, 1 << 17, registered)]
    try:
        for placement in kinds:
            sums, expected = [], []
            for seed in range(4 * RING_SLOTS):
                matrices = matrices_in(mapping, seed)
                expected.append([matrix.clone() for matrix in matrices])
                # A slow kernel in front: whoever waits for too little reads the next expert's bytes.
                torch.cuda._sleep(20_000_000)
                sums.append([matrix + 0 for matrix in placement.load(matrices)])
                placement.settle()
            for got, wanted in zip(sums, expected, strict=True):
                assert all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))
    finally:
        torch.cuda.synchronize(cuda)
        registered.close()


@pytest.mark.gpu
def test_registered_memory_is_seen_by_the_device_without_a_copy(cuda: torch.device, mapping: torch.Tensor) -> None:
    registered = RegisteredMemory(cuda, mapping.data_ptr(), mapping.nbytes, read_only=False)
    try:
        view = registered.device_view()
        mapping[:1000] = torch.arange(1000) % 251
        assert torch.equal(view[:1000].cpu(), mapping[:1000])
        assert view.nbytes == mapping.nbytes
        first, second = matrices_in(mapping, 5)
        placement = MappedPlacement(cuda, registered)
        loaded = placement.load((first, second))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(loaded, (first, second), strict=True))
        placement.settle()
    finally:
        torch.cuda.synchronize(cuda)
        registered.close()


@pytest.mark.gpu
def test_memory_that_cannot_be_registered_is_unavailable(cuda: torch.device) -> None:
    with pytest.raises(Unavailable, match="cuMemHostRegister_v2 failed with CUDA error"):
        RegisteredMemory(cuda, 4096, 1 << 20, read_only=False)


class _OneBuffer(InProcessProvider):
    """Lends every expert in the same memory, so that reading too late reads another expert."""

    def __init__(self, inner: object, mapping: torch.Tensor) -> None:
        self._inner, self._mapping = inner, mapping

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert, matrices, _ in self._inner.experts(layer, rows):  # type: ignore[attr-defined]
            lent, offset = [], 0
            for matrix in matrices:
                place = self._mapping[offset : offset + matrix.nbytes].view(matrix.dtype).view(matrix.shape)
                lent.append(place.copy_(matrix))
                offset += 1 << 16
            yield Arrival(expert, tuple(lent))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "switch_transformers"])
def test_a_model_on_the_device_answers_as_stock_there(
    family: str, cuda: torch.device, mapping: torch.Tensor, twin_of: TwinOf
) -> None:
    twin = twin_of(family)
    provider = _OneBuffer(twin.provider, mapping)
    built = build_model(twin.path, twin.layers, twin.dense, provider, CopyPlacement(cuda, 1 << 17))
    sequence = ModelSequence(built)
    prompt = list(range(3, 30))
    stock = twin.stock.to(cuda)
    try:
        output = stock.generate(
            torch.tensor([prompt], device=cuda),
            do_sample=False,
            max_new_tokens=6,
            min_new_tokens=6,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logits = sequence.prefill(prompt).logits
        for token_id, expected in zip(output.sequences[0, -6:].tolist(), output.logits, strict=True):
            # Bits are promised on the CPU only: CUDA's libraries choose kernels by the alignment of their operands.
            assert torch.allclose(logits.float(), expected[0], rtol=0.05, atol=0.05)
            logits = sequence.step(token_id)
    finally:
        twin.stock.to("cpu")
