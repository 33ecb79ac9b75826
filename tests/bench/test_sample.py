"""Matrices to measure on: synthetic ones, and what is known about any."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.kernels.reference import all_weights
from zipmoe.bench.matrix import Matrix, MatrixSample
from zipmoe.bench.synthetic import kind_names, rounded, synthesise
from zipmoe.codec import planes_twin


def exponents_as_matrix(exponents: list[int], cols: int) -> Matrix:
    bits = (np.array(exponents, np.uint16) << 7).astype("<u2")
    return Matrix(len(exponents) // cols, cols, memoryview(bits.tobytes()))


def test_rounding_equals_torchs_on_values_and_ties() -> None:
    finite = all_weights()[torch.isfinite(all_weights())].float()
    values = torch.cat([finite, (finite[:-1] + finite[1:]) / 2, torch.randn(4096, generator=torch.manual_seed(1))])
    values = values[torch.isfinite(values) & (values.abs() < 3e38)]
    assert rounded(values.numpy()) == values.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()


def test_planes_are_those_of_the_reference() -> None:
    matrix = synthesise("gaussian", 1, 8, 40).matrices[0]
    weights = torch.frombuffer(bytearray(matrix.bf16), dtype=torch.bfloat16)
    sm, e = planes_twin.split_planes(weights)
    assert matrix.planes == (sm.numpy().tobytes(), e.numpy().tobytes())


@pytest.mark.parametrize(("exponents", "bits"), [([7] * 8, 0.0), ([1, 2] * 4, 1.0), ([1, 2, 3, 4] * 2, 2.0)])
def test_the_limit_is_what_the_entropy_of_the_exponents_allows(exponents: list[int], bits: float) -> None:
    matrix = exponents_as_matrix(exponents, 4)
    assert math.isclose(matrix.exponent_bits, bits, abs_tol=1e-12)
    assert math.isclose(MatrixSample("s", (matrix,)).limit, (8 + bits) / 16)


def test_the_limit_of_a_sample_weighs_its_matrices_by_size() -> None:
    sample = MatrixSample("s", (exponents_as_matrix([1, 2] * 6, 4), exponents_as_matrix([7] * 4, 4)))
    assert math.isclose(sample.limit, (9 / 16 * 3 + 8 / 16) / 4)


def test_e_chunks_are_cut_as_the_packer_cuts_them() -> None:
    matrix = synthesise("gaussian", 1, 20, 5).matrices[0]
    assert matrix.e_chunks(4) == [slice(0, 40), slice(40, 80), slice(80, 100)]


@pytest.mark.parametrize("kind", kind_names())
def test_a_kind_always_gives_the_same_finite_weights(kind: str) -> None:
    first, again = synthesise(kind, 2, 16, 24), synthesise(kind, 2, 16, 24)
    assert [matrix.bf16 for matrix in first.matrices] == [matrix.bf16 for matrix in again.matrices]
    assert first.matrices[0].bf16 != first.matrices[1].bf16
    assert first.nbytes == 2 * 2 * 16 * 24
    assert all(max(matrix.planes[1]) < 255 for matrix in first.matrices)


def test_rows_are_scaled_each_by_its_own_factor() -> None:
    matrix = synthesise("row-scaled", 1, 64, 256).matrices[0]
    weights = torch.frombuffer(bytearray(matrix.bf16), dtype=torch.bfloat16).view(64, 256).float()
    deviations = weights.std(dim=1)
    assert deviations.max() / deviations.min() > 10


def test_heavy_tails_reach_much_further_than_the_normal_ones() -> None:
    def reach(kind: str) -> float:
        weights = torch.frombuffer(bytearray(synthesise(kind, 1, 64, 256).matrices[0].bf16), dtype=torch.bfloat16)
        return float(weights.float().abs().max())

    assert reach("heavy-tailed") > 4 * reach("gaussian")
