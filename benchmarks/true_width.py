"""Generates with a model larger than its arenas and puts each figure beside its floor.

    python -m benchmarks.true_width STORE --memory-budget 4GiB [--prompts 3] [--json] [any option of `zipmoe up`]

Make the store with

    zipmoe synth qwen2_moe SRC --layers 8 --true-widths --vocab 32000 && zipmoe pack SRC STORE

Each prompt is 64 random tokens and 48 forced ones, so that every run does the same work. The services run in a memory
cgroup of exactly the budget. The disk is measured beside each prompt: O_DIRECT reads of whole random records with as
many threads as the expert store has.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.memory_cgroup import memory_cgroup
from zipmoe.cli.size import parse_size
from zipmoe.cli.watching.scrape import Samples, read_samples
from zipmoe.client import Finished, GenerationClient, Stopping, Token
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.read_defaults import IO_THREADS
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import Part

NEW_TOKENS, PROBE_READS = 48, 96


@dataclass(frozen=True)
class WidthRow:
    """One prompt. Times in ms; bytes per decoded token; bandwidths in GB/s."""

    ttft_ms: float
    tpot_ms: float
    stall_ms_per_token: float
    bytes_per_token: float
    misses_per_token: float
    prefill_bytes: float
    prefill_gbps: float
    disk_gbps: float
    guesses_true_per_token: float
    guesses_wasted_per_token: float


def probe_disk(store: Path, manifest: Manifest, threads: int) -> float:
    """Bandwidth of O_DIRECT reads of random records, in GB/s."""
    reader = StoreReader(store, manifest)
    keys = random.Random(time.time_ns()).sample(list(manifest.expert_keys()), min(PROBE_READS, manifest.expert_count))
    slots = [aligned_memory(manifest.max_record_bytes) for _ in range(threads)]

    def work(index: int) -> int:
        nbytes = 0
        for key in keys[index::threads]:
            e_bytes = manifest.record(key).e_bytes
            e_slot, sm_slot = slots[index][:e_bytes], slots[index][e_bytes:]
            for request in reader.requests(key, Part.ALL):
                reader.read_request(request, e_slot, sm_slot)
                nbytes += request.nbytes
        return nbytes

    with ThreadPoolExecutor(threads) as pool:
        begin_s = time.perf_counter()
        nbytes = sum(pool.map(work, range(threads)))
        seconds = time.perf_counter() - begin_s
    reader.close()
    return nbytes / seconds / 1e9


def read(port: int) -> Samples:
    """The metrics of one service."""
    return Samples(read_samples(port))


def run_prompt(client: GenerationClient, ports: list[int], seed: int, prompt_tokens: int, disk_gbps: float) -> WidthRow:
    """Runs one prompt and reads its figures off the stream and the services."""
    draw = random.Random(seed)
    prompt = [draw.randrange(100, 31_000) for _ in range(prompt_tokens)]
    forced = [draw.randrange(100, 31_000) for _ in range(NEW_TOKENS)]
    router_port, store_port = ports[2], ports[0]
    before, read_before = read(router_port), read(store_port).total("zipmoe_store_read_bytes_total")
    times, prefill_read, after_prefill = [time.perf_counter()], 0.0, before
    stopping = Stopping(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    finished: Finished | None = None
    for event in client.generate(prompt, stopping=stopping, forced_token_ids=forced):
        if isinstance(event, Token):
            times.append(time.perf_counter())
            if len(times) == 2:
                after_prefill = read(router_port)
                prefill_read = read(store_port).total("zipmoe_store_read_bytes_total") - read_before
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None
    after = read(router_port)
    decoded = NEW_TOKENS - 1

    def per_token(name: str, **labels: str) -> float:
        return (after.total(name, **labels) - after_prefill.total(name, **labels)) / decoded

    def guesses(outcome: str) -> float:
        return per_token("zipmoe_prefetches_total", outcome=outcome)

    return WidthRow(
        ttft_ms=(times[1] - times[0]) * 1e3,
        tpot_ms=(times[-1] - times[1]) / decoded * 1e3,
        stall_ms_per_token=per_token("zipmoe_layer_stall_seconds_sum") * 1e3,
        bytes_per_token=per_token("zipmoe_expert_read_bytes_total"),
        misses_per_token=per_token("zipmoe_expert_misses_total"),
        prefill_bytes=prefill_read,
        prefill_gbps=prefill_read / (times[1] - times[0]) / 1e9,
        disk_gbps=disk_gbps,
        guesses_true_per_token=guesses("used") + guesses("late"),
        guesses_wasted_per_token=guesses("wasted"),
    )


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and those of `zipmoe up`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory-budget", metavar="SIZE", default="4GiB")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-cgroup", action="store_true", help="do not hold the services to the budget")
    parser.add_argument("--json", action="store_true")
    return parser.parse_known_args()


@contextmanager
def services(options: argparse.Namespace, up_options: Sequence[str], folder: Path) -> Iterator[tuple[list[int], float]]:
    """Runs `zipmoe up` in a cgroup of the budget; yields the metrics ports and the seconds until all served."""
    command = [sys.executable, "-m", "zipmoe.cli", "up", options.store, "--memory-budget", options.memory_budget]
    command += [
        "--device",
        "cpu",
        "--fill",
        "off",  # the first prompt begins cold
        "--listen",
        "",
        "--metrics-port",
        "0",
        "--runtime-dir",
        folder,
        "--json",
        *up_options,
    ]
    limit_bytes = parse_size("1TiB" if options.no_cgroup else options.memory_budget)
    with memory_cgroup(limit_bytes) as cgroup:
        with cgroup.popen([*command, *up_options], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit(f"zipmoe up ended with code {process.wait()}")
            ready = json.loads(line)
            try:
                yield [service["metrics_port"] for service in ready["services"]], ready["startup_s"]
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()
        print(cgroup.usage(), file=sys.stderr)


def main() -> None:
    """Runs the benchmark as the command line says."""
    options, up_options = parse()
    manifest = read_manifest(options.store)
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as name:
        folder = Path(name)
        with (
            services(options, up_options, folder) as (ports, startup_s),
            GenerationClient(f"unix:{folder}/router.sock") as client,
        ):
            rows = []
            for seed in range(options.seed, options.seed + options.prompts):
                disk = probe_disk(options.store, manifest, IO_THREADS)
                rows.append(run_prompt(client, ports, seed, options.prompt_tokens, disk))
    medians = {name: statistics.median(asdict(row)[name] for row in rows) for name in asdict(rows[0])}
    if options.json:
        print(json.dumps({"startup_s": startup_s, "rows": [asdict(row) for row in rows], "median": medians}))
        return
    print(f"start-up {startup_s:.1f} s")
    for label, row in [*((str(index), asdict(row)) for index, row in enumerate(rows)), ("median", medians)]:
        print(
            f"{label:>6}: TTFT {row['ttft_ms']:.0f} ms, TPOT {row['tpot_ms']:.0f} ms (waiting for experts "
            f"{row['stall_ms_per_token']:.0f} ms), {row['misses_per_token']:.1f} misses and "
            f"{row['bytes_per_token'] / 1e6:.0f} MB a token, guesses {row['guesses_true_per_token']:.1f} true and "
            f"{row['guesses_wasted_per_token']:.1f} wasted; prefill read {row['prefill_bytes'] / 1e9:.2f} GB at "
            f"{row['prefill_gbps']:.2f} GB/s, {row['prefill_gbps'] / row['disk_gbps']:.2f} of the disk's "
            f"{row['disk_gbps']:.2f}"
        )


if __name__ == "__main__":
    main()
