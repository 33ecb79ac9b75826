"""The statistics of bf16 weights that the whole system rests on."""

from __future__ import annotations

import math

import pytest
import torch

from zipmoe.codec import planes_twin
from zipmoe.codec.registry import default_codec

STANDARD_DEVIATION = 0.02
ROWS, COLS = 2048, 1408


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    """One expert matrix of Qwen1.5-MoE's size, with weights as training leaves them: close to normal."""
    return (torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(1)) * STANDARD_DEVIATION).to(torch.bfloat16)


def entropy_bits(plane: torch.Tensor) -> float:
    """Shannon entropy of a byte plane, in bits a byte."""
    counts = torch.bincount(plane.flatten().to(torch.int64), minlength=256)
    probabilities = counts[counts > 0].double() / plane.numel()
    return -float((probabilities * probabilities.log2()).sum())


def test_exponents_hold_under_2_6_of_their_8_bits(weights: torch.Tensor) -> None:
    """A bf16 exponent carries about 2.6 bits: five of its eight are redundant. Source: bit-field decomposition."""
    _, e_plane = planes_twin.split_planes(weights)
    assert 2.5 < entropy_bits(e_plane) < 2.6


def test_exponent_entropy_does_not_depend_on_the_scale_of_the_weights(weights: torch.Tensor) -> None:
    """Scaling by a power of two shifts every exponent and changes nothing else. Source: bit-field decomposition."""
    _, e_plane = planes_twin.split_planes(weights)
    _, scaled = planes_twin.split_planes(weights * 2.0**-6)
    assert math.isclose(entropy_bits(scaled), entropy_bits(e_plane), abs_tol=1e-9)


def test_sign_and_mantissa_are_incompressible(weights: torch.Tensor) -> None:
    """An SM byte carries 7.97 of its 8 bits, so it is stored as it is. Source: bit-field decomposition."""
    sm_plane, _ = planes_twin.split_planes(weights)
    assert entropy_bits(sm_plane) > 7.96


def test_lossless_compression_saves_a_third_of_the_bytes(weights: torch.Tensor) -> None:
    """In 8 E-chunks a tensor takes at most 0.668 of its bytes, near the entropy. Source: bit-field decomposition."""
    sm_plane, e_plane = planes_twin.split_planes(weights)
    chunk_bytes = [len(default_codec().compress(rows.numpy())) for rows in e_plane.chunk(8)]
    ratio = (sm_plane.numel() + sum(chunk_bytes)) / (2 * weights.numel())
    assert (8 + entropy_bits(e_plane)) / 16 < ratio <= 0.668
