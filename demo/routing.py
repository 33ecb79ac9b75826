"""What the gates of the built-in model choose: recorded as a trace, counted, and guessed a layer ahead.

The guess is what a prefetcher could know while layer l is being computed: layer l+1's gate applied to a hidden state of
layer l. There are three to choose from, later ones leaving less time to fetch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Qwen2MoeForCausalLM

GUESSES = {
    "own_norm": "the state that layer l's gate sees",
    "next_norm": "the residual stream before layer l's experts, under layer l+1's norm",
    "layer_output": "the residual stream after layer l, under layer l+1's norm",
}


@contextmanager
def tapped(model: Qwen2MoeForCausalLM) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Collects what every layer computed in the latest pass, an entry a layer.

    `chosen` is int64, shape (n, top_k); `normed`, `residual` and `output` are hidden states, shape (n, hidden): the
    gate's input, the residual stream before the experts and after them.
    """
    taps: list[dict[str, torch.Tensor]] = [{} for _ in model.model.layers]
    hooks = []

    def keep(tap: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        tap[name] = value.reshape(-1, value.shape[-1])

    for tap, layer in zip(taps, model.model.layers, strict=True):

        def norm_hook(_: Any, inputs: Any, output: torch.Tensor, tap: dict[str, torch.Tensor] = tap) -> None:
            keep(tap, "residual", inputs[0])
            keep(tap, "normed", output)

        def gate_hook(_: Any, inputs: Any, output: Any, tap: dict[str, torch.Tensor] = tap) -> None:
            keep(tap, "chosen", output[2])

        def layer_hook(_: Any, inputs: Any, output: Any, tap: dict[str, torch.Tensor] = tap) -> None:
            keep(tap, "output", output if isinstance(output, torch.Tensor) else output[0])

        hooks.append(layer.post_attention_layernorm.register_forward_hook(norm_hook))
        hooks.append(layer.mlp.gate.register_forward_hook(gate_hook))
        hooks.append(layer.register_forward_hook(layer_hook))
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class GuessScore:
    """How well next layers' experts were guessed; counts of experts."""

    guessed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GUESSES, 0))
    total: int = 0

    def add(self, model: Qwen2MoeForCausalLM, taps: list[dict[str, torch.Tensor]]) -> None:
        """Scores one pass."""
        for here, layer, there in zip(taps, model.model.layers[1:], taps[1:], strict=False):
            norm, gate = layer.post_attention_layernorm, layer.mlp.gate
            states = {
                "own_norm": here["normed"],
                "next_norm": norm(here["residual"]),
                "layer_output": norm(here["output"]),
            }
            for name, state in states.items():
                guess = gate(state)[2]
                self.guessed[name] += int((guess[:, :, None] == there["chosen"][:, None, :]).sum())
            self.total += there["chosen"].numel()

    def shares(self) -> dict[str, float]:
        """Share of the next layer's experts that each guess names, with as many guesses as there are experts used."""
        return {name: count / self.total for name, count in self.guessed.items()}


@torch.inference_mode()
def record_trace(
    model: Qwen2MoeForCausalLM, prompts: Iterable[list[int]], tokens: int, prompt_tokens: int
) -> tuple[list[dict[str, Any]], GuessScore]:
    """Runs texts through the model as a server would: a prefill, then the text's own tokens one by one.

    Args:
        model: the model; its gates decide.
        prompts: token ids of each text.
        tokens: how many tokens to run in all; the last text is cut.
        prompt_tokens: tokens of each text that are prefilled.

    Returns:
        The lines of the trace (step, layer, phase, experts, tokens), and how well the decode steps were guessed.
    """
    lines: list[dict[str, Any]] = []
    score = GuessScore()
    step = 0
    with tapped(model) as taps:
        for ids in prompts:
            ids = ids[:tokens]
            tokens -= len(ids)
            cache = DynamicCache(config=model.config)
            pieces = [ids[:prompt_tokens], *([token] for token in ids[prompt_tokens:])]
            for piece in pieces if ids else []:
                model(torch.tensor([piece]), past_key_values=cache, use_cache=True)
                decoding = piece is not pieces[0]
                for layer, tap in enumerate(taps):
                    experts = sorted(set(tap["chosen"].flatten().tolist()))
                    phase = "decode" if decoding else "prefill"
                    lines.append(
                        {"step": step, "layer": layer, "phase": phase, "experts": experts, "tokens": len(piece)}
                    )
                if decoding:
                    score.add(model, taps)
                step += 1
    return lines, score


def write_trace(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


@torch.inference_mode()
def expert_loads(model: Qwen2MoeForCausalLM, windows: Iterable[torch.Tensor]) -> torch.Tensor:
    """Counts how many tokens each expert gets.

    Args:
        model: the model.
        windows: token ids, shape (1, n) each.

    Returns:
        int64, shape (layers, experts).
    """
    counts = torch.zeros(len(model.model.layers), model.config.num_experts, dtype=torch.int64)
    with tapped(model) as taps:
        for window in windows:
            model(window)
            for layer, tap in enumerate(taps):
                counts[layer] += torch.bincount(tap["chosen"].flatten(), minlength=counts.shape[1])
    return counts
