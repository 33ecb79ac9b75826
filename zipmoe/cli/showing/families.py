"""`zipmoe families`: probes every Mixture-of-Experts model type of the installed transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from zipmoe.cli.console import JsonFlag, err, out, print_json, table, waiting
from zipmoe.errors import InvalidRequest
from zipmoe.model.numerics import prepare_environment
from zipmoe.model.torch_version import check_torch

COLUMNS = ("model type", "path", "experts", "alone", "three at once", "why")


@dataclass(frozen=True)
class FamilyRow:
    """Outcome of one model type.

    Attributes:
        model_type: transformers' `model_type`.
        path: `shared`, `joined`, `in turn` or `refused`.
        lazy: why stock's own code computes the experts of a layer; empty if they are computed one by one.
        reason: why no better path is taken, or why the type is refused.
        seconds: time of the probe.
    """

    model_type: str
    path: str
    lazy: str
    reason: str
    seconds: float

    @property
    def served(self) -> bool:
        """Whether the type is served, with every logit equal to stock's."""
        return self.path != "refused"

    def cells(self) -> tuple[str, ...]:
        """Returns the cells of the table."""
        if not self.served:
            return self.model_type, self.path, "", "", "", self.reason
        experts = "stock's code" if self.lazy else "one by one"
        together = "in turn" if self.path == "in turn" else "identical"
        return self.model_type, self.path, experts, "identical", together, self.lazy or self.reason


def families(
    model_type: Annotated[
        list[str] | None, typer.Argument(metavar="[TYPE]...", help="Model types.  [default: all]", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Compares every Mixture-of-Experts model type with stock transformers, on tiny random checkpoints.

    Each checkpoint is catalogued, built and computed as a real one is: one request alone, and three at once. Every
    logit is compared with that of transformers' `generate`.
    """
    prepare_environment()
    check_torch()
    from zipmoe.model.stock.model_types import moe_model_types

    known = moe_model_types()
    chosen = model_type or known
    if unknown := [each for each in chosen if each not in known]:
        raise InvalidRequest(
            f"{unknown[0]!r} is no Mixture-of-Experts model type of the installed transformers",
            next_step=f"name another type{_similar(unknown[0], known)}, or none: then all {len(known)} are compared",
        )
    rows = []
    with waiting("probing", quiet=json_output) as update:
        for row in probe_types(chosen):
            rows.append(row)
            update(f"probing: {len(rows)} of {len(chosen)}, {row.model_type}")
    served = sum(row.served for row in rows)
    if json_output:
        print_json({"served": served, "types": [{**vars(row), "served": row.served} for row in rows]})
    elif markdown:
        lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *(r.cells() for r in rows))]
        out().print("\n".join(lines), markup=False, soft_wrap=True)
    else:
        out().print(table("families", COLUMNS, [row.cells() for row in rows]))
    err().print(f"{served} of {len(rows)} are identical to stock, {len(rows) - served} are refused")


def _similar(name: str, known: Sequence[str]) -> str:
    names = get_close_matches(name, known)
    return f", such as {', '.join(names)}" if names else ""


def probe_types(model_types: Sequence[str]) -> Iterator[FamilyRow]:
    """Probes model types one after the other, with one thread.

    Args:
        model_types: model types of `zipmoe.model.stock.model_types.moe_model_types`.
    """
    import time

    import torch
    from transformers import AutoConfig, logging

    from zipmoe.errors import ZipMoeError
    from zipmoe.model.families.twin import tiny_config, write_checkpoint
    from zipmoe.model.probe.comparison import probe_checkpoint
    from zipmoe.model.stock.model_class import text_model_class
    from zipmoe.system_error import one_line

    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for model_type in model_types:
        begin_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zipmoe-family-") as folder:
            try:
                text_model_class(AutoConfig.for_model(model_type))
                write_checkpoint(tiny_config(model_type), Path(folder), seed=0)
                found = probe_checkpoint(Path(folder))
                path, lazy, reason = found.path.value, found.lazy, found.reason
            except ZipMoeError as error:
                path, lazy, reason = "refused", "", error.message
            except Exception as error:  # transformers raises anything on a configuration that it cannot build
                path, lazy, reason = "refused", "", f"no small model can be built: {one_line(error)}"
        yield FamilyRow(model_type, path, lazy, reason, time.monotonic() - begin_s)
