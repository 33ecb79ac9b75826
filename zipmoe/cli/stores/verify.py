"""`zipmoe verify`: checks every byte of a store against the checksums of the pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipmoe.cli.console import JsonFlag, out, print_json
from zipmoe.cli.problem import FAILURE_EXIT_CODE
from zipmoe.cli.progress_bar import progress_bar
from zipmoe.cli.size import format_size
from zipmoe.cli.stores.store_progress import step_of
from zipmoe.model.torch_version import check_torch


def verify(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    against: Annotated[
        Path | None, typer.Option(metavar="SRC", help="Also compare every tensor with this checkpoint, byte for byte.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads.  [default: all cores]", show_default=False)] = None,
    json_output: JsonFlag = False,
) -> None:
    """Checks every checksum of a store, and on request every tensor against its checkpoint.

    All damages are listed. The exit code is 1 if any damage is found.
    """
    from zipmoe.store.format.manifest import parse_manifest, read_manifest_bytes
    from zipmoe.store.verify.verify import verify_against, verify_store

    checkpoint = None
    if against is not None:
        check_torch()
        from zipmoe.model.checkpoint.catalogue import catalogue

        manifest = parse_manifest(read_manifest_bytes(store))
        checkpoint = catalogue(against, with_mtp=manifest.mtp_layers > 0)
    with progress_bar("verifying", quiet=json_output) as show:
        if checkpoint is None:
            report = verify_store(store, lambda progress: show(step_of(progress)), workers)
        else:
            report = verify_against(store, checkpoint, lambda progress: show(step_of(progress)), workers)
    if json_output:
        print_json(
            {
                "store": str(store),
                "digest": report.digest,
                "intact": report.intact,
                "compared": report.compared,
                "checked_experts": report.checked_experts,
                "checked_bytes": report.checked_bytes,
                "damages": [{"file": damage.file, "problem": damage.problem} for damage in report.damages],
            }
        )
    else:
        for damage in report.damages:
            out().print(f"damaged: {damage}", markup=False, soft_wrap=True)
        compared = " and equal to the checkpoint" if report.compared else ""
        verdict = f"intact{compared}" if report.intact else _count(len(report.damages))
        out().print(f"{verdict}: {report.checked_experts} experts, {format_size(report.checked_bytes)} checked")
    if not report.intact:
        raise typer.Exit(FAILURE_EXIT_CODE)


def _count(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"
