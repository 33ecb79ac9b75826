"""Measures the plane kernels and the codecs on one expert matrix, beside memcpy in the same run.

    python -m benchmarks.codec_merge [--rounds 21] [--chunks 1,4,8,16] [--threads 2]

Every round times each candidate once, in turn, so that a change of the machine's mood hits all of them alike; the table
shows medians; "a core" is by processor time, which other jobs on the machine disturb least. GB/s count bytes of bf16,
whatever the stored size: recover reads E-chunks and SM bytes and writes bf16; compress is what packing does, split
included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from zipmoe import kernels
from zipmoe.codec import Codec, codec_names, create_codec

ROWS, COLS, DEVIATION = 2048, 1408, 0.02


@dataclass
class Candidate:
    """One line of the table."""

    name: str
    run: Callable[[], object]
    ratio: float | None = None
    times_s: list[float] = field(default_factory=list)
    core_times_s: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Runs once and keeps the times."""
        begin, core_begin = time.perf_counter(), time.process_time()
        self.run()
        self.times_s.append(time.perf_counter() - begin)
        self.core_times_s.append(time.process_time() - core_begin)


class Expert:
    """One matrix of bf16 weights ~ N(0, 0.02), its planes, and room for results."""

    def __init__(self) -> None:
        weights = np.random.default_rng(1).standard_normal(ROWS * COLS, dtype=np.float32) * np.float32(DEVIATION)
        bits = weights.view(np.uint32)
        rounded = bits + 0x7FFF + (bits >> 16 & 1)  # to nearest, ties to even
        self.bf16 = memoryview((rounded >> 16).astype(np.uint16).view(np.uint8))
        self.count = ROWS * COLS
        self.sm, self.e = memoryview(bytearray(self.count)), memoryview(bytearray(self.count))
        self.out = memoryview(bytearray(2 * self.count))
        kernels.split_planes(self.bf16, self.sm, self.e)

    def chunk_planes(self, chunks: int) -> list[slice]:
        """The weights of each of `chunks` E-chunks; whole rows, a multiple of 8 in each but the last."""
        rows = -(-ROWS // chunks // 8) * 8
        return [slice(row * COLS, min(row + rows, ROWS) * COLS) for row in range(0, ROWS, rows)]

    def copy(self) -> None:
        """What any recovery is compared with: the same bytes, copied."""
        self.out[:] = self.bf16


def kernel_candidates(expert: Expert) -> list[Candidate]:
    """Merge and split on every backend."""

    def merge(backend: str) -> None:
        kernels.merge_planes(expert.sm, expert.e, expert.out, using=backend)

    def split(backend: str) -> None:
        kernels.split_planes(expert.bf16, expert.sm, expert.e, using=backend)

    actions = {"merge": merge, "split": split}
    return [
        Candidate(f"{verb} {backend}", lambda act=act, backend=backend: act(backend))  # type: ignore[misc]
        for verb, act in actions.items()
        for backend in kernels.backends()
    ]


def codec_candidates(
    expert: Expert, codec: Codec, chunks: int, pool: ThreadPoolExecutor, threads: int
) -> list[Candidate]:
    """Compress, decompress and recover with one codec and one number of E-chunks a tensor."""
    parts = expert.chunk_planes(chunks)
    stored = [codec.compress(expert.e[part]) for part in parts]
    plane = memoryview(bytearray(expert.count))

    def compress() -> None:
        kernels.split_planes(expert.bf16, expert.sm, expert.e)
        for part in parts:
            codec.compress(expert.e[part])

    def decompress() -> None:
        for chunk, part in zip(stored, parts, strict=True):
            codec.decompress(chunk, plane[part])

    def recover_chunk(index: int) -> None:
        part = parts[index]
        codec.recover(stored[index], expert.sm[part], expert.out[2 * part.start : 2 * part.stop])

    def recover() -> None:
        for index in range(len(parts)):
            recover_chunk(index)

    def recover_in_threads() -> None:
        list(pool.map(recover_chunk, range(len(parts))))

    ratio = (expert.count + sum(map(len, stored))) / (2 * expert.count)
    name = f"{codec.name} K={len(parts)}"
    candidates = [Candidate(f"{name} {run.__name__}", run, ratio) for run in (compress, decompress, recover)]
    if threads > 1 and chunks >= threads:
        candidates.append(Candidate(f"{name} recover, {threads} threads", recover_in_threads, ratio))
    return candidates


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--chunks", default="1,4,8,16", help="numbers of E-chunks a tensor")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    expert = Expert()
    with ThreadPoolExecutor(arguments.threads, thread_name_prefix="recover") as pool:
        candidates = [Candidate("memcpy", expert.copy), *kernel_candidates(expert)]
        for name in codec_names():
            for chunks in map(int, arguments.chunks.split(",")):
                codec = create_codec(name)
                candidates += codec_candidates(expert, codec, chunks, pool, arguments.threads)
        for _ in range(arguments.rounds):
            for candidate in candidates:
                candidate.measure()

    table = Table("what", "ratio", "median", "best", "a core", "of memcpy", title=f"bf16 {ROWS}x{COLS}, GB/s of bf16")
    memcpy_s = statistics.median(candidates[0].core_times_s)
    for candidate in candidates:
        core_s = statistics.median(candidate.core_times_s)
        ratio = "" if candidate.ratio is None else f"{candidate.ratio:.4f}"
        times_s = (statistics.median(candidate.times_s), min(candidate.times_s), core_s)
        speeds = [f"{2e-9 * expert.count / seconds:.2f}" for seconds in times_s]
        table.add_row(candidate.name, ratio, *speeds, f"{memcpy_s / core_s:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
