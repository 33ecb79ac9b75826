"""A decode step by the forms of its weights in memory, with every expert resident.

    python -m benchmarks.memory_forms STORE [--threads 2] [--rounds 5] [--tokens 20]

The models of the store are in memory and compute the same tokens by recorded passes in turn, over KV pages of their
own; all logits are compared. A round gives the median of its tokens. Figures are medians of the rounds: wall time, and
processor time of the thread that computes, which other jobs disturb less.

    way         dense weights   experts
    bf16        bf16            PACKED: chunks of the store
    dense       compressed      PACKED
    recovered   bf16            bf16
    all         compressed      in the in-memory form of the machine
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
from zipmoe.model.build.dense_forms import form_of_machine  # noqa: E402
from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.experts.provider import Arrival, InProcessProvider  # noqa: E402
from zipmoe.model.linear.compressed import CompressedMatrix  # noqa: E402
from zipmoe.model.linear.matrices import Matrix, Weights  # noqa: E402
from zipmoe.model.linear.native_linear import Linears  # noqa: E402
from zipmoe.model.linear.packed import PackedMatrix, packed_matrices  # noqa: E402
from zipmoe.model.passes.ragged import BatchRow, RaggedModel  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.store.format.manifest import Manifest, read_manifest  # noqa: E402
from zipmoe.store.read.aligned_memory import aligned_memory  # noqa: E402
from zipmoe.store.read.reader import StoreReader  # noqa: E402
from zipmoe.types import ExpertKey, Part  # noqa: E402

BF16 = "bf16"
WAYS = {BF16: (False, "packed"), "dense": (True, "packed"), "recovered": (False, BF16), "all": (True, "form")}
"""By name: whether dense weights are compressed, and the form of the experts."""
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


class _ResidentExperts(InProcessProvider):
    """All experts of a store in memory, in one form."""

    def __init__(self, store: Path, manifest: Manifest, kind: str) -> None:
        self._experts: dict[ExpertKey, Weights] = {}
        linears = Linears()
        with closing(StoreReader(store, manifest)) as reader:
            for key in manifest.expert_keys():
                record = manifest.record(key)
                slot = aligned_memory(manifest.max_record_bytes)
                reader.read(key, Part.ALL, slot)
                packed = packed_matrices(record, slot, slot[record.e_bytes :])
                self._experts[key] = (
                    packed if kind == "packed" else tuple(_in_form(each, kind, linears) for each in packed)
                )

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert in rows:
            yield Arrival(expert, self._experts[ExpertKey(layer, expert)])


def _in_form(matrix: PackedMatrix, kind: str, linears: Linears) -> Matrix:
    weight = matrix.recover()
    if kind == BF16:
        return weight
    form = form_of_machine(linears, *matrix.shape)
    assert form is not None, f"no in-memory form has torch's bits for {matrix.shape}"
    return CompressedMatrix.of(weight, form)


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
    providers = {kind: _ResidentExperts(options.store, manifest, kind) for kind in {kind for _, kind in WAYS.values()}}
    count = options.rounds * options.tokens
    pages = count // 32 + 4
    ways: dict[str, _Way] = {}
    for name, (compress, kind) in WAYS.items():
        linears = Linears()
        begin = time.perf_counter()
        built = build_from_store(
            options.store, manifest, providers[kind], HostPlacement(), linears, compress_dense=compress
        )
        print(f"{name}: built in {time.perf_counter() - begin:.2f} s, dense weights {built.dense.nbytes} bytes")
        ways[name] = _Way(built, linears, pages)
    forms = ways["all"].built.dense_forms
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
            bits = [each.view(torch.int16) for each in results]
            assert all(torch.equal(each, bits[0]) for each in bits), f"logits differ at {position}"
            token, position = (token * 31 + 7) % ways[BF16].built.vocabulary_size, position + 1
        for each, spent_all in times.items():
            medians[each].append(statistics.median(spent_all))
    for clock in CLOCKS:
        for name in ways:
            taken = medians[clock, name]
            ratios = [one / other for one, other in zip(taken, medians[clock, BF16], strict=True)]
            print(f"{clock:9} {name:9} {statistics.median(taken):7.2f} ms, of bf16's {statistics.median(ratios):.3f}, "
                  f"rounds {min(ratios):.3f} to {max(ratios):.3f}")  # fmt: skip
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
