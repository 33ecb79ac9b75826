"""What the way through both services costs: read + recover of one expert, in this process and through the services.

    python benchmarks/fetch_latency.py [--batch 1] [--rows 1408 --cols 2048] [--rounds 60] [--workers 1]

Three ways, interleaved; each fetches `batch` experts at once, as a layer with so many misses does, all from disk:

    pure      StoreReader.read, then codec.recover E-chunk by E-chunk: one thread, nothing in between
    engine    the services' own task pools, for reads and recoveries, called in this process: threads, but no messages
    services  a FetchSession: router's client -> decoder -> expert store -> decoder -> router's client

services - engine is what messages, processes and event loops cost. `work` is the read and the recovery themselves as
the services measured them; services - work, for a batch of one, is the whole overhead. Small experts show the way with
warm caches; large ones leave every process's code and data to be fetched from memory again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from random_store import make_store

from zipmoe.arena.arena import Arena
from zipmoe.codec.registry import create_codec
from zipmoe.process.job import JobEvent
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, Urgency
from zipmoe.rpc.client import wait_until_serving
from zipmoe.services.decoder.client import FetchEvent, FetchSession
from zipmoe.services.decoder.job import RecoverJob, Slots
from zipmoe.services.decoder.plan import recover_planner
from zipmoe.services.decoder.recovered_form import Bf16Rows
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.measured_disk import MeasuredDisk
from zipmoe.services.expert_store.plan import read_planner
from zipmoe.store.format.layout import ExpertSpec, TensorSpec
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.read_defaults import REQUEST_BYTES
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part, SlotRef

IO_THREADS = 4


@contextmanager
def services(store: Path, runtime_dir: Path, slots: int, workers: int, extra: list[str]) -> Iterator[str]:
    """Runs an expert store and a decoder; yields the decoder's address."""
    common = ["--store", str(store), "--runtime-dir", str(runtime_dir), "--metrics-port", "0", "--log-level", "error"]
    common += ["--cache-slots", f"{slots}:{slots}:{slots}", "--workers", str(workers)]
    store_command = [sys.executable, "-m", "zipmoe.services.expert_store", *common]
    decoder_command = [sys.executable, "-m", "zipmoe.services.decoder", *common, *extra]
    processes = [subprocess.Popen(store_command), subprocess.Popen(decoder_command)]
    try:
        wait_until_serving(runtime_dir / "decoder.sock", "zipmoe.internal.v1.DecoderService", 30.0)
        yield f"unix:{runtime_dir}/decoder.sock"
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Arenas:
    """The three arenas of this process, with as many slots each."""

    e: Arena
    sm: Arena
    tensors: Arena

    @classmethod
    def create(cls, manifest: Manifest, slot_count: int) -> Arenas:
        """Allocates them."""
        return cls(
            Arena.create("e", manifest.max_e_bytes, slot_count, lock=True),
            Arena.create("sm", manifest.max_sm_bytes, slot_count, lock=True),
            Arena.create("tensors", manifest.max_tensor_bytes, slot_count, lock=True),
        )

    def read(self, slot: int, key: ExpertKey) -> Read:
        """A read of a whole expert into one slot."""
        ref = SlotRef("", 0, slot, 0)
        return Read(slot, key, Part.ALL, ref, ref, Urgency.NEEDED)

    def recover(self, slot: int, key: ExpertKey) -> Recover:
        """A recovery from that slot into the one of the same number."""
        ref = SlotRef("", 0, slot, 0)
        return Recover(slot, key, ref, ref, ref, Urgency.NEEDED)

    def slots(self, slot: int) -> Slots:
        """The memory of such a recovery."""
        return Slots(self.e.slot(slot), self.sm.slot(slot), self.tensors.slot(slot))


