"""`zipmoe plan`: splits a memory budget over the three services and forecasts residency and speed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from zipmoe.cli import options
from zipmoe.cli.console import JsonFlag, facts, out, print_json, table
from zipmoe.cli.flags import Settings
from zipmoe.cli.planning.budget_settings import parse_budgeted
from zipmoe.cli.planning.planned_settings import AUTO, RULE
from zipmoe.cli.planning.store_forecast import forecast_store, write_plot
from zipmoe.cli.size import format_size
from zipmoe.errors import InvalidRequest
from zipmoe.store.read.read_defaults import IO_THREADS

if TYPE_CHECKING:
    from zipmoe.cli.planning.dense_choice import DenseChoice
    from zipmoe.planning.memory_split import MemorySplit
    from zipmoe.process.budgeted import BudgetedConfig
    from zipmoe.store.format.manifest import Manifest


_PLAIN: Final = re.compile(r"[\w@%+:,./-]+")


def plan(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Ceiling over all three services, for example 4GiB.")
    ],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    kv_tokens: options.KvTokens = None,
    kv_cache: options.KvCache = None,
    dense: options.Dense = None,
    tensor_form: options.TensorForm = None,
    max_prompt_tokens: options.MaxPromptTokens = None,
    cache_slots: options.CacheSlots = AUTO,
    workers: options.Workers = None,
    io_threads: options.IoThreads = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt that TTFT is forecast for.")] = 64,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recorded trace to learn from which experts are popular.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the forecasts into an SVG file.")] = None,
    compose_env: Annotated[
        bool, typer.Option("--compose-env", help="Print variables for deploy/docker-compose.yml.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Shows how a memory budget is split over the services, with the expected residency and speed.

    No service has to run. The speed of this machine is measured if it is unknown (some seconds; see `calibrate`). The
    popularity of experts comes from --trace, else from earlier runs, else all experts count as equally popular. A
    budget that cannot hold the model is refused, and the smallest feasible budget is named. The pools get the slots
    that are expected to be fastest, or those of --cache-slots. Without --kv-tokens, the KV cache holds the model's
    context as far as the forecast time per token grows by at most 5 %. Settings that are not given here come from
    ZIPMOE_... variables, else from the defaults of the services.
    """
    from zipmoe.store.format.manifest import read_manifest

    if device not in ("cpu", "cuda"):
        raise InvalidRequest(f"device {device!r} is not cpu or cuda")
    settings: Settings = {
        "store": store,
        "memory_budget": memory_budget,
        "device": device,
        "kv_tokens": kv_tokens,
        "kv_cache": kv_cache,
        "dense": dense,
        "tensor_form": tensor_form,
        "max_prompt_tokens": max_prompt_tokens,
        "workers": workers,
        "cache_slots": None if cache_slots in (AUTO, RULE) else cache_slots,
    }
    config = parse_budgeted(settings, "plan")
    manifest = read_manifest(store)
    split = config.split(manifest)
    assert split is not None
    quiet = json_output or compose_env
    forecasts = forecast_store(config, manifest, device, io_threads or IO_THREADS, prompt_tokens, trace, quiet=quiet)
    if forecasts.kv_tokens is not None:
        config = config.model_copy(update={"kv_tokens": forecasts.kv_tokens})
    chosen = forecasts.dense
    config = config.model_copy(
        update={"dense": chosen.mode, "dense_bytes": chosen.dense_bytes, "tensor_form": forecasts.tensor_form}
    )
    row = forecasts.row(budget_bytes(split))
    if cache_slots == AUTO and row is not None:
        config = config.model_copy(update={"cache_slots": str(row.plan.slots)})
    split = config.split(manifest)
    assert split is not None
    if compose_env:
        print_compose_env(config, split)
        return
    if plot is not None:
        write_plot(plot, forecasts)
    if json_output:
        print_json(
            {
                "store": str(store),
                "device": device,
                **split_json(split),
                "kv_tokens": config.kv_tokens,
                "dense": config.dense,
                "tensor_form": config.tensor_form,
                **forecasts.to_json(budget_bytes(split)),
            }
        )
    else:
        _print_tables(manifest, split, forecasts.dense)
        out().print()
        forecasts.print(budget_bytes(split))


