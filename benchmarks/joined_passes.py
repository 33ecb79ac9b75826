"""Decode steps of several requests without KV pages, joined beside one by one, with everything resident.

    python -m benchmarks.joined_passes [--model-type qwen3_5_moe_text] [--experts packed] [--linear kernels] [--profile]

The model has random weights at the widths of Qwen3.5-35B-A3B, in a few layers. A round computes some tokens of each
request in both ways, over two caches of each request, and compares all logits. Figures are medians of the rounds.
On a busy machine the times of the processors tell more than wall times.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from benchmarks.random_store import make_store  # noqa: E402
from zipmoe.model.build.build import BuiltModel, build_model  # noqa: E402
from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.experts.provider import Arrival, InProcessProvider  # noqa: E402
from zipmoe.model.linear.matrices import Weights  # noqa: E402
from zipmoe.model.linear.native_linear import Linears  # noqa: E402
from zipmoe.model.linear.packed import packed_matrices  # noqa: E402
from zipmoe.model.passes.joined import JoinedModel  # noqa: E402
from zipmoe.model.passes.sequence import Sequence as ModelSequence  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.store.format.entries import LayerEntry  # noqa: E402
from zipmoe.store.format.layout import ExpertSpec, TensorSpec  # noqa: E402
from zipmoe.store.format.manifest import read_manifest  # noqa: E402
from zipmoe.store.read.aligned_memory import aligned_memory  # noqa: E402
from zipmoe.store.read.reader import StoreReader  # noqa: E402
from zipmoe.types import ExpertKey, Part  # noqa: E402

WIDTHS: Mapping[str, object] = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}
DRAWN = 8
"""Experts that are drawn. Each of the others is a copy in memory of its own."""


class StepSeconds(NamedTuple):
    """Wall time, and time of all processors of this process."""

    wall_s: float
    busy_s: float


class _InMemory(InProcessProvider):
    """Experts in memory."""

    def __init__(self, layers: Sequence[Sequence[Weights]]) -> None:
        self._layers = layers
        self.fetched = 0

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.fetched += len(rows)
        for expert in rows:
            yield Arrival(expert, self._layers[layer][expert])


def make_experts(folder: Path, spec: ExpertSpec, count: int, *, packed: bool) -> list[Weights]:
    """Makes experts of random weights, bf16 or packed."""
    if not packed:
        drawn = [
            [torch.randn(each.rows, each.cols).mul_(0.02).bfloat16() for each in spec.tensors] for _ in range(DRAWN)
        ]
        return [tuple(matrix.clone() for matrix in drawn[index % DRAWN]) for index in range(count)]
    store = make_store(folder, spec, DRAWN, "cascade", 4)
    manifest = read_manifest(store)
    reader = StoreReader(store, manifest)
    experts: list[Weights] = []
    for index in range(count):
        record = manifest.record(ExpertKey(0, index % DRAWN))
        slot = aligned_memory(manifest.max_record_bytes)
        reader.read(ExpertKey(0, index % DRAWN), Part.ALL, slot)
        experts.append(packed_matrices(record, slot, slot[record.e_bytes :]))
    reader.close()
    return experts


def build(folder: Path, options: argparse.Namespace) -> tuple[BuiltModel, _InMemory]:
    """Builds the model of random weights."""
    config = AutoConfig.for_model(
        options.model_type, **{**WIDTHS, "num_hidden_layers": options.layers, "vocab_size": options.vocab}
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    layers, dense = [], {}
    for name, tensor in meta.state_dict().items():
        if tensor.ndim == 3 and name.endswith(("gate_up_proj", "down_proj")):
            continue
        dense[name] = torch.randn(tensor.shape, dtype=torch.float32).mul_(0.02).to(tensor.dtype)
    for name, module in meta.named_modules():
        if getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3:
            shapes = {each: tuple(getattr(module, each).shape) for each in ("gate_up_proj", "down_proj")}
            spec = ExpertSpec(tuple(TensorSpec(each, *shape[1:]) for each, shape in shapes.items()))
            layers.append(LayerEntry(name, spec, shapes["gate_up_proj"][0]))
    count = layers[0].expert_count
    experts = make_experts(folder, layers[0].spec, count * len(layers), packed=options.experts == "packed")
    provider = _InMemory([experts[index * count : (index + 1) * count] for index in range(len(layers))])
    linears = Linears() if options.linear == "kernels" else None
    return build_model(folder, layers, dense, provider, HostPlacement(), linears), provider


def timed(compute: Callable[[], list[torch.Tensor]]) -> tuple[StepSeconds, list[torch.Tensor]]:
    """Returns the wall and processor seconds of a call, and its result."""
    begin_s, begin_busy_s = time.perf_counter(), time.process_time()
    result = compute()
    return StepSeconds(time.perf_counter() - begin_s, time.process_time() - begin_busy_s), result


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", default="qwen3_5_moe_text")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--experts", choices=("packed", "bf16"), default="packed")
    parser.add_argument("--linear", choices=("kernels", "torch"), default="kernels")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=2, help="tokens of each request in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="profile the joined steps of some further rounds")
    options = parser.parse_args()
    keep_freed_memory()  # as the router does
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as name:
        built, provider = build(Path(name), options)
    model = JoinedModel(built)

    def draw(count: int) -> list[int]:
        return [chance.randrange(options.vocab) for _ in range(count)]

    prompts = [draw(options.prompt_tokens + 7 * index) for index in range(options.requests)]
    alone = [ModelSequence(built) for _ in prompts]
    joined = [model.begin(tokens) for tokens in prompts]
    for sequence, tokens in zip(alone, prompts, strict=True):
        sequence.prefill(tokens)
    model.advance(joined, len(built.experts))
    assert all(each.prompt is not None for each in joined)

    def one_by_one(tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [each.step(token) for step in tokens for each, token in zip(alone, step, strict=True)]

    def together(tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [logits for step in tokens for logits in model.step(joined, step)]

    times: dict[str, list[StepSeconds]] = {"one by one": [], "joined": []}
    fetched = dict.fromkeys(times, 0)
    ways = {"one by one": one_by_one, "joined": together}
    for turn in range(options.rounds + 1):
        tokens = [draw(options.requests) for _ in range(options.tokens)]
        results = {}
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            before = provider.fetched
            spent, results[way] = timed(partial(ways[way], tokens))
            if turn:  # the first round tests linears
                times[way].append(spent)
                fetched[way] += provider.fetched - before
        if not all(torch.equal(one, other) for one, other in zip(*results.values(), strict=True)):
            raise SystemExit(f"round {turn}: joined logits differ from those of each request alone")
    count = options.requests * options.tokens
    for way, taken in times.items():
        wall_s, busy_s = (statistics.median(each[part] for each in taken) for part in (0, 1))
        print(
            f"{way:>10}: {count / wall_s:5.1f} tokens/s; a step of {options.requests} takes "
            f"{wall_s / options.tokens * 1e3:.1f} ms, {busy_s / options.tokens * 1e3:.1f} ms of processors, and "
            f"{fetched[way] / options.rounds / options.tokens:.0f} experts"
        )
    for part, name in enumerate(("wall", "processors")):
        ratios = [one[part] / other[part] for one, other in zip(*times.values(), strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4)
        print(f"joined over one by one, by {name}: {statistics.median(ratios):.2f} ({lower:.2f} to {upper:.2f})")
    if options.profile:
        with cProfile.Profile() as profile:
            for _ in range(options.rounds):
                model.step(joined, draw(options.requests))
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
