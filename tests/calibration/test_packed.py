from __future__ import annotations

import types
from typing import Any

import pytest

from tests.calibration.effort import TINY
from tests.services.tiny_store import TinyStore
from zipmoe.calibration import packed
from zipmoe.calibration.packed import measure_packed, packed_kernels


class FakeKernels(types.SimpleNamespace):
    """Stands for the kernels: notes what it is asked to compute."""

    def __init__(self) -> None:
        super().__init__(calls=[])
        self.CascadePart = lambda rows, e_chunk, sm: (rows, len(e_chunk), len(sm))
        self.Shape = lambda m, n, k: (m, n, k)
        self.lanes = lambda: "lanes"

    def linear_cascade(self, x: Any, parts: Any, out: Any, shape: Any, order: Any, *, threads: int) -> None:
        m, n, k = shape
        assert x.nbytes == 2 * m * k and out.nbytes == 2 * m * n
        assert sum(rows for rows, _, _ in parts) == n and sum(sm for _, _, sm in parts) == n * k
        self.calls.append(shape)


def test_without_a_kernel_for_the_codec_nothing_is_measured(store: TinyStore) -> None:
    assert packed_kernels("zstd") is None
    assert measure_packed(store.path, store.manifest, TINY) is None


def test_kernels_that_are_not_built_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "KERNELS_MODULE", "zipmoe.kernels.nonexistent")
    assert packed_kernels("cascade") is None


def test_all_chunks_of_an_expert_are_computed_matrix_by_matrix(
    store: TinyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = FakeKernels()
    monkeypatch.setattr(packed, "packed_kernels", lambda codec: kernels)
    cost = measure_packed(store.path, store.manifest, TINY)
    assert cost is not None and cost.first_s > 0
    one = [(1, 64, 40), (1, 40, 32)]
    assert kernels.calls[:4] == [*one, *((packed.MANY_ROWS, n, k) for _, n, k in one)]