def budget_bytes(split: MemorySplit) -> int:
    """Returns the memory budget of a split: the sum of the services' shares."""
    return split.store_bytes + split.decoder_bytes + split.router_bytes


def split_json(split: MemorySplit) -> dict[str, int | str]:
    """Describes a split as JSON-ready data."""
    return {
        "memory_budget_bytes": budget_bytes(split),
        "store_bytes": split.store_bytes,
        "decoder_bytes": split.decoder_bytes,
        "router_bytes": split.router_bytes,
        "cache_slots": str(split.slots),
        "kv_bytes": split.kv_bytes,
        "dense_bytes": split.dense_bytes,
        "workspace_bytes": split.workspace_bytes,
        "state_bytes": split.state_bytes,
        "state_requests": split.state_requests or 0,
    }


def print_compose_env(config: BudgetedConfig, split: MemorySplit) -> None:
    """Prints the variables of deploy/docker-compose.yml: sizes in bytes, and the settings behind the sizes."""
    for name, value in (
        ("ZIPMOE_STORE", _quoted(str(config.store.absolute()))),
        ("ZIPMOE_MEMORY_BUDGET", budget_bytes(split)),
        ("ZIPMOE_CACHE_SLOTS", split.slots),
        ("ZIPMOE_STORE_MEM_LIMIT", split.store_bytes),
        ("ZIPMOE_DECODER_MEM_LIMIT", split.decoder_bytes),
        ("ZIPMOE_ROUTER_MEM_LIMIT", split.router_bytes),
        ("ZIPMOE_KV_TOKENS", config.kv_tokens),
        ("ZIPMOE_KV_CACHE", config.kv_cache),
        ("ZIPMOE_DENSE", config.dense),
        ("ZIPMOE_DENSE_BYTES", split.dense_bytes),
        ("ZIPMOE_TENSOR_FORM", config.tensor_form),
        ("ZIPMOE_MAX_PROMPT_TOKENS", config.max_prompt_tokens),
        ("ZIPMOE_WORKERS", config.workers),
    ):
        typer.echo(f"{name}={value}")


def _quoted(text: str) -> str:
    """Quotes a value so that docker compose takes it literally."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _print_tables(manifest: Manifest, split: MemorySplit, dense: DenseChoice) -> None:
    rows = [
        (
            "expert-store",
            format_size(split.store_bytes),
            f"{split.slots.e} slots for E-chunks, {split.slots.sm} for SM-chunks",
        ),
        ("decoder", format_size(split.decoder_bytes), f"{split.slots.tensor} slots for recovered experts"),
        ("router", format_size(split.router_bytes), f"dense weights {format_size(split.dense_bytes)}, {dense.form}"),
        ("together", format_size(budget_bytes(split)), ""),
    ]
    out().print(table("memory", ("service", "bytes", "holds"), rows))
    out().print()
    parts = {"KV cache": format_size(split.kv_bytes), "workspace of a prefill": format_size(split.workspace_bytes)}
    saved = manifest.dense_bytes - split.dense_bytes
    parts["dense weights"] = f"{dense.form}, {format_size(saved)} saved" if saved else f"{dense.form}: {dense.reason}"
    if split.state_requests:
        parts["recurrent states"] = f"{format_size(split.state_bytes)}, {split.state_requests} requests at once"
    out().print(facts("in the router", parts))
    packed, experts = min(split.slots.e, split.slots.sm), manifest.expert_count
    out().print(
        f"\n{packed} of {experts} experts fit packed ({packed / experts:.0%}), "
        f"{split.slots.tensor} recovered ({split.slots.tensor / experts:.0%})"
    )
