"""Measures the disk by random reads at several request sizes and queue depths, issued as the expert store does."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zipmoe.calibration.measurement_time import MeasurementTime
from zipmoe.errors import InvalidRequest
from zipmoe.store.format.layout import ALIGNMENT_BYTES
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.record_file import RecordFile


@dataclass(frozen=True)
class ReadPoint:
    """Speed of random reads at a request size and a queue depth.

    Attributes:
        request_bytes: size of a request.
        queue_depth: requests at the disk at the same time.
        latency_s: median time of a request.
        bytes_per_s: bandwidth of all requests together.
    """

    request_bytes: int
    queue_depth: int
    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class DiskSpeed:
    """Measured speed of the disk.

    Attributes:
        direct: whether the file system accepts O_DIRECT. If not, the page cache was measured as well.
        points: speeds by request size and queue depth, at least one.
    """

    direct: bool
    points: tuple[ReadPoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise InvalidRequest("a disk has at least one measurement")

    @property
    def latency_s(self) -> float:
        """Median time of the smallest request, with no other request at the disk."""
        return min(self.points, key=lambda point: (point.queue_depth, point.request_bytes)).latency_s

    def bytes_per_s(self, request_bytes: int, queue_depth: int) -> float:
        """Returns the bandwidth of the measured point that is nearest by the ratios of request size and queue depth."""

        def distance(point: ReadPoint) -> float:
            return abs(math.log(point.request_bytes / request_bytes)) + abs(math.log(point.queue_depth / queue_depth))

        return min(self.points, key=distance).bytes_per_s


def measure_disk(files: Sequence[Path], effort: MeasurementTime) -> DiskSpeed:
    """Measures random reads of some files.

    Args:
        files: at least one file, on the disk to be measured. Sizes are whole multiples of 4096 bytes.
        effort: how much to measure. Requests larger than the largest file are left out. If all requests are larger,
            requests of the size of that file are measured.

    Raises:
        InvalidRequest: no file has 4096 bytes, or the permission to read a file is missing.
        CorruptData: a file cannot be read.

    Cost: sizes x depths x rounds x `point_s`; the memory of as many requests as the largest depth.
    """
    with _opened(files) as opened:
        largest = max((nbytes for _, nbytes in opened), default=0) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        if largest == 0:
            raise InvalidRequest("no file of at least 4096 bytes to measure the disk with")
        sizes = sorted({min(size, largest) for size in effort.request_bytes if size <= largest} or {largest})
        kinds = list(itertools.product(sizes, effort.queue_depths))
        slots = [aligned_memory(sizes[-1]) for _ in range(max(effort.queue_depths))]
        latencies: dict[tuple[int, int], list[float]] = defaultdict(list)
        rates: dict[tuple[int, int], list[float]] = defaultdict(list)
        with ThreadPoolExecutor(len(slots), thread_name_prefix="calibrate-read") as pool:
            # Interleaved, so that a change of the disk's speed or another job affects all kinds of reads alike.
            for turn, kind in itertools.product(range(effort.rounds), kinds):
                size, depth = kind
                readers = [_Reader(opened, slot[:size], f"{turn} {kind} {i}") for i, slot in enumerate(slots)]
                begin_s = time.perf_counter()
                end_s = begin_s + effort.point_s
                taken = list(pool.map(lambda reader, end_s=end_s: reader.run(end_s), readers[:depth]))
                seconds = time.perf_counter() - begin_s
                rates[kind].append(sum(map(len, taken)) * size / seconds)
                latencies[kind] += itertools.chain.from_iterable(taken)
        direct = all(file.direct for file, _ in opened)
    points = [ReadPoint(*kind, statistics.median(latencies[kind]), statistics.median(rates[kind])) for kind in kinds]
    return DiskSpeed(direct, tuple(points))


class _Reader:
    """Reads random places on one thread, each read as soon as the previous read has ended."""

    def __init__(self, files: Sequence[tuple[RecordFile, int]], slot: memoryview, seed: str) -> None:
        self._draw = random.Random(seed)
        self._files = [(file, nbytes) for file, nbytes in files if nbytes >= len(slot)]
        self._weights = list(itertools.accumulate(nbytes for _, nbytes in self._files))
        self._slot = slot

    def run(self, end_s: float) -> list[float]:
        """Reads until the clock shows `end_s`, at least once; returns the seconds of each read."""
        taken: list[float] = []
        before_s = time.perf_counter()
        while not taken or before_s < end_s:
            (file, nbytes), *_ = self._draw.choices(self._files, cum_weights=self._weights)
            last = (nbytes - len(self._slot)) // ALIGNMENT_BYTES
            file.read(self._draw.randint(0, last) * ALIGNMENT_BYTES, self._slot)
            now_s = time.perf_counter()
            taken.append(now_s - before_s)
            before_s = now_s
        return taken


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[tuple[RecordFile, int]]]:
    with ExitStack() as stack:
        opened = []
        for path in paths:
            nbytes = path.stat().st_size
            file = RecordFile(path, nbytes)
            stack.callback(file.close)
            opened.append((file, nbytes))
        yield opened
