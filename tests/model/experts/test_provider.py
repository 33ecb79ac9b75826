from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.conftest import TwinOf
from zipmoe.errors import NotFound
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.provider import CheckpointProvider

EXPERTS = 8


@pytest.fixture
def provider(twin_of: TwinOf) -> Iterator[CheckpointProvider]:
    provider = CheckpointProvider(catalogue(twin_of("qwen2_moe").path).layers)
    yield provider
    provider.close()


def test_experts_have_the_checkpoints_own_bytes(provider: CheckpointProvider, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    for layer, entry in enumerate(twin.layers):
        module = twin.stock.get_submodule(entry.module)
        arrivals = provider.experts(layer, dict.fromkeys(range(EXPERTS), 1))
        found = {arrival.expert: arrival.matrices for arrival in arrivals}
        for expert in range(EXPERTS):
            expected = (module.gate_up_proj[expert], module.down_proj[expert])
            assert all(torch.equal(a, b) for a, b in zip(found[expert], expected, strict=True))
            assert all(matrix.is_contiguous() and matrix.data_ptr() % 64 == 0 for matrix in found[expert])


def test_experts_that_do_not_exist_are_not_found(provider: CheckpointProvider) -> None:
    with pytest.raises(NotFound, match=f"expert {EXPERTS} of MoE layer 0"):
        list(provider.experts(0, {EXPERTS: 1}))
