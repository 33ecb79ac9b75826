"""Linears beside torch's: what is compared, and what a row holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zipmoe.bench.bandwidth import MemoryRead
from zipmoe.bench.linear_matrices import matrix_count
from zipmoe.bench.linear_rounds import FfnRow, measure_linears
from zipmoe.bench.linear_trial import BF16, FORMS, FUSED, make_trial
from zipmoe.bench.timed_threads import TimedThreads
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import LinearShape, lanes, pairs

SMALL = LinearShape(3, 40, 96)


def measure(*shapes: LinearShape, threads: tuple[int, ...] = (1,)) -> list[FfnRow]:
    return measure_linears(shapes, threads, 1, lambda _: None)


def kernels_of(row: FfnRow) -> tuple[str, ...]:
    """The kernels that a row's shape is measured with on this machine."""
    order = (row.order or "lanes").split()[0]
    taken = {"lanes": lanes(), "pairs": pairs(32)}[order]
    return (BF16, FUSED, *(form.name for form in FORMS if form.is_supported() and form.takes(taken)))


def test_all_kernels_are_measured_on_every_shape_with_every_number_of_threads() -> None:
    before = torch.get_num_threads()
    rows = measure(SMALL, LinearShape(1, 33, 70), threads=(1, 2))
    assert torch.get_num_threads() == before
    firsts = [row for row in rows if row.kernel == BF16]
    assert [(row.threads, row.m, row.n, row.k) for row in firsts] == [
        (threads, *shape) for threads in (1, 2) for shape in ((3, 40, 96), (1, 33, 70))
    ]
    assert [(row.threads, row.m, row.kernel) for row in rows] == [
        (first.threads, first.m, kernel) for first in firsts for kernel in kernels_of(first)
    ]
    assert all(row.vs_bf16 == 1 and row.ratio == 1 for row in firsts)
    assert all((row.convert_gbps is not None) == (row.kernel not in (BF16, FUSED)) for row in rows)
    assert all(min(row.ms, row.torch_ms, row.floor_ms, row.read_gbps, row.gmacs) > 0 for row in rows)


@pytest.mark.parametrize("shape", [SMALL, LinearShape(1, 2, 1), LinearShape(5, 24, 130)])
def test_where_torchs_order_is_known_no_output_differs(shape: LinearShape) -> None:
    for row in measure(shape):
        assert row.order is None or row.differing_outputs == 0


def test_sgemm_stands_beside_many_rows() -> None:
    few, many = (measure(LinearShape(m, 16, 32))[0] for m in (63, 64))
    assert few.sgemm_gmacs is None
    assert many.sgemm_gmacs is not None and many.sgemm_gmacs > 0


def test_an_output_that_is_wrong_or_missing_is_counted() -> None:
    trial = make_trial(SMALL, 1)

    def wrong() -> None:
        trial.out.copy_(trial.expected)
        trial.out.view(torch.int16)[0, 0, :2] ^= 1

    broken = replace(trial, kernels={"wrong": wrong, "missing": lambda: None})
    assert broken.differing_outputs("wrong") == 2
    assert broken.differing_outputs("missing") == trial.expected.numel()


def test_what_is_compared_has_rows_that_cancel() -> None:
    expected = make_trial(SMALL, 1).expected.float()
    assert expected[0, 0, :8].abs().max() < 1e-3 * expected[0, 0, 8:].abs().max()


def test_few_rows_take_their_matrices_from_memory() -> None:
    assert matrix_count(LinearShape(1, 2048, 1408)) * 2 * 2048 * 1408 >= 64 << 20
    assert matrix_count(LinearShape(512, 2048, 1408)) < matrix_count(LinearShape(64, 2048, 1408))
    assert matrix_count(LinearShape(1 << 20, 2048, 1408)) == 1
    assert matrix_count(LinearShape(1, 2, 1)) == 256
    assert matrix_count(LinearShape(1, 2048, 1408), 1 << 30) * 2 * 2048 * 1408 >= 1 << 30
    assert matrix_count(LinearShape(1, 2048, 1408), 1) == 1


@pytest.mark.parametrize(
    "shape", [LinearShape(0, 8, 8), LinearShape(1, 0, 8), LinearShape(1, 8, 0), LinearShape(1 << 20, 1 << 20, 1 << 20)]
)
def test_sizes_out_of_range_are_refused(shape: LinearShape) -> None:
    with pytest.raises(InvalidRequest, match="cannot measure"):
        make_trial(shape, 1)


def test_reading_takes_some_time() -> None:
    with TimedThreads(2) as threads:
        memory_read = MemoryRead(threads)
        assert memory_read.nbytes == 64 << 20
        assert memory_read.run().wall_s > 0
