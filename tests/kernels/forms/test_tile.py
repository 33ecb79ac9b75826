"""What holds of tile form alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms import tile_twin
from tests.kernels.forms.cases import KINDS, TILES, needs_tiles, plain
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import LinearShape, pairs
from zipmoe.kernels.tile import TILE


@needs_tiles
@pytest.mark.parametrize("kind", ["gaussian", "random_bits"])
@pytest.mark.parametrize("k", [1, 3, 1025])
def test_whatever_stands_behind_an_odd_last_input_is_not_multiplied(kind: str, k: int) -> None:
    weight = KINDS[kind](np.random.default_rng(k), 40, k + 1) & 0x3FFF
    weight[:, k] = np.where(np.arange(40) % 2, 0x7F80, 0x7FC1)  # times 0 it would be seen
    tiles = TILES.made(weight).replace((k + 1).to_bytes(4, "little"), k.to_bytes(4, "little"), 1)
    x = linear_twin.cancelling(16, 1, k)[0]
    wanted = plain(x, weight[:, :k], pairs(512))
    assert not np.isnan(linear_twin.widen(wanted)).any()
    for m in (1, 4, 5, 16):
        assert (TILES.compute(x[:m], tiles, 40, pairs(512)) == wanted[:m]).all()


def test_no_matrix_is_much_larger_than_in_bf16() -> None:
    for n, k in ((32, 512), (2816, 2048), (2048, 1408), (64, 768)):
        assert TILE.bound(n, k) == tile_twin.bound(n, k)
        blocks = n // 32 * -(-k // 1024)
        assert TILE.bound(n, k) <= 2 * n * k + 64 * (blocks + n // 32) + 64 + 4 * (n // 32 + 4)
    assert TILE.bound(1, 1) == tile_twin.bound(1, 1)
    assert TILE.bound(0, 5) == 64


@needs_tiles
def test_ratios_are_near_those_of_the_store() -> None:
    rng = np.random.default_rng(5)
    most = {"gaussian": 0.670, "row_scaled": 0.670, "student": 0.685, "pruned": 0.70, "cubed": 0.90}
    for kind, limit in most.items():
        weight = KINDS[kind](rng, 64, 2048)
        assert len(TILES.made(weight)) <= limit * weight.nbytes, kind
    weight = KINDS["random_bits"](rng, 64, 2048)
    assert len(TILES.made(weight)) == TILE.bound(64, 2048)


def test_a_backend_without_tile_form_says_so() -> None:
    assert not TILE.is_supported("scalar")
    out = bytearray(TILE.bound(1, 2))
    for call in (
        lambda: TILE.from_bf16(bytes(4), out, 1, 2, using="scalar"),
        lambda: TILE.to_bf16(out, bytearray(4), 1, 2, using="scalar"),
        lambda: TILE.linear(bytes(4), out, bytearray(2), LinearShape(1, 1, 2), pairs(32), using="scalar"),
    ):
        with pytest.raises(InvalidRequest, match="backend scalar has no tile form on this machine"):
            call()
    assert not any(out)