class Pure:
    """One thread that reads and then recovers."""

    def __init__(self, reader: StoreReader, arenas: Arenas) -> None:
        self._reader = reader
        manifest = reader.manifest
        self._recover_plan = recover_planner(manifest)
        self._form = Bf16Rows(create_codec(manifest.codec_name, manifest.codec_parameters))
        self._arenas = arenas
        self._record = aligned_memory(manifest.max_record_bytes)

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Fetches experts one after the other."""
        for key in keys:
            self._reader.read(key, Part.ALL, self._record)
            e_bytes = self._reader.manifest.record(key).e_bytes
            slots = Slots(self._record[:e_bytes], self._record[e_bytes:], self._arenas.tensors.slot(0))
            job = RecoverJob(
                self._arenas.recover(0, key),
                self._recover_plan(key),
                slots,
                self._form,
                begin_by_s=math.inf,
                verify=False,
            )
            job.make_ready(first_tensor_only=False)
            while not job.taken:
                job.recover(job.take())


class FetchEngine:
    """The services' channel and pool without the services."""

    def __init__(self, reader: StoreReader, arenas: Arenas, workers: int, stack: ExitStack):
        manifest = reader.manifest
        self._read_plan = read_planner(reader, REQUEST_BYTES)
        self._recover_plan = recover_planner(manifest)
        self._arenas = arenas
        self._read: SimpleQueue[JobEvent[ReadJob]] = SimpleQueue()
        self._recovered: SimpleQueue[JobEvent[RecoverJob]] = SimpleQueue()
        io = stack.enter_context(ThreadPoolExecutor(IO_THREADS, "io"))
        recover = stack.enter_context(ThreadPoolExecutor(workers, "recover"))
        self._io = TaskPool(MeasuredDisk(reader).read, io, IO_THREADS, self._read.put)
        self._form = Bf16Rows(create_codec(manifest.codec_name, manifest.codec_parameters))
        self._workers = TaskPool(RecoverJob.recover, recover, workers, self._recovered.put)
        self._io.start()
        self._workers.start()
        stack.callback(self._io.stop)
        stack.callback(self._workers.stop)

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Reads all, and begins to recover each when its first tensor has been read."""
        for slot, key in enumerate(keys):
            e_slot, sm_slot = self._arenas.e.slot(slot), self._arenas.sm.slot(slot)
            read = self._arenas.read(slot, key)
            self._io.make_ready(ReadJob(read, "", self._read_plan(key, Part.ALL), e_slot, sm_slot, begin_by_s=math.inf))
        jobs: dict[int, RecoverJob] = {}
        missing = len(keys)
        while missing:
            event = self._read.get()
            slot, key = event.job.read.operation_id, event.job.read.key
            if slot not in jobs:
                fetch = self._arenas.recover(slot, key)
                jobs[slot] = RecoverJob(
                    fetch,
                    self._recover_plan(key),
                    self._arenas.slots(slot),
                    self._form,
                    begin_by_s=math.inf,
                    verify=False,
                )
            if event.ended:
                assert event.job.error is None
                missing -= 1
            self._workers.make_ready(jobs[slot], first_tensor_only=not event.ended)
        missing = len(keys)
        while missing:
            recovered = self._recovered.get()
            assert recovered.job.error is None
            missing -= recovered.ended


class FetchServices:
    """A fetch session; the two halves of each arena take turns."""

    def __init__(self, target: str, stack: ExitStack) -> None:
        self._events: SimpleQueue[FetchEvent] = SimpleQueue()
        self._session = FetchSession.open(target, self._events.put)
        stack.callback(self._session.close)
        described = self._session.description
        assert described.tensor_arena is not None
        self._arenas = {Pool.E: described.e_arena, Pool.SM: described.sm_arena, Pool.TENSOR: described.tensor_arena}
        self._generation = max(self._session.first_generations)
        self._held: list[Release] = []
        self.work_s: list[float] = []

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Sends one message, and waits for all results."""
        self._generation += 1
        first = self._generation % 2 * len(keys)
        batch = Operations(releases=self._held)
        self._held = []
        for index, key in enumerate(keys):
            refs = {pool: self._ref(pool, first + index) for pool in self._arenas}
            self._held += [Release(pool, ref) for pool, ref in refs.items()]
            e_slot, sm_slot, tensor_slot = refs[Pool.E], refs[Pool.SM], refs[Pool.TENSOR]
            batch.reads.append(Read(2 * index, key, Part.ALL, e_slot, sm_slot, Urgency.NEEDED))
            batch.recoveries.append(Recover(2 * index + 1, key, e_slot, sm_slot, tensor_slot, Urgency.NEEDED))
        self._session.send(batch)
        work_s = 0.0
        missing = 2 * len(keys)
        while missing:
            event = self._events.get()
            assert isinstance(event, Completed), event
            assert event.error is None, event
            missing -= not event.first_tensor_only
            work_s += event.work_s
        self.work_s.append(work_s)

    def _ref(self, pool: Pool, slot: int) -> SlotRef:
        arena = self._arenas[pool]
        return SlotRef(arena.owner_id, arena.arena_epoch, slot, self._generation)


