"""What holds of nibble form alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms import nibble_twin
from tests.kernels.forms.cases import KINDS, NIBBLES, FormCase, plain, same
from zipmoe.kernels.backends import backends
from zipmoe.kernels.nibble import NIBBLE

every_backend = pytest.mark.parametrize("case", NIBBLES, ids=str)


def test_every_backend_has_it() -> None:
    assert all(NIBBLE.is_supported(using) for using in backends())


def test_no_matrix_is_much_larger_than_in_bf16() -> None:
    for n, k in ((32, 512), (2816, 2048), (2048, 1408), (64, 768)):
        assert NIBBLE.bound(n, k) == nibble_twin.bound(n, k)
        assert NIBBLE.bound(n, k) <= 2 * n * k + 34 * n + 64
    assert NIBBLE.bound(1, 1) == nibble_twin.bound(1, 1)
    assert NIBBLE.bound(0, 5) == 32


def test_ratios_are_twelve_sixteenths_where_exponents_are_like_those_of_weights() -> None:
    rng = np.random.default_rng(5)
    most = {"gaussian": 0.757, "row_scaled": 0.757, "student": 0.77, "pruned": 0.758, "pruned_row_scaled": 0.758}
    for kind, limit in most.items():
        weight = KINDS[kind](rng, 64, 2048)
        assert len(NIBBLES[0].made(weight)) <= limit * weight.nbytes, kind
    weight = KINDS["random_bits"](rng, 64, 2048)
    assert len(NIBBLES[0].made(weight)) == NIBBLE.bound(64, 2048)


@every_backend
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 40, 200])
@pytest.mark.parametrize("k", [128, 256, 1100, 2048, 4500])
def test_exceptions_are_multiplied_in_their_places(case: FormCase, count: int, k: int) -> None:
    """Few exceptions are put into their groups, many into whole passes."""
    rng = np.random.default_rng([count, k])
    x, weight = linear_twin.cancelling(17, 4, k)
    weight = (weight & 0x80FF) | 0x3F00
    places = rng.integers(0, k, count)
    weight[rng.integers(0, 4, count), places] = rng.integers(0, 1 << 15, count) & 0x3FFF
    matrix = case.made(weight)
    assert matrix == nibble_twin.encode(weight)
    wanted = plain(x, weight, case.order)
    for m in (1, 2, 3, 4, 5, 17):
        assert same(case.compute(x[:m], matrix, 4, case.order), wanted[:m]), f"{m} rows"


@every_backend
def test_whatever_stands_in_a_missing_row_does_not_reach_an_output(case: FormCase) -> None:
    x, weight = linear_twin.cancelling(17, 6, 300)
    weight[5, ::3] = 0x7FC1
    matrix = bytearray(case.made(weight))
    matrix[4:8] = (5).to_bytes(4, "little")
    wanted = plain(x, weight[:5], case.order)
    for m in (1, 4, 17):
        assert (case.compute(x[:m], bytes(matrix), 5, case.order) == wanted[:m]).all()
    assert (case.recovered(bytes(matrix), 5, 300) == weight[:5]).all()
