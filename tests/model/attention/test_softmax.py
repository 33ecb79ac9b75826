"""The native softmax of several contexts has the bits of torch's."""

from __future__ import annotations

import pytest
import torch

from zipmoe.model.attention.softmax import softmax_of_contexts, softmax_twin
from zipmoe.model.torch_orders import softmax_lanes


@pytest.mark.parametrize("lengths", [(1,), (3, 700, 16), (17, 1, 8, 33, 257), (2049, 64)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-3])
def test_weights_of_any_contexts_are_those_of_torch(lengths: tuple[int, ...], scale: float) -> None:
    heads = 6
    scores = torch.randn(heads * sum(lengths), generator=torch.Generator().manual_seed(len(lengths))) * scale
    scores[::7] = float("-inf")
    wanted = softmax_twin(scores, heads, lengths)
    assert torch.equal(softmax_of_contexts(scores, heads, lengths).view(torch.int32), wanted.view(torch.int32))


def test_this_machine_has_the_native_softmax() -> None:
    """Otherwise the test above compares the twin with itself. Processors without AVX2 or AVX-512 have none."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert softmax_lanes() is not None
