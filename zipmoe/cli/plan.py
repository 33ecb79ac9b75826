"""`zipmoe plan`: how a memory budget would be split over the three services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli.console import JsonFlag, facts, out, print_json, table
from zipmoe.cli.size import format_size, parse_size
from zipmoe.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from zipmoe.residency.budget import MemorySplit
    from zipmoe.store.manifest import Manifest


def plan(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    memory_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Ceiling over all three services, for example 4GiB.")
    ],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens of KV cache over all running requests.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="The longest prompt.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Recover workers of the decoder.", show_default=False)] = None,
    compose_env: Annotated[
        bool, typer.Option("--compose-env", help="Print variables for deploy/docker-compose.yml.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Shows how a memory budget is split over the services, before anything runs.

    A budget that cannot hold the model is refused, and the smallest feasible one is named.
    """
    from zipmoe.residency.budget import BudgetRequest, split_budget
    from zipmoe.store.manifest import read_manifest

    if device not in ("cpu", "cuda"):
        raise InvalidRequest(f"device {device!r} is not cpu or cuda")
    budget_bytes = parse_size(memory_budget)
    given = {"kv_tokens": kv_tokens, "prompt_tokens": prompt_tokens, "worker_count": workers}
    request = BudgetRequest(budget_bytes, device=device, **{k: v for k, v in given.items() if v is not None})
    manifest = read_manifest(store)
    split = split_budget(manifest, read_config(store), request)
    if compose_env:
        print_compose_env(split, budget_bytes)
    elif json_output:
        print_json({"store": str(store), "memory_budget_bytes": budget_bytes, "device": device, **split_json(split)})
    else:
        _print_tables(manifest, split, budget_bytes)


def read_config(store: Path) -> dict[str, Any]:
    """Reads a store's config.json.

    Raises:
        NotFound: the store has none.
    """
    try:
        config = json.loads((store / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"store {store} has no config.json") from error
    return dict(config)


def split_json(split: MemorySplit) -> dict[str, int]:
    """Describes a split for programs."""
    return {
        "store_bytes": split.store_bytes,
        "decoder_bytes": split.decoder_bytes,
        "router_bytes": split.router_bytes,
        "chunk_slots": split.chunk_slots,
        "tensor_slots": split.tensor_slots,
        "kv_bytes": split.kv_bytes,
        "workspace_bytes": split.workspace_bytes,
    }


def print_compose_env(split: MemorySplit, budget_bytes: int) -> None:
    """Prints the variables that deploy/docker-compose.yml asks for, in bytes."""
    for name, value in (
        ("ZIPMOE_MEMORY_BUDGET", budget_bytes),
        ("ZIPMOE_STORE_MEM_LIMIT", split.store_bytes),
        ("ZIPMOE_DECODER_MEM_LIMIT", split.decoder_bytes),
        ("ZIPMOE_ROUTER_MEM_LIMIT", split.router_bytes),
    ):
        typer.echo(f"{name}={value}")


def _print_tables(manifest: Manifest, split: MemorySplit, budget_bytes: int) -> None:
    experts = sum(layer.expert_count for layer in manifest.layers)
    rows = [
        ("expert-store", format_size(split.store_bytes), f"{split.chunk_slots} chunk slots"),
        ("decoder", format_size(split.decoder_bytes), f"{split.tensor_slots} tensor slots"),
        ("router", format_size(split.router_bytes), f"dense weights {format_size(manifest.dense_bytes)}"),
        ("together", format_size(budget_bytes), ""),
    ]
    out().print(table("memory", ("service", "bytes", "holds"), rows))
    out().print()
    resident = min(split.tensor_slots, experts)
    out().print(
        facts(
            "in the router",
            {"KV cache": format_size(split.kv_bytes), "workspace of a prefill": format_size(split.workspace_bytes)},
        )
    )
    out().print(f"\n{resident} of {experts} experts fit recovered ({resident / experts:.0%})")
