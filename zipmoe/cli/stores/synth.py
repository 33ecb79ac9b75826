"""`zipmoe synth`: writes a synthetic checkpoint of a real model family."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli.console import JsonFlag, facts, out, print_json
from zipmoe.cli.progress_bar import ProgressStep, progress_bar
from zipmoe.cli.size import format_size, parse_size
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.model.synth.writer import SynthProgress


def synth(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="transformers' model_type, for example qwen2_moe.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to make; new or empty.")],
    true_widths: Annotated[
        bool, typer.Option("--true-widths", help="Sizes of the real model instead of tiny ones.")
    ] = False,
    layers: Annotated[int | None, typer.Option(help="Layers, instead of the model's.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary size, instead of the model's.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden size, instead of the model's.")] = None,
    experts: Annotated[int | None, typer.Option(help="Routed experts of a layer, instead of the model's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other value of config.json, as JSON; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights. The same arguments give the same bytes.")] = 0,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of a shard, for example 2GB.")
    ] = None,
    packed: Annotated[bool, typer.Option("--packed", help="One tensor for all experts of a layer.")] = False,
    straddle: Annotated[
        bool, typer.Option("--straddle", help="Spread every expert's tensors over several shards.")
    ] = False,
    mtp: Annotated[bool, typer.Option("--mtp", help="Also the layers for multi-token prediction.")] = False,
    workers: Annotated[int, typer.Option(help="Threads.")] = 2,
    json_output: JsonFlag = False,
) -> None:
    """Writes a hub-format checkpoint with true names and shapes, random weights and its own small tokenizer.

    The checkpoint serves tests, demonstrations and measurements. Memory use does not grow with the model.
    """
    overrides = {**_settings(settings or []), **_sizes(family, hidden, experts)}
    shards_bytes = None if shard_size is None else parse_size(shard_size)

    from zipmoe.model.synth.writer import synthesise

    begin_s = time.monotonic()
    with progress_bar("writing", quiet=json_output) as show:

        def on_progress(progress: SynthProgress) -> None:
            rate = progress.written_bytes / max(1e-9, time.monotonic() - begin_s)
            left_s = (progress.total_bytes - progress.written_bytes) / rate if rate else None
            show(ProgressStep(progress.written_bytes, progress.total_bytes, rate, left_s, progress.file_name))

        summary = synthesise(
            family,
            destination,
            true_widths=true_widths,
            layers=layers,
            vocab=vocab,
            seed=seed,
            shards_bytes=shards_bytes,
            packed=packed,
            straddle=straddle,
            mtp=mtp,
            overrides=overrides,
            worker_count=workers,
            progress=on_progress,
        )
    result = {
        "path": str(summary.path),
        "family": summary.family,
        "tensors": summary.tensor_count,
        "shards": summary.shard_count,
        "weight_bytes": summary.weight_bytes,
        "seconds": time.monotonic() - begin_s,
    }
    if json_output:
        print_json(result)
        return
    size = f"{format_size(summary.weight_bytes)} in {summary.tensor_count} tensors, {summary.shard_count} shards"
    out().print(facts("checkpoint", {"path": summary.path, "family": summary.family, "size": size}))


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--set {pair!r} is not NAME=VALUE")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def _sizes(family: str, hidden: int | None, experts: int | None) -> dict[str, int]:
    from zipmoe.model.synth.configs import REAL

    sizes: dict[str, int] = {}
    for values, names in ((hidden, ("hidden_size", "d_model")), (experts, _EXPERT_COUNTS)):
        if values is not None:
            known = REAL.get(family, {})
            sizes[next((name for name in names if name in known), names[0])] = values
    return sizes


_EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")
