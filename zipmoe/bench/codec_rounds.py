"""Measures ratio and speed of codecs, beside memcpy and native zstd in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from zipmoe.bench.matrix import MatrixSample
from zipmoe.bench.native_zstd import native_zstd
from zipmoe.bench.rounds import interleave
from zipmoe.bench.timed_threads import Seconds, TimedThreads
from zipmoe.bench.trial import ChunkedSample, Trial, codec_trial, memcpy_trial
from zipmoe.codec.base import Codec

MEMCPY, ZSTD1 = "memcpy", "native-zstd-1"


@dataclass(frozen=True)
class CodecRow:
    """Ratio and speeds of a codec on a sample. A speed of 1 GB/s is 10^9 bytes of bf16 weights a second.

    `recover_gbps` and `encode_gbps` use the processor time of the busiest thread, `recover_wall_gbps` and
    `encode_wall_gbps` the wall time. `vs_memcpy` and `vs_zstd1` are the speed of the codec's recovery divided by the
    speed of the reference.
    """

    codec: str
    data: str
    threads: int
    ratio: float
    limit: float
    recover_gbps: float
    encode_gbps: float
    vs_memcpy: float
    vs_zstd1: float
    exact: bool
    recover_wall_gbps: float
    encode_wall_gbps: float


@dataclass(frozen=True)
class CodecPlan:
    """Settings of a measurement: numbers of threads, rounds, and E-chunks of a matrix."""

    thread_counts: Sequence[int]
    rounds: int
    e_chunks: int


def measure_codecs(
    sample: MatrixSample, codecs: Mapping[str, Codec], plan: CodecPlan, show: Callable[[str], None]
) -> list[CodecRow]:
    """Measures codecs on one sample.

    Args:
        sample: matrices to compress. For the speed of memory, the matrices have to exceed the caches together.
        codecs: codecs by the name of the row. Rows of memcpy and native zstd-1 are added.
        plan: settings of the measurement.
        show: called with a description of the current step.

    Returns:
        A row for each codec and number of threads, memcpy and zstd-1 first.

    Raises:
        InvalidRequest: a number in the plan is out of range.
        UnsupportedStore: a codec refuses the sample.
    """
    chunked = ChunkedSample(sample, plan.e_chunks)
    trials: dict[str, Trial] = {MEMCPY: memcpy_trial(chunked)}
    for name, codec in {ZSTD1: native_zstd(), **codecs}.items():
        show(f"{sample.name}: {name} compresses")
        trials[name] = codec_trial(chunked, codec)
    show(f"{sample.name}: comparing bytes")
    exact = {name: chunked.is_exact(trial.recover_jobs) for name, trial in trials.items()}
    rows = []
    with ExitStack() as stack:
        for thread_count in plan.thread_counts:
            threads = stack.enter_context(TimedThreads(thread_count))
            show(f"{sample.name}: {plan.rounds} rounds with {thread_count} threads")
            rows += _rows(sample, trials, exact, threads, plan.rounds)
    return rows


def _rows(
    sample: MatrixSample, trials: Mapping[str, Trial], exact: Mapping[str, bool], threads: TimedThreads, rounds: int
) -> list[CodecRow]:
    def runs(jobs_of: Callable[[Trial], Sequence[Callable[[], object]]]) -> dict[str, Callable[[], Seconds]]:
        return {name: lambda trial=trial: threads.run(jobs_of(trial)) for name, trial in trials.items()}  # type: ignore[misc]

    recover = interleave(runs(lambda trial: trial.recover_jobs), rounds)
    encode = interleave(runs(lambda trial: trial.encode_jobs), rounds)
    first = sample.matrices[0].nbytes
    return [
        CodecRow(
            codec=name,
            data=sample.name,
            threads=threads.thread_count,
            ratio=trial.ratio,
            limit=sample.limit,
            recover_gbps=sample.nbytes / recover[name].busy_s / 1e9,
            encode_gbps=first / encode[name].busy_s / 1e9,
            vs_memcpy=recover[MEMCPY].busy_s / recover[name].busy_s,
            vs_zstd1=recover[ZSTD1].busy_s / recover[name].busy_s,
            exact=exact[name],
            recover_wall_gbps=sample.nbytes / recover[name].wall_s / 1e9,
            encode_wall_gbps=first / encode[name].wall_s / 1e9,
        )
        for name, trial in trials.items()
    ]
