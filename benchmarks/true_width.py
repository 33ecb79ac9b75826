"""Generates with a model larger than its arenas and puts each figure beside its floor.

    python -m benchmarks.true_width STORE --tensor-arena 1.5GB [--chunk-arena 256MiB] [--prompts 3] [--json]

Make the store with

    zipmoe synth qwen2_moe SRC --layers 8 --true-widths --vocab 32000 && zipmoe pack SRC STORE

Each prompt is 64 random tokens and 48 forced ones, so that every run does the same work. The disk is measured beside
each prompt: O_DIRECT reads of whole random records with as many threads as the expert store has.
"""

from __future__ import annotations

import argparse
import json
import mmap
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter

from zipmoe.cli.free_ports import free_ports
from zipmoe.cli.scrape import scrape
from zipmoe.cli.trio import Trio, running, wait_until_serving
from zipmoe.client import Finished, GenerationClient, Stopping, Token
from zipmoe.store.manifest import Manifest, read_manifest
from zipmoe.store.reader import StoreReader
from zipmoe.types import Part

PROMPT_TOKENS, NEW_TOKENS, PROBE_READS = 64, 48, 96


@dataclass(frozen=True)
class Row:
    """One prompt. Times in ms; bytes per decoded token; bandwidths in GB/s."""

    ttft_ms: float
    tpot_ms: float
    stall_ms_per_token: float
    bytes_per_token: float
    misses_per_token: float
    prefill_bytes: float
    prefill_gbps: float
    disk_gbps: float


def probe_disk(store: Path, manifest: Manifest, threads: int) -> float:
    """Bandwidth of O_DIRECT reads of random records, in GB/s."""
    reader = StoreReader(store, manifest)
    keys = random.Random(time.time_ns()).sample(list(manifest.expert_keys()), min(PROBE_READS, manifest.expert_count))
    slots = [memoryview(mmap.mmap(-1, manifest.max_record_bytes)) for _ in range(threads)]
    requests = [(key, request) for key in keys for request in reader.requests(key, Part.ALL)]

    def work(index: int) -> int:
        return sum(_read(reader, request, slots[index]) for _, request in requests[index::threads])

    with ThreadPoolExecutor(threads) as pool:
        begin_s = time.perf_counter()
        nbytes = sum(pool.map(work, range(threads)))
        seconds = time.perf_counter() - begin_s
    reader.close()
    return nbytes / seconds / 1e9


def _read(reader: StoreReader, request: object, slot: memoryview) -> int:
    reader.read_request(request, slot)  # type: ignore[arg-type]
    return request.nbytes  # type: ignore[attr-defined, no-any-return]


def run_prompt(client: GenerationClient, ports: list[int], seed: int, disk_gbps: float) -> Row:
    """Runs one prompt and reads its figures off the stream and the services."""
    draw = random.Random(seed)
    prompt = [draw.randrange(100, 31_000) for _ in range(PROMPT_TOKENS)]
    forced = [draw.randrange(100, 31_000) for _ in range(NEW_TOKENS)]
    router_port, store_port = ports[2], ports[0]
    before, read_before = scrape(router_port), scrape(store_port)["zipmoe_store_read_bytes_total"]
    times, prefill_read, after_prefill = [time.perf_counter()], 0.0, before
    stopping = Stopping(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    finished: Finished | None = None
    for event in client.generate(prompt, stopping=stopping, forced_token_ids=forced):
        if isinstance(event, Token):
            times.append(time.perf_counter())
            if len(times) == 2:
                after_prefill = scrape(router_port)
                prefill_read = scrape(store_port)["zipmoe_store_read_bytes_total"] - read_before
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None
    after = scrape(router_port)
    decoded = NEW_TOKENS - 1

    def per_token(name: str) -> float:
        return (after[name] - after_prefill[name]) / decoded

    return Row(
        ttft_ms=(times[1] - times[0]) * 1e3,
        tpot_ms=(times[-1] - times[1]) / decoded * 1e3,
        stall_ms_per_token=per_token("zipmoe_layer_stall_seconds_sum") * 1e3,
        bytes_per_token=per_token("zipmoe_expert_read_bytes_total"),
        misses_per_token=per_token("zipmoe_expert_misses_total"),
        prefill_bytes=prefill_read,
        prefill_gbps=prefill_read / (times[1] - times[0]) / 1e9,
        disk_gbps=disk_gbps,
    )


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--tensor-arena", default="1.5GB")
    parser.add_argument("--chunk-arena", default="256MiB")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--io-threads", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    manifest = read_manifest(options.store)
    size = TypeAdapter(ByteSize)
    ports = free_ports(3)
    own = {
        "expert-store": {
            "chunk_arena": int(size.validate_python(options.chunk_arena)),
            "io_threads": options.io_threads,
        },
        "decoder": {"tensor_arena": int(size.validate_python(options.tensor_arena))},
        "router": {"threads": options.threads},
    }
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as folder:
        shared = {"store": options.store, "device": "cpu", "workers": options.workers}
        with running(Trio(Path(folder), Path(folder), ports, shared, own)) as supervisor:
            begin_s = time.perf_counter()
            wait_until_serving(supervisor, 300, quiet=True)
            startup_s = time.perf_counter() - begin_s
            with GenerationClient(f"unix:{folder}/router.sock") as client:
                rows = []
                for seed in range(options.prompts):
                    disk = probe_disk(options.store, manifest, options.io_threads)
                    rows.append(run_prompt(client, ports, seed, disk))
    medians = {name: statistics.median(asdict(row)[name] for row in rows) for name in asdict(rows[0])}
    if options.json:
        print(json.dumps({"startup_s": startup_s, "rows": [asdict(row) for row in rows], "median": medians}))
        return
    print(f"start-up {startup_s:.1f} s")
    for label, row in [*((str(index), asdict(row)) for index, row in enumerate(rows)), ("median", medians)]:
        print(
            f"{label:>6}: TTFT {row['ttft_ms']:.0f} ms, TPOT {row['tpot_ms']:.0f} ms (waiting for experts "
            f"{row['stall_ms_per_token']:.0f} ms), {row['misses_per_token']:.1f} misses and "
            f"{row['bytes_per_token'] / 1e6:.0f} MB a token; prefill read {row['prefill_bytes'] / 1e9:.2f} GB at "
            f"{row['prefill_gbps']:.2f} GB/s, {row['prefill_gbps'] / row['disk_gbps']:.2f} of the disk's "
            f"{row['disk_gbps']:.2f}"
        )


if __name__ == "__main__":
    main()
