"""Measures linears on bf16, on compressed weights and on in-memory forms, beside torch's linear in the same rounds.

This module, `linear_matrices` and `linear_trial` are the only modules of `zipmoe.bench` that need torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from zipmoe.bench.bandwidth import MemoryRead
from zipmoe.bench.linear_matrices import WORKING_SET_BYTES
from zipmoe.bench.linear_trial import BF16, LinearTrial, make_trial
from zipmoe.bench.rounds import Medians, interleave
from zipmoe.bench.timed_threads import Seconds, TimedThreads
from zipmoe.kernels.linear import LinearShape

TORCH, SGEMM, READ, CONVERT = "torch", "sgemm", "read", "convert "
_SGEMM_FROM_M = 64
_OPENMP_SPINS_S = 0.01


@dataclass(frozen=True)
class FfnRow:
    """A row of the result for `y = x W^T`, with m rows of k inputs and n outputs.

    Times are for one matrix that comes from memory. One thread is timed by processor time, which other work disturbs
    least, several threads by wall time. `vs_torch` and `vs_bf16` are the time divided by the time of torch and of the
    kernel on bf16. `ratio` is the stored bytes divided by those of bf16. `convert_gbps` is the speed of one thread that
    makes an in-memory form from chunks, in bytes of bf16; None for other kernels. `floor_ms` is the time to read
    the stored weights alone, at the bandwidth measured in the same rounds. `order` is the summation order. It is None
    if torch's order is unknown, and then outputs differ. `sgemm_gmacs` is the speed of torch's fp32 product, measured
    from m = 64 on.
    """

    kernel: str
    m: int
    n: int
    k: int
    threads: int
    ms: float
    torch_ms: float
    vs_torch: float
    vs_bf16: float
    differing_outputs: int
    order: str | None
    ratio: float
    convert_gbps: float | None
    floor_ms: float
    read_gbps: float
    gmacs: float
    sgemm_gmacs: float | None


def measure_linears(
    shapes: Sequence[LinearShape],
    thread_counts: Sequence[int],
    rounds: int,
    show: Callable[[str], None],
    working_set_bytes: int = WORKING_SET_BYTES,
) -> list[FfnRow]:
    """Measures the kernels on each shape with each number of threads.

    Args:
        shapes: sizes of the linears.
        thread_counts: numbers of threads.
        rounds: interleaved rounds.
        show: receives what is measured now.
        working_set_bytes: bytes of the bf16 matrices that each kernel runs through, in whole matrices.

    Returns:
        A row for each kernel, shape and number of threads: bf16, fused cascade and, where there is one, an
        in-memory form.

    Raises:
        InvalidRequest: a number is out of range.
    """
    rows = []
    before = torch.get_num_threads()
    try:
        for thread_count in thread_counts:
            torch.set_num_threads(thread_count)
            for shape in shapes:
                show(f"{shape.m} rows, {shape.n} x {shape.k}, {thread_count} threads")
                with TimedThreads(thread_count) as threads:
                    rows += _rows(
                        make_trial(shape, thread_count, working_set_bytes), thread_count, MemoryRead(threads), rounds
                    )
    finally:
        torch.set_num_threads(before)
    return rows


def _rows(trial: LinearTrial, thread_count: int, memory_read: MemoryRead, rounds: int) -> list[FfnRow]:
    shape, count = trial.shape, trial.matrix_count
    differing = {name: trial.differing_outputs(name) for name in trial.kernels}
    calls = {TORCH: trial.torch_linear, **trial.kernels}
    if shape.m >= _SGEMM_FROM_M:
        calls[SGEMM] = trial.sgemm
    calls |= {CONVERT + name: convert for name, convert in trial.convert.items()}
    runs = {READ: memory_read.run, **{name: _timed(call, thread_count) for name, call in calls.items()}}
    for run in runs.values():
        run()  # allocates, wakes threads, compiles oneDNN's kernels
    medians = interleave(runs, rounds)
    times_ms = {name: _milliseconds(median, thread_count) for name, median in medians.items()}
    bf16_bytes = trial.stored_bytes[BF16]
    convert_gbps = {name: bf16_bytes / count / medians[CONVERT + name].busy_s / 1e9 for name in trial.convert}
    read_gbps = memory_read.nbytes / times_ms[READ] / 1e6
    giga_macs = count * shape.m * shape.n * shape.k / 1e9
    return [
        FfnRow(
            kernel=name,
            m=shape.m,
            n=shape.n,
            k=shape.k,
            threads=thread_count,
            ms=times_ms[name] / count,
            torch_ms=times_ms[TORCH] / count,
            vs_torch=times_ms[name] / times_ms[TORCH],
            vs_bf16=times_ms[name] / times_ms[BF16],
            differing_outputs=differing[name],
            order=str(trial.order) if trial.is_known else None,
            ratio=trial.stored_bytes[name] / bf16_bytes,
            convert_gbps=convert_gbps.get(name),
            floor_ms=trial.stored_bytes[name] / count / read_gbps / 1e6,
            read_gbps=read_gbps,
            gmacs=giga_macs / times_ms[name] * 1e3,
            sgemm_gmacs=giga_macs / times_ms[SGEMM] * 1e3 if SGEMM in times_ms else None,
        )
        for name in trial.kernels
    ]


def _milliseconds(median: Medians, thread_count: int) -> float:
    return 1e3 * (median.busy_s if thread_count == 1 else median.wall_s)


def _timed(call: Callable[[], object], thread_count: int) -> Callable[[], Seconds]:
    threads = TimedThreads(1)  # the kernels start their own threads

    def run() -> Seconds:
        if thread_count > 1:
            # After torch's last call, OpenMP's threads spin for a while on the cores that this call needs.
            time.sleep(_OPENMP_SPINS_S)
        return threads.run([call])

    return run
