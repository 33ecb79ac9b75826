"""Compares sizes of one request to the disk, on a store of random experts of Qwen1.5-MoE-A2.7B.

    python -m benchmarks.request_size [--folder DIR] [--mib 1 2] [--experts 64] [--rounds 9]

The store's I/O threads read every expert with O_DIRECT: first one expert after the other, as a fetch of one expert
does, then all experts from one queue. The sizes take turns within each round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.random_store import make_store
from zipmoe.store.format.layout import ExpertSpec, TensorSpec
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.read_defaults import IO_THREADS
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part

SPEC = ExpertSpec((TensorSpec("gate_up_proj", 2816, 2048), TensorSpec("down_proj", 2048, 1408)))


class Round(NamedTuple):
    """Milliseconds of each expert read alone, and GB/s of all experts from one queue."""

    expert_ms: list[float]
    queued_gbps: float


def run_round(reader: StoreReader, pool: ThreadPoolExecutor, slot: memoryview, request_bytes: int) -> Round:
    """Reads every expert of the store, twice. All threads read into the same slot, since no byte is used."""

    def read(key: ExpertKey) -> int:
        e_bytes = reader.manifest.record(key).e_bytes
        requests = reader.requests(key, Part.ALL, request_bytes)
        tasks.extend(pool.submit(reader.read_request, request, slot[:e_bytes], slot[e_bytes:]) for request in requests)
        return sum(request.nbytes for request in requests)

    def finish() -> None:
        for task in tasks:
            task.result()
        tasks.clear()

    tasks = []
    expert_ms = []
    for key in reader.manifest.expert_keys():
        begin_s = time.perf_counter()
        read(key)
        finish()
        expert_ms.append((time.perf_counter() - begin_s) * 1e3)
    begin_s = time.perf_counter()
    nbytes = sum(map(read, reader.manifest.expert_keys()))
    finish()
    return Round(expert_ms, nbytes / (time.perf_counter() - begin_s) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 2], help="sizes of a request, in MiB")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rounds: dict[float, list[Round]] = {mib: [] for mib in options.mib}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = make_store(Path(folder), SPEC, options.experts, "cascade", 4)
        manifest = read_manifest(store)
        slot = aligned_memory(manifest.max_record_bytes)
        with closing(StoreReader(store, manifest)) as reader, ThreadPoolExecutor(IO_THREADS) as pool:
            for turn in range(options.rounds):
                for mib in options.mib if turn % 2 else reversed(options.mib):
                    rounds[mib].append(run_round(reader, pool, slot, int(mib * (1 << 20))))
            direct = reader.direct
    print(f"records of {manifest.max_record_bytes} bytes, {'O_DIRECT' if direct else 'through the page cache'}")
    for mib, taken in rounds.items():
        expert_ms = [statistics.median(each.expert_ms) for each in taken]
        gbps = [each.queued_gbps for each in taken]
        print(
            f"{mib:g} MiB: one expert {statistics.median(expert_ms):.2f} ms ({min(expert_ms):.2f} to "
            f"{max(expert_ms):.2f}), queue {statistics.median(gbps):.2f} GB/s ({min(gbps):.2f} to {max(gbps):.2f})"
        )


if __name__ == "__main__":
    main()
