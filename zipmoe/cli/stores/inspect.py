"""`zipmoe inspect`: describes a store from its manifest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zipmoe.cli.console import JsonFlag, facts, out, print_json, table
from zipmoe.cli.size import format_size

UNPROBED = "not probed on this machine; `zipmoe up` will"


def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    json_output: JsonFlag = False,
) -> None:
    """Describes a store: model, codec, sizes, layers. Reads no weights; `verify` does."""
    from zipmoe.calibration.saved_probe import known_result
    from zipmoe.model.conversation.stored_template import stored_formats, stored_templates
    from zipmoe.store.format.inspection import describe_store

    description: dict[str, Any] = describe_store(store)
    probe = known_result(store)
    description["requests"] = probe.to_plain() if probe is not None else None
    formats = stored_formats(store)
    description["conversations"] = {
        "templates": sorted(stored_templates(store)),
        "reasoning": formats.reasoning_name,
        "tool_calls": formats.calls_name,
    }
    if json_output:
        print_json(description)
        return
    out().print(facts(str(store), _facts(description, str(probe or UNPROBED))))
    out().print()
    tensors = [
        (each["name"], f"{each['rows']} x {each['cols']}", each["count"], f"{each['exponent_ratio']:.4f}")
        for each in description["tensors"]
    ]
    out().print(table("matrices of the experts", ("name", "shape", "count", "exponent ratio"), tensors))
    out().print()
    layers = [
        (index, layer["module"], layer["experts"], format_size(layer["stored_bytes"]), f"{layer['ratio']:.4f}")
        for index, layer in enumerate(description["layers"])
    ]
    out().print(table("MoE layers", ("layer", "module", "experts", "on disk", "ratio"), layers))


def _facts(description: dict[str, Any], requests: str) -> dict[str, str]:
    parameters = ", ".join(f"{name}={value}" for name, value in description["codec"]["parameters"].items())
    codec = description["codec"]["name"] + (f" ({parameters})" if parameters else "")
    stored, bf16 = description["expert_stored_bytes"], description["expert_bf16_bytes"]
    further = {}
    if left_out := description["left_out"]:
        further["left out"] = f"{', '.join(left_out)}: images and sound are not read, only text is served"
    if mtp_layers := description["mtp_layers"]:
        further["MTP"] = f"{mtp_layers} layers that draft tokens, the last of the layers below"
    if measured := description["measured"]:
        further["a request"] = (
            f"{format_size(measured['token_bytes'])} of cache a token and {format_size(measured['request_bytes'])}, "
            f"{measured['experts_per_token']} experts a token and layer"
        )
    return {
        "format": f"version {description['format_version']}, by {description['created_by']}",
        "digest": description["digest"],
        "family": description["family"],
        "requests": requests,
        "conversations": _conversations(**description["conversations"]),
        "codec": f"{codec}, {description['e_chunks_per_tensor']} E-chunks a tensor",
        "experts": f"{description['expert_count']}: {format_size(stored)} on disk, {stored / bf16:.4f} of "
        f"{format_size(bf16)}, {format_size(description['padding_bytes'])} of it padding",
        "slots": f"{format_size(description['chunk_slot_bytes'])} a chunk slot, "
        f"{format_size(description['tensor_slot_bytes'])} a tensor slot",
        "dense": format_size(description["dense_bytes"]),
        **further,
        "in all": f"{format_size(description['total_bytes'])} in {description['files']} files, "
        f"{description['ratio']:.4f} of the checkpoint",
    }


def _conversations(templates: list[str], reasoning: str, tool_calls: str) -> str:
    if not templates:
        return "none: there is no chat template"
    named = f"templates {', '.join(templates)}; " if len(templates) > 1 else ""
    return f"{named}reasoning {reasoning or 'not marked'}, tool calls {tool_calls or 'of no known format'}"
