"""A decode step of one request, eager beside recorded, with everything resident.

    python -m benchmarks.recorded_pass [--layers 8] [--experts 16] [--form packed] [--threads 2] [--tokens 60]

The model has random weights at the widths of Qwen1.5-MoE-A2.7B, in a few layers with fewer experts. Every token is
computed in both ways, in turn first, over two page tables; all logits are compared. Figures are medians. The parts of a
step are measured in rounds of their own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from benchmarks.joined_passes import make_experts  # noqa: E402
from zipmoe.kernels.program import Code  # noqa: E402
from zipmoe.model.attention import row_attention  # noqa: E402
from zipmoe.model.build.build import BuiltModel, build_model  # noqa: E402
from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.experts.provider import Arrival, InProcessProvider  # noqa: E402
from zipmoe.model.linear import linear_order, packed  # noqa: E402
from zipmoe.model.linear.matrices import Weights  # noqa: E402
from zipmoe.model.linear.native_linear import Linears  # noqa: E402
from zipmoe.model.passes.ragged import BatchRow, RaggedModel  # noqa: E402
from zipmoe.model.program.replay.row_program import RowProgram  # noqa: E402
from zipmoe.model.stock.mtp import construct_mtp  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.store.format.entries import LayerEntry  # noqa: E402
from zipmoe.store.format.layout import ExpertSpec, TensorSpec  # noqa: E402
from zipmoe.store.format.manifest import MTP_PREFIX  # noqa: E402

WIDTHS: Mapping[str, Mapping[str, object]] = {
    "qwen2_moe": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "deepseek_v2": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "max_position_embeddings": 4096,
    },
    "glm4_moe": {  # half of the hidden size of GLM-4.5-Air
        "hidden_size": 2048,
        "num_attention_heads": 48,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 5472,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 4096,
    },
}
EXPERTS = {"qwen2_moe": "num_experts", "deepseek_v2": "n_routed_experts", "glm4_moe": "n_routed_experts"}


class _HeldExperts(InProcessProvider):
    """Experts in memory."""

    def __init__(self, layers: Sequence[Sequence[Weights]]) -> None:
        self._layers = layers

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert in rows:
            yield Arrival(expert, self._layers[layer][expert])


def build(folder: Path, options: argparse.Namespace, *, mtp: bool = False) -> tuple[BuiltModel, Linears]:
    """Builds the model of random weights, on request with its layers for multi-token prediction."""
    widths = {**WIDTHS[options.model_type], EXPERTS[options.model_type]: options.experts}
    config = AutoConfig.for_model(
        options.model_type, **widths, num_hidden_layers=options.layers, vocab_size=options.vocab
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if mtp:
        meta.add_module(MTP_PREFIX.rstrip("."), construct_mtp(meta))
    layers, dense = [], {}
    block = torch.randn(1 << 22)
    for name, tensor in meta.state_dict().items():
        if tensor.ndim == 3 and name.endswith(("gate_up_proj", "down_proj")):
            continue
        drawn = block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view(tensor.shape)
        scale = 0.02 if tensor.ndim < 2 or "embed" in name else 1.6 * tensor.shape[-1] ** -0.5
        dense[name] = (drawn * scale + (1 if "norm" in name else 0)).to(tensor.dtype)
    for name, module in meta.named_modules():
        if getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3:
            shapes = {each: tuple(getattr(module, each).shape) for each in ("gate_up_proj", "down_proj")}
            spec = ExpertSpec(tuple(TensorSpec(each, *shape[1:]) for each, shape in shapes.items()))
            layers.append(LayerEntry(name, spec, shapes["gate_up_proj"][0]))
    count = layers[0].expert_count
    experts = make_experts(folder, layers[0].spec, count * len(layers), packed=options.form == "packed")
    provider = _HeldExperts([experts[index * count : (index + 1) * count] for index in range(len(layers))])
    linears = Linears()
    return build_model(folder, layers, dense, provider, HostPlacement(), linears), linears


def milliseconds(compute: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Returns the milliseconds of a call, and its result."""
    begin = time.perf_counter()
    result = compute()
    return (time.perf_counter() - begin) * 1e3, result


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=tuple(WIDTHS), default="qwen2_moe")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--form", choices=("packed", "bf16"), default="packed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--position", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=60)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        built, linears = build(Path(folder), options)
    pages = -(-(options.position + 2 * options.tokens + 8) // 32) + 1
    model = RaggedModel(built, linears, 2 * pages)
    report = model.record_row()
    print(
        f"recorded {report.recorded_layers} of {report.layers} layers in {report.seconds:.2f} s, {report.nbytes} bytes"
    )
    print(f"by torch: {report.why_not_native or 'nothing'}; eager: {report.why_eager or 'nothing'}")
    program = model.row_programs[1]
    assert program is not None
    tables = list(range(pages)), list(range(pages, 2 * pages))
    generator = torch.Generator().manual_seed(3)
    for blocks in (*model.pool.keys, *model.pool.values):
        drawn = torch.randn(blocks.shape[0], options.position, blocks.shape[2], generator=generator).bfloat16()
        for table in tables:
            blocks[:, table[0] * 32 : table[0] * 32 + options.position] = drawn

    def eager(token: int, position: int) -> torch.Tensor:
        found = model.compute_eagerly([BatchRow(token, position, tables[0])])[0]
        assert found is not None
        return found

    def replayed(token: int, position: int) -> torch.Tensor:
        found = program.compute([BatchRow(token, position, tables[1])])
        assert found is not None
        return found[0]

    times: dict[str, list[float]] = {"eager": [], "recorded": []}
    token = position = options.position
    for turn in range(options.tokens):
        results = []
        for name in ("eager", "recorded") if turn % 2 else ("recorded", "eager"):
            way = eager if name == "eager" else replayed
            spent, logits = milliseconds(partial(way, token, position))
            times[name].append(spent)
            results.append(logits)
        assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16)), f"logits differ at {position}"
        token, position = (token * 31 + 7) % options.vocab, position + 1
    for name, spent in times.items():
        print(f"{name:9} median {statistics.median(spent):6.2f} ms, best {min(spent):6.2f}")
    saved = sorted(a - b for a, b in zip(times["eager"], times["recorded"], strict=True))
    ratio = statistics.median(times["recorded"]) / statistics.median(times["eager"])
    print(
        f"saved     median {statistics.median(saved):6.2f} ms, quartiles {saved[len(saved) // 4]:.2f} "
        f"{saved[3 * len(saved) // 4]:.2f}; ratio {ratio:.3f}"
    )
    report_parts(options.tokens // 2, partial(eager, token, position), partial(replayed, token, position), program)


def report_parts(
    rounds: int, eager: Callable[[], torch.Tensor], replayed: Callable[[], torch.Tensor], program: RowProgram
) -> None:
    """Prints what linears and attention leave of a step: processor time of the thread that computes."""
    rest: list[float] = []
    with clocked_kernels() as spent:
        for _ in range(rounds):
            spent[0] = 0.0
            begin = time.thread_time()
            eager()
            rest.append((time.thread_time() - begin - spent[0]) * 1e3)
    print(f"eager:    {statistics.median(rest):6.2f} ms without linears and attention, best {min(rest):.2f}")
    rest, parts = [], []
    for _ in range(rounds):
        begin = time.thread_time()
        with program.clocked() as seconds:
            replayed()
        whole = time.thread_time() - begin
        rest.append((whole - seconds[Code.LINEAR] - seconds[Code.ATTEND]) * 1e3)
        parts.append({code: value * 1e3 for code, value in seconds.items()})
    small = [sum(value for code, value in each.items() if code not in KERNELS) for each in parts]
    print(f"recorded: {statistics.median(rest):6.2f} ms without linears and attention, best {min(rest):.2f}, "
          f"of which native operations {statistics.median(small):.2f}")  # fmt: skip
    for code in Code:
        print(f"  {code.name:12} {statistics.median(each[code] for each in parts):8.3f} ms")


KERNELS = (Code.LINEAR, Code.ATTEND)


@contextmanager
def clocked_kernels() -> Iterator[list[float]]:
    """Adds up the processor seconds of this thread in the linears and the attention of an eager pass."""
    spent = [0.0]
    places: list[tuple[Any, str]] = [
        (linear_order, "run_linear"), (packed, "run_cascade"),
        (row_attention, "run_scores"), (row_attention, "run_values"),
    ]  # fmt: skip
    kept = [getattr(*place) for place in places]

    def clocked(function: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            begin = time.thread_time()
            function(*args)
            spent[0] += time.thread_time() - begin

        return run

    for (module, name), function in zip(places, kept, strict=True):
        setattr(module, name, clocked(function))
    try:
        yield spent
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


if __name__ == "__main__":
    main()