def measure(
    ways: dict[str, Callable[[list[ExpertKey]], None]], manifest: Manifest, rounds: int, batch: int
) -> dict[str, list[float]]:
    """Runs all ways in turn on the same experts; returns seconds of each run."""
    all_keys = list(manifest.expert_keys())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(rounds + 3):
        keys = [all_keys[(index * batch + place) % len(all_keys)] for place in range(batch)]
        for turn in range(len(names)):
            name = names[(index + turn) % len(names)]
            begin = time.perf_counter()
            ways[name](keys)
            if index >= 3:  # the first ones warm up threads and scratch memory
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1408, help="width of an expert")
    parser.add_argument("--cols", type=int, default=2048, help="width of the model")
    parser.add_argument("--batch", type=int, default=1, help="experts that are fetched at once")
    parser.add_argument("--e-chunks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--codec", default="zstd")
    parser.add_argument("--verify", action="store_true", help="run the decoder with --verify-recovered")
    arguments = parser.parse_args()
    spec = ExpertSpec(
        (
            TensorSpec("gate_up_proj", 2 * arguments.rows, arguments.cols),
            TensorSpec("down_proj", arguments.cols, arguments.rows),
        )
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zipmoe-", dir=Path.cwd())))
        runtime_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zipmoe-")))
        store = make_store(folder, spec, max(8, 2 * arguments.batch), arguments.codec, arguments.e_chunks)
        extra = ["--verify-recovered"] if arguments.verify else []
        target = stack.enter_context(services(store, runtime_dir, 2 * arguments.batch, arguments.workers, extra))
        manifest = read_manifest(store)
        reader = StoreReader(store, manifest)
        stack.callback(reader.close)
        arenas = Arenas.create(manifest, arguments.batch)
        through_services = FetchServices(target, stack)
        ways: dict[str, Callable[[list[ExpertKey]], None]] = {
            "pure": Pure(reader, arenas),
            "engine": FetchEngine(reader, arenas, arguments.workers, stack),
            "services": through_services,
        }
        seconds = measure(ways, manifest, arguments.rounds, arguments.batch)
    work = through_services.work_s[3:]
    rows = {
        **seconds,
        "services - engine": differences(seconds["services"], seconds["engine"]),
        "work": work,
        "services - work": differences(seconds["services"], work),
    }
    report: dict[str, object] = {
        "expert_mb": round(spec.tensor_bytes / 1e6, 2),
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "workers": arguments.workers,
        "codec": arguments.codec,
        "verify": arguments.verify,
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({**report, **{f"{name}_ms": spread(values) for name, values in rows.items()}}, indent=2))


def differences(minuends: list[float], subtrahends: list[float]) -> list[float]:
    """Differences of the runs of one round."""
    return [one - other for one, other in zip(minuends, subtrahends, strict=True)]


def spread(values: list[float]) -> str:
    """Median, lower quartile and least value, in milliseconds."""
    quartiles = statistics.quantiles(values, n=4)
    return f"{quartiles[1] * 1e3:.3f} (lower quartile {quartiles[0] * 1e3:.3f}, least {min(values) * 1e3:.3f})"


if __name__ == "__main__":
    main()
