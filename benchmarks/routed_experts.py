"""Measures one MoE layer of a decode step, everything resident: RoutedExperts, stock eager, and the bare linears.

    python benchmarks/routed_experts.py [--hidden 2048 --intermediate 1408 --experts 16 --top-k 4 --rounds 200]

Prints microseconds, median over interleaved rounds, so that a busy machine disturbs all three alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from torch.nn.functional import linear, silu  # noqa: E402
from transformers import Qwen2MoeConfig  # noqa: E402

from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.experts.proof import prove_ffn  # noqa: E402
from zipmoe.model.experts.provider import Arrival, InProcessProvider  # noqa: E402
from zipmoe.model.experts.routed_experts import RoutedExperts  # noqa: E402
from zipmoe.model.experts.supply import ExpertSupply  # noqa: E402
from zipmoe.model.stock.experts_module import stacked_matrices  # noqa: E402
from zipmoe.model.stock.model_class import construct  # noqa: E402
from zipmoe.store.format.layout import ExpertSpec, TensorSpec  # noqa: E402


class _Resident(InProcessProvider):
    def __init__(self, experts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._experts = experts

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert in rows:
            yield Arrival(expert, self._experts[expert])


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("hidden", 2048), ("intermediate", 1408), ("experts", 16), ("top-k", 4), ("rounds", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    config = Qwen2MoeConfig(
        num_hidden_layers=1,
        hidden_size=options.hidden,
        moe_intermediate_size=options.intermediate,
        num_experts=options.experts,
    )
    template = next(module for module in construct(config).model.modules() if stacked_matrices(module))
    stock = deepcopy(template).to_empty(device="cpu").requires_grad_(False)
    for parameter in stock.parameters():
        parameter.normal_(0, 0.02)
    resident = [(stock.gate_up_proj[i], stock.down_proj[i]) for i in range(options.experts)]
    spec = ExpertSpec(
        (
            TensorSpec("gate_up_proj", 2 * options.intermediate, options.hidden),
            TensorSpec("down_proj", options.hidden, options.intermediate),
        )
    )
    ffn = prove_ffn(template, spec, torch.device("cpu"))
    ours = RoutedExperts(0, ffn, ExpertSupply(_Resident(resident), HostPlacement()))
    row = torch.randn(1, options.hidden).bfloat16()
    selected = torch.randperm(options.experts)[None, : options.top_k]
    weights = torch.rand(1, options.top_k).bfloat16()

    def bare() -> None:
        for expert in sorted(selected[0].tolist()):
            gate_up, down = resident[expert]
            gate, up = linear(row, gate_up).chunk(2, -1)
            linear(silu(gate) * up, down)

    with torch.inference_mode():
        if not torch.equal(ours(row, selected, weights), stock(row, selected, weights)):
            raise SystemExit("RoutedExperts and stock differ")
        calls = {
            "RoutedExperts": lambda: ours(row, selected, weights),
            "stock eager": lambda: stock(row, selected, weights),
            "bare linears": bare,
        }
        for name, microseconds in _measure(calls, options.rounds).items():
            print(f"{name:14} {microseconds:8.0f} us")


def _measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) * 1e6 for name, times in taken.items()}


if __name__ == "__main__":
    main()
