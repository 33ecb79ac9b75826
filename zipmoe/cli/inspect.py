"""`zipmoe inspect`: what is in a store, from its manifest alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli.console import JsonFlag, facts, out, print_json, table
from zipmoe.cli.size import format_size

if TYPE_CHECKING:
    from zipmoe.store.manifest import Manifest


def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    json_output: JsonFlag = False,
) -> None:
    """Describes a store: model, codec, sizes, layers. Reads the manifest only; `verify` reads the rest."""
    from zipmoe.store.manifest import read_manifest

    description = describe(read_manifest(store))
    if json_output:
        print_json({"store": str(store), **description})
        return
    parameters = ", ".join(f"{name}={value}" for name, value in description["codec_parameters"].items())
    codec = f"{description['codec']} ({parameters})" if parameters else description["codec"]
    rows = {
        "format": f"version {description['version']}, by {description['created_by']}",
        "digest": description["digest"],
        "family": description["family"],
        "codec": f"{codec}, {description['e_chunks_per_tensor']} E-chunks a tensor",
        "experts": f"{description['experts']}: {format_size(description['expert_file_bytes'])} on disk, "
        f"{description['ratio']:.4f} of {format_size(description['expert_weight_bytes'])}",
        "largest expert": f"{format_size(description['max_record_bytes'])} packed, "
        f"{format_size(description['max_tensor_bytes'])} recovered",
        "dense": format_size(description["dense_bytes"]),
        "files": description["files"],
    }
    out().print(facts(str(store), rows))
    out().print()
    layers = [
        (
            index,
            layer["module"],
            layer["experts"],
            "  ".join(f"{t['name']} {t['rows']}x{t['cols']}" for t in layer["tensors"]),
        )
        for index, layer in enumerate(description["layers"])
    ]
    out().print(table("MoE layers", ("layer", "module", "experts", "tensors of an expert"), layers))


def describe(manifest: Manifest) -> dict[str, Any]:
    """Describes a manifest for programs."""
    weight_bytes = sum(layer.spec.weight_bytes * layer.expert_count for layer in manifest.layers)
    file_bytes = sum(file.nbytes for file in manifest.files)
    return {
        "version": manifest.version,
        "created_by": manifest.created_by,
        "digest": manifest.digest,
        "family": manifest.family,
        "codec": manifest.codec_name,
        "codec_parameters": dict(manifest.codec_parameters),
        "e_chunks_per_tensor": manifest.e_chunks_per_tensor,
        "experts": sum(layer.expert_count for layer in manifest.layers),
        "expert_weight_bytes": weight_bytes,
        "expert_file_bytes": file_bytes,
        "ratio": file_bytes / weight_bytes,
        "max_record_bytes": manifest.max_record_bytes,
        "max_tensor_bytes": manifest.max_tensor_bytes,
        "dense_bytes": manifest.dense_bytes,
        "files": len(manifest.all_files) + 1,
        "layers": [
            {
                "module": layer.module,
                "experts": layer.expert_count,
                "tensors": [{"name": t.name, "rows": t.rows, "cols": t.cols} for t in layer.spec.tensors],
            }
            for layer in manifest.layers
        ],
    }
