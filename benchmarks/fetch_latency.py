"""What the way through both services costs: read + recover of one expert, in this process and through the services.

    python benchmarks/fetch_latency.py [--batch 1] [--rows 1408 --cols 2048] [--rounds 60] [--workers 1]

Three ways, interleaved; each fetches `batch` experts at once, as a layer with so many misses does, all from disk:

    pure      StoreReader.read, then codec.recover E-chunk by E-chunk: one thread, nothing in between
    engine    the services' own I/O channel and worker pool, called in this process: threads, but no messages
    services  a FetchSession: router's client -> decoder -> expert store -> decoder -> router's client

services - engine is what messages, processes and event loops cost. `work` is the read and the recovery themselves as
the services measured them; services - work, for a batch of one, is the whole overhead. Small experts show the way with
warm caches; large ones leave every process's code and data to be fetched from memory again.
"""

from __future__ import annotations

import argparse
import json
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

import numpy as np

from services.decoder.client import FetchEvent, FetchResult, FetchSession
from services.decoder.job import RecoverJob
from services.decoder.plan import recover_planner
from services.decoder.workers import WorkerPool
from services.expert_store.channel import ReadChannel
from services.expert_store.job import ReadJob
from services.expert_store.plan import read_planner
from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.codec import create_codec
from zipmoe.residency.base import Read, Recover
from zipmoe.rpc.client import wait_until_serving
from zipmoe.store.layout import ExpertSpec, TensorSpec
from zipmoe.store.manifest import Manifest, read_manifest
from zipmoe.store.reader import REQUEST_BYTES, StoreReader
from zipmoe.store.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.writer import PackOptions, pack_store
from zipmoe.types import ExpertKey, Part, SlotRef

IO_THREADS = 4


@dataclass(frozen=True)
class RandomSource:
    """Experts of weights drawn from N(0, 0.02), in one raw file."""

    layers: tuple[LayerSource, ...]
    total_bytes: int
    family: str = "random"
    dense_tensors: tuple[DenseTensor, ...] = ()
    model_files: tuple[Path, ...] = ()


def make_store(folder: Path, spec: ExpertSpec, experts: int, codec: str, e_chunks: int) -> Path:
    """Packs `experts` random experts and returns the store's directory."""
    random = np.random.default_rng(0)
    raw = folder / "weights.bin"
    sources = []
    with raw.open("wb") as file:
        for _ in range(experts):
            tensors = []
            for tensor in spec.tensors:
                weights = random.standard_normal(tensor.weight_count, dtype=np.float32) * np.float32(0.02)
                begin = file.tell()
                file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                tensors.append(TensorSource(tensor, (ByteRange(raw, begin, tensor.nbytes),)))
            sources.append(tuple(tensors))
        total_bytes = file.tell()
    source = RandomSource((LayerSource("layers.0.experts", sources),), total_bytes)
    pack_store(source, folder / "store", PackOptions(codec=create_codec(codec), e_chunks_per_tensor=e_chunks))
    raw.unlink()
    return folder / "store"


@contextmanager
def services(store: Path, runtime_dir: Path, slots: int, workers: int, extra: list[str]) -> Iterator[str]:
    """Runs an expert store and a decoder; yields the decoder's address."""
    common = ["--store", str(store), "--runtime-dir", str(runtime_dir), "--metrics-port", "0", "--log-level", "error"]
    store_command = [sys.executable, "-m", "services.expert_store", "--chunk-slots", str(slots), *common]
    sizes = ["--tensor-slots", str(slots), "--workers", str(workers)]
    decoder_command = [sys.executable, "-m", "services.decoder", *sizes, *common, *extra]
    processes = [subprocess.Popen(store_command), subprocess.Popen(decoder_command)]
    try:
        wait_until_serving(runtime_dir / "decoder.sock", "zipmoe.internal.v1.DecoderService", 30.0)
        yield f"unix:{runtime_dir}/decoder.sock"
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


