"""Trains the built-in model and writes it, with its tokenizer, as a hub-format checkpoint.

    python -m demo.train --corpus "$(scripts/fetch_debian.sh bible-kjv-text dict-devil jargon-text)"

About an hour on two cores, minutes on a GPU. It may be stopped at any time: the same command goes on from the last
snapshot in the work folder, and ends in the same weights as without the stop (same machine, same number of threads).
`python -m demo.report` then measures the model and writes its card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy, one_hot
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
)

from demo.corpus import Document, read_corpus
from demo.tokenizer import encode, train_tokenizer

SHARD_BYTES = "6MB"


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, besides the corpus and the machine."""

    epochs: int = 3
    batch: int = 4
    window: int = 512
    peak_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    balance: float = 0.02
    """Weight of the load-balancing loss, a layer each."""

    seed: int = 20260121
    bf16: bool = False
    """Whether products are computed in bf16 (weights and sums stay fp32): faster where the hardware has it."""


def model_config(vocab_size: int) -> Qwen2MoeConfig:
    """A small Qwen1.5-MoE: every layer with 16 routed experts, 4 of them used, and a shared one."""
    return Qwen2MoeConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=96,
        shared_expert_intermediate_size=256,
        intermediate_size=256,
        decoder_sparse_step=1,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


class Windows:
    """The training documents as batches of windows; which ones a step sees follows from the seed alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: list[Document], recipe: Recipe) -> None:
        """Tokenizes all documents once."""
        self._recipe = recipe
        self._documents = [torch.tensor(encode(tokenizer, document)) for document in documents]
        tokens = sum(len(document) for document in self._documents)
        self.steps_per_epoch = tokens // (recipe.batch * recipe.window)
        self.steps = recipe.epochs * self.steps_per_epoch

    def batches(self, first_step: int) -> Iterator[torch.Tensor]:
        """Token ids of each step from `first_step` on, int64, shape (batch, window)."""
        shape = (self.steps_per_epoch, self._recipe.batch, self._recipe.window)
        for epoch in range(first_step // self.steps_per_epoch, self._recipe.epochs):
            generator = torch.Generator().manual_seed(self._recipe.seed + epoch)
            order = torch.randperm(len(self._documents), generator=generator).tolist()
            windows = torch.cat([self._documents[index] for index in order])[: math.prod(shape)].view(-1, shape[-1])
            windows = windows[torch.randperm(len(windows), generator=generator)].view(shape)
            yield from windows[max(0, first_step - epoch * self.steps_per_epoch) :]


def balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """The Switch Transformer's load-balancing loss (Fedus et al. 2021, eq. 4), the mean over the layers.

    transformers' own adds the layers up first, under which one layer may starve an expert that another one feeds.
    """
    losses = []
    for logits in router_logits:
        experts = logits.shape[-1]
        probabilities = logits.float().softmax(-1)
        load = one_hot(probabilities.topk(top_k, -1).indices, experts).sum(-2).float().mean(0) / top_k
        losses.append(experts * (load * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


class Training:
    """Weights, optimizer and step, which is all that a snapshot holds."""

    def __init__(self, recipe: Recipe, vocab_size: int, steps: int, device: torch.device) -> None:
        """Draws the first weights."""
        torch.manual_seed(recipe.seed)
        config = model_config(vocab_size)
        self.model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="grouped_mm"
        ).to(device)
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0
        self._recipe, self._steps, self._device = recipe, steps, device

    def learn(self, batch: torch.Tensor) -> dict[str, float]:
        """Takes one step.

        Returns:
            The losses, in nats a token.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        tokens = batch.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.bf16):
            output = self.model(tokens, output_router_logits=True)
            loss = cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
            balance = balance_loss(output.router_logits, self.model.config.num_experts_per_tok)
        (loss + self._recipe.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"loss": loss.item(), "balance": balance.item()}

    def _rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        warmup = min(1.0, (self.step + 1) / self._recipe.warmup_steps)
        return self._recipe.peak_rate * warmup * 0.5 * (1 + math.cos(math.pi * self.step / self._steps))

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Writes a snapshot; a crash leaves the one before."""
        partial = path.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save({"identity": identity, **state}, partial)
        os.replace(partial, path)

    def resume(self, path: Path, identity: dict[str, Any]) -> None:
        """Goes on from a snapshot.

        Raises:
            SystemExit: it is of another recipe or corpus.
        """
        snapshot = torch.load(path, map_location=self._device, weights_only=True)
        if snapshot["identity"] != identity:
            raise SystemExit(f"error: {path} is of another recipe or corpus: delete it, or choose another --work")
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.step = snapshot["step"]


@torch.no_grad()
def held_out_loss(training: Training, windows: list[torch.Tensor]) -> float:
    """Mean loss in nats a token."""
    losses = [training.model(window, labels=window).loss.item() for window in windows]
    return sum(losses) / len(losses)


def write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes what a hub repository of this model would hold, in bf16 and in shards."""
    model = model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=0, pad_token_id=0, do_sample=True, temperature=0.8, top_p=0.95
    )
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Trains from the last snapshot to the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that scripts/fetch_debian.sh printed")
    parser.add_argument("--work", type=Path, default=Path("build/demo-training"), help="snapshots and curves")
    parser.add_argument("--out", type=Path, default=Path("demo/model"), help="the checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--snapshot-steps", type=int, default=100)
    for name, value in asdict(Recipe()).items():
        kind: dict[str, Any] = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value)}
        parser.add_argument("--" + name.replace("_", "-"), default=value, **kind)
    arguments = parser.parse_args()
    recipe = Recipe(**{name: getattr(arguments, name) for name in asdict(Recipe())})
    torch.set_num_threads(arguments.threads)

    documents = read_corpus(arguments.corpus)
    learnt = [document for document in documents if not document.held_out]
    tokenizer = train_tokenizer(learnt)
    windows = Windows(tokenizer, learnt, recipe)
    training = Training(recipe, len(tokenizer), windows.steps, torch.device(arguments.device))
    identity = {**asdict(recipe), "corpus_bytes": sum(len(document.plain.encode()) for document in documents)}
    arguments.work.mkdir(parents=True, exist_ok=True)
    (arguments.work / "recipe.json").write_text(json.dumps(asdict(recipe)))
    snapshot, curves = arguments.work / "snapshot.pt", arguments.work / "curves.jsonl"
    if snapshot.exists():
        training.resume(snapshot, identity)
    held_out = [token for document in documents if document.held_out for token in encode(tokenizer, document)]
    stride = len(held_out) // 16
    probes = [torch.tensor([held_out[begin : begin + recipe.window]]) for begin in range(0, 16 * stride, stride)]
    probes = [probe.to(training.model.device) for probe in probes]

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar, curves.open("a") as log:
        task = bar.add_task("training", total=windows.steps, completed=training.step)
        began = time.monotonic()
        for batch in windows.batches(training.step):
            losses = training.learn(batch)
            bar.update(task, completed=training.step, description=f"loss {losses['loss']:.3f}")
            if training.step % arguments.snapshot_steps == 0 or training.step == windows.steps:
                losses["held_out"] = held_out_loss(training, probes)
                line = {"step": training.step, "seconds": round(time.monotonic() - began, 1), **losses}
                print(json.dumps(line), file=log, flush=True)
                training.save(snapshot, identity)
    write_checkpoint(training.model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
