"""Measures recovery: the codec of a store on the store's chunks, with several numbers of workers."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from zipmoe.calibration.measurement_time import MeasurementTime
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import create_codec
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part

_RECOVERED_BYTES = 64 << 20
"""bf16 bytes that are recovered in turn: more than CPU caches hold, as while serving."""


@dataclass(frozen=True)
class RecoverPoint:
    """Speed of recovery: bf16 bytes per second of each worker, while `worker_count` workers recover."""

    worker_count: int
    bytes_per_s: float


def recover_rate(points: Sequence[RecoverPoint], worker_count: int) -> float:
    """Looks up the bf16 bytes per second of each of `worker_count` workers.

    Between two measured counts, the rate of the lower count is used. Beyond the largest measured count, all workers
    share the total rate of that count.
    """
    below = [point for point in points if point.worker_count <= worker_count]
    nearest = max(below or [points[0]], key=lambda point: point.worker_count)
    crowd = nearest.worker_count / worker_count if nearest is max(points, key=_workers) else 1.0
    return nearest.bytes_per_s * min(1.0, crowd)


def measure_recovery(
    store: Path, manifest: Manifest, worker_counts: Sequence[int], effort: MeasurementTime
) -> tuple[RecoverPoint, ...]:
    """Measures the recovery of some of a store's experts, for several numbers of workers.

    Args:
        store: the store.
        manifest: the manifest of the store.
        worker_counts: numbers of workers to measure, each at least 1.
        effort: how much to measure.

    Raises:
        CorruptData: the experts cannot be read or recovered.
        UnsupportedStore: the codec is not known.

    Cost: counts x rounds x `point_s`; the memory of `_RECOVERED_BYTES` of experts, packed and recovered.
    """
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    units = _recover_units(store, manifest, codec)
    rates: dict[int, list[float]] = defaultdict(list)
    with ThreadPoolExecutor(max(worker_counts), thread_name_prefix="calibrate-recover") as pool:
        for _, count in itertools.product(range(effort.rounds), worker_counts):
            turns = itertools.count()  # taking the next number is atomic
            begin_s = time.perf_counter()
            end_s = begin_s + effort.point_s
            done = list(pool.map(lambda _: _recover_until(units, turns, end_s), range(count)))  # noqa: B023 - map ends in here
            rates[count].append(sum(done) / (time.perf_counter() - begin_s) / count)
    # The best round counts, because other jobs can only slow recovery down.
    return tuple(RecoverPoint(count, max(rates[count])) for count in sorted(set(worker_counts)))


_Unit = tuple[int, Callable[[], None]]


def _recover_until(units: Sequence[_Unit], turns: itertools.count[int], end_s: float) -> int:
    """Recovers E-chunks until the clock shows `end_s`, at least one; returns the recovered bf16 bytes."""
    nbytes = 0
    while nbytes == 0 or time.perf_counter() < end_s:
        unit_bytes, recover = units[next(turns) % len(units)]
        recover()
        nbytes += unit_bytes
    return nbytes


def _recover_units(store: Path, manifest: Manifest, codec: Codec) -> list[_Unit]:
    """Reads experts spread over the store, and makes a recovery call of each E-chunk."""
    keys = list(manifest.expert_keys())
    count = max(1, min(len(keys), _RECOVERED_BYTES // manifest.max_tensor_bytes))
    units: list[_Unit] = []
    with closing(StoreReader(store, manifest)) as reader:
        for index in range(count):
            key = keys[index * len(keys) // count]
            chunk_slot = aligned_memory(manifest.max_record_bytes)
            reader.read(key, Part.ALL, chunk_slot)
            units += _units_of(manifest, key, codec, chunk_slot, aligned_memory(manifest.max_tensor_bytes))
    return units


def _units_of(
    manifest: Manifest, key: ExpertKey, codec: Codec, chunk_slot: memoryview, tensor_slot: memoryview
) -> list[_Unit]:
    spec = manifest.layers[key.layer].spec
    units: list[_Unit] = []
    for tensor, begin in zip(manifest.record(key).tensors, spec.tensor_offsets, strict=True):
        for chunk in tensor.e_chunks:
            first, count = chunk.first_row * tensor.spec.cols, chunk.rows * tensor.spec.cols
            e_chunk = chunk_slot[chunk.offset : chunk.end]
            sm = chunk_slot[tensor.sm_chunk.offset + first : tensor.sm_chunk.offset + first + count]
            out = tensor_slot[begin + 2 * first : begin + 2 * (first + count)]

            def recover(e_chunk: memoryview = e_chunk, sm: memoryview = sm, out: memoryview = out) -> None:
                codec.recover(e_chunk, sm, out)

            units.append((out.nbytes, recover))
    return units


def _workers(point: RecoverPoint) -> int:
    return point.worker_count