class Pure:
    """One thread that reads and then recovers."""

    def __init__(self, reader: StoreReader, chunk_arena: Arena, tensor_arena: Arena) -> None:
        self._reader = reader
        manifest = reader.manifest
        self._recover_plan = recover_planner(manifest)
        self._codec = create_codec(manifest.codec_name, manifest.codec_parameters)
        self._chunk_slot = chunk_arena.slot(0)
        self._tensor_slot = tensor_arena.slot(0)

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Fetches experts one after the other."""
        for key in keys:
            self._reader.read(key, Part.ALL, self._chunk_slot)
            fetch = Recover(0, key, SlotRef("", 0, 0, 0), SlotRef("", 0, 0, 0))
            job = RecoverJob(fetch, "", 0, self._recover_plan(key))
            job.attach(self._chunk_slot, self._tensor_slot, verify=False)
            while not job.taken:
                job.recover(self._codec, job.take())


class Engine:
    """The services' channel and pool without the services."""

    def __init__(self, reader: StoreReader, chunk_arena: Arena, tensor_arena: Arena, workers: int, stack: ExitStack):
        manifest = reader.manifest
        self._read_plan = read_planner(reader, REQUEST_BYTES)
        self._recover_plan = recover_planner(manifest)
        self._tensor_arena = tensor_arena
        self._chunk_arena = chunk_arena
        fd = chunk_arena.read_only_fd()
        self._view = ArenaView.open(fd, chunk_arena.slot_bytes, chunk_arena.slot_count)
        os.close(fd)
        self._read: SimpleQueue[ReadJob] = SimpleQueue()
        self._recovered: SimpleQueue[RecoverJob] = SimpleQueue()
        io = stack.enter_context(ThreadPoolExecutor(IO_THREADS, "io"))
        recover = stack.enter_context(ThreadPoolExecutor(workers, "recover"))
        self._channel = ReadChannel(reader, io, IO_THREADS, self._read.put)
        codec = create_codec(manifest.codec_name, manifest.codec_parameters)
        self._workers = WorkerPool(codec, recover, workers, self._recovered.put)
        self._channel.start()
        self._workers.start()
        stack.callback(self._channel.stop)
        stack.callback(self._workers.stop)

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Reads all, and recovers each when it has been read."""
        for slot, key in enumerate(keys):
            read = Read(slot, key, Part.ALL, SlotRef("", 0, slot, 0))
            self._channel.submit(ReadJob(read, "", self._read_plan(key, Part.ALL), self._chunk_arena.slot(slot)))
        for _ in keys:
            ended = self._read.get()
            assert ended.error is None
            key, ref = ended.read.key, ended.read.chunk_slot
            job = RecoverJob(Recover(0, key, ref, ref), "", ref.slot, self._recover_plan(key))
            job.attach(self._view.slot(ref.slot), self._tensor_arena.slot(ref.slot), verify=False)
            self._workers.submit(job)
        for _ in keys:
            assert self._recovered.get().error is None


class Services:
    """A fetch session; the two halves of each arena take turns."""

    def __init__(self, target: str, stack: ExitStack) -> None:
        self._events: SimpleQueue[FetchEvent] = SimpleQueue()
        self._session = FetchSession.open(target, self._events.put)
        stack.callback(self._session.close)
        self._chunk, self._tensor = self._session.description.chunk_arena, self._session.description.tensor_arena
        self._generation = max(self._session.first_chunk_generation, self._session.first_tensor_generation)
        self._held: list[tuple[SlotRef, SlotRef]] = []
        self.work_s: list[float] = []

    def __call__(self, keys: list[ExpertKey]) -> None:
        """Sends one message, and waits for all results."""
        self._generation += 1
        first = self._generation % 2 * len(keys)
        refs = [
            (
                SlotRef(self._chunk.owner_id, self._chunk.arena_epoch, first + slot, self._generation),
                SlotRef(self._tensor.owner_id, self._tensor.arena_epoch, first + slot, self._generation),
            )
            for slot in range(len(keys))
        ]
        reads = [Read(2 * slot, key, Part.ALL, refs[slot][0]) for slot, key in enumerate(keys)]
        recoveries = [Recover(2 * slot + 1, key, *refs[slot]) for slot, key in enumerate(keys)]
        self._session.send([chunk for chunk, _ in self._held], [tensor for _, tensor in self._held], reads, recoveries)
        work_s = 0.0
        for _ in range(2 * len(keys)):
            event = self._events.get()
            assert isinstance(event, FetchResult), event
            assert event.error is None, event
            work_s += event.work_s
        self.work_s.append(work_s)
        self._held = refs


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
        chunk_arena = Arena.create("chunks", manifest.max_record_bytes, arguments.batch)
        tensor_arena = Arena.create("tensors", manifest.max_tensor_bytes, arguments.batch)
        through_services = Services(target, stack)
        ways: dict[str, Callable[[list[ExpertKey]], None]] = {
            "pure": Pure(reader, chunk_arena, tensor_arena),
            "engine": Engine(reader, chunk_arena, tensor_arena, arguments.workers, stack),
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
