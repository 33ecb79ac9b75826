"""A decode step with dense weights as bf16 beside one with compressed dense weights, with every expert resident.

    python -m benchmarks.dense_forms STORE [--threads 2] [--rounds 5] [--tokens 20]

Both models of the store are in memory, with the same packed experts, and compute the same tokens by recorded passes in
turn, over KV pages of their own; all logits are compared. A round gives the median of its tokens. Figures are medians
of the rounds: wall time, and processor time of the thread that computes, which other jobs disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402

from zipmoe.kernels.program import Code  # noqa: E402
from zipmoe.model.build.build import BuiltModel, build_from_store  # noqa: E402
from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.experts.provider import Arrival, InProcessProvider  # noqa: E402
from zipmoe.model.linear.matrices import Weights  # noqa: E402
from zipmoe.model.linear.native_linear import Linears  # noqa: E402
from zipmoe.model.linear.packed import packed_matrices  # noqa: E402
from zipmoe.model.passes.ragged import BatchRow, RaggedModel  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.store.format.manifest import Manifest, read_manifest  # noqa: E402
from zipmoe.store.read.aligned_memory import aligned_memory  # noqa: E402
from zipmoe.store.read.reader import StoreReader  # noqa: E402
from zipmoe.types import ExpertKey, Part  # noqa: E402

BF16, COMPRESSED = "bf16", "compressed"
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


class _ResidentExperts(InProcessProvider):
    """All experts of a store, packed, in memory."""

    def __init__(self, store: Path, manifest: Manifest) -> None:
        self._experts: dict[ExpertKey, Weights] = {}
        with closing(StoreReader(store, manifest)) as reader:
            for key in manifest.expert_keys():
                record = manifest.record(key)
                slot = aligned_memory(manifest.max_record_bytes)
                reader.read(key, Part.ALL, slot)
                self._experts[key] = packed_matrices(record, slot, slot[record.e_bytes :])

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert in rows:
            yield Arrival(expert, self._experts[ExpertKey(layer, expert)])


class _Way:
    """A model with its recorded pass."""

    def __init__(self, built: BuiltModel, linears: Linears, pages: int) -> None:
        self.built = built
        self.model = RaggedModel(built, linears, pages)
        report = self.model.record_row()
        print(f"recorded {report.recorded_layers} of {report.layers} layers; by torch: {report.why_not_native}")
        self._pages = list(range(pages))

    def token(self, token: int, position: int) -> tuple[dict[str, float], torch.Tensor]:
        """Computes a token; returns the milliseconds by both clocks and the logits."""
        begin = {name: clock() for name, clock in CLOCKS.items()}
        logits = self.model.compute([BatchRow(token, position, self._pages)])[0]
        assert logits is not None
        return {name: (clock() - begin[name]) * 1e3 for name, clock in CLOCKS.items()}, logits


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    manifest = read_manifest(options.store)
    provider = _ResidentExperts(options.store, manifest)
    count = options.rounds * options.tokens
    pages = count // 32 + 4
    ways: dict[str, _Way] = {}
    for name in (BF16, COMPRESSED):
        linears = Linears()
        begin = time.perf_counter()
        built = build_from_store(
            options.store, manifest, provider, HostPlacement(), linears, compress_dense=name == COMPRESSED
        )
        print(f"{name}: built in {time.perf_counter() - begin:.2f} s, dense weights {built.dense.nbytes} bytes")
        ways[name] = _Way(built, linears, pages)
    forms = ways[COMPRESSED].built.dense_forms
    print(f"matrices {dict(forms.counts)}, saved {forms.saved_bytes} bytes; left: {forms.why_left or 'none'}")
    medians = {(clock, name): list[float]() for clock in CLOCKS for name in ways}
    token, position = 7, 0
    for _ in range(options.rounds):
        times = {each: list[float]() for each in medians}
        for _ in range(options.tokens):
            results = []
            for name in reversed(ways) if position % 2 else ways:
                spent, logits = ways[name].token(token, position)
                for clock, milliseconds in spent.items():
                    times[clock, name].append(milliseconds)
                results.append(logits)
            assert torch.equal(*(each.view(torch.int16) for each in results)), f"logits differ at {position}"
            token, position = (token * 31 + 7) % ways[BF16].built.vocabulary_size, position + 1
        for each, spent_all in times.items():
            medians[each].append(statistics.median(spent_all))
    for clock in CLOCKS:
        on, off = (medians[clock, name] for name in (COMPRESSED, BF16))
        ratios = [one / other for one, other in zip(on, off, strict=True)]
        print(f"{clock:9} bf16 {statistics.median(off):7.2f} ms, compressed {statistics.median(on):7.2f} ms, ratio "
              f"{statistics.median(ratios):.3f}, rounds {min(ratios):.3f} to {max(ratios):.3f}")  # fmt: skip
    for name, way in ways.items():
        program = way.model.row_programs[1]
        assert program is not None
        linear_ms = []
        for _ in range(options.tokens):
            with program.clocked() as seconds:
                way.token(token, position)
            linear_ms.append(seconds[Code.LINEAR] * 1e3)
        print(f"{name:10} linears {statistics.median(linear_ms):.2f} ms of this thread, those of experts included")


if __name__ == "__main__":
    main()
