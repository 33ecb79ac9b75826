"""`zipmoe calibrate`: measures how fast this machine reads, recovers and computes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, facts, out, print_json, table, waiting
from zipmoe.cli.device_choice import resolve_device
from zipmoe.cli.size import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from zipmoe.calibration.calibration import Calibration, StoreSpeed
    from zipmoe.planning.costs import RowCost


def calibrate(
    store: Annotated[
        Path | None, typer.Argument(metavar="[STORE]", help="A packed store: its disk, codec and model.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model computes: cpu, cuda or auto.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, as when figures are missing.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Measures this machine anew, for `plan` and `simulate`.

    Without a STORE, measures the disk of the cache folder, every codec, and the FFN of a typical expert. Figures are
    kept for this combination of processor, Linux kernel, torch, disk and native kernels. `plan` measures missing
    figures by itself.
    """
    from zipmoe.calibration.calibration_file import calibration_path
    from zipmoe.calibration.measure import calibrate as measure
    from zipmoe.calibration.measurement_time import QUICK, THOROUGH
    from zipmoe.store.format.manifest import read_manifest

    digest = read_manifest(store).digest if store is not None else None
    with waiting("measuring", quiet=json_output) as show:
        found = measure(
            store, resolve_device(device), QUICK if quick else THOROUGH, lambda what: show(f"measuring: {what}")
        )
    path = calibration_path(found.identity)
    stores = {name: speed for name, speed in found.stores.items() if digest in (None, name)}
    if json_output:
        print_json({"path": str(path), **asdict(found), "stores": {n: asdict(s) for n, s in stores.items()}})
    else:
        _print(found, list(stores.values()), path)


def describe_others(others_ratio: float) -> str:
    """Describes the share of the cores' time that other processes took during the measurement."""
    from zipmoe.calibration.other_work import BUSY_RATIO

    text = f"{others_ratio:.0%} of the cores' time"
    return text if others_ratio <= BUSY_RATIO else f"{text}: measure again when the machine is idle"


def _print(found: Calibration, stores: list[StoreSpeed], path: Path) -> None:
    identity = found.identity
    rows = {
        "processor": f"{identity.cpu}, {identity.cores} cores",
        "kernel": identity.kernel,
        "torch": identity.torch,
        "kernels": identity.kernels,
        "disk": identity.disk + ("" if found.disk.direct else ", no O_DIRECT: through the page cache"),
        "latency": f"{found.disk.latency_s * 1e6:.0f} us",
        "message and answer": f"{found.messages.round_trip_s * 1e6:.0f} us, "
        f"each further one {found.messages.further_s * 1e6:.0f} us",
        "others took": describe_others(max([found.others_ratio, *(store.others_ratio for store in stores)])),
        "kept in": str(path),
    }
    out().print(facts("machine", rows))
    out().print()
    out().print(_disk_table(found))
    out().print()
    recover = [
        (
            store.codec,
            format_size(store.expert_bytes),
            point.worker_count,
            *_rates(store.expert_bytes, point.bytes_per_s),
        )
        for store in stores
        for point in store.recover
    ]
    out().print(table("recovery", ("codec", "expert", "workers", "GB/s each", "ms an expert and worker"), recover))
    out().print()
    computing = [
        (
            store.codec,
            device,
            _ms(model.full_ffn),
            _ms(model.packed_ffn),
            _ms(model.dense) if model.dense else model.why_no_dense,
            f"{model.copy_bytes_per_s / 1e9:.1f}" if model.copy_bytes_per_s else "-",
        )
        for store in stores
        for device, model in store.models.items()
    ]
    columns = ("codec", "device", "FFN, FULL", "FFN, PACKED", "dense part of a layer", "copy GB/s")
    out().print(table("computing, ms for the first row + each further one", columns, computing))


def _disk_table(found: Calibration) -> Table:
    depths = sorted({point.queue_depth for point in found.disk.points})
    sizes = sorted({point.request_bytes for point in found.disk.points})
    rate = {(point.request_bytes, point.queue_depth): point.bytes_per_s for point in found.disk.points}
    rows = [(format_size(size), *(f"{rate[size, depth] / 1e9:.2f}" for depth in depths)) for size in sizes]
    return table("random reads, GB/s", ("request", *(f"{depth} at once" for depth in depths)), rows)


def _rates(expert_bytes: int, bytes_per_s: float) -> tuple[str, str]:
    return f"{bytes_per_s / 1e9:.2f}", f"{expert_bytes / bytes_per_s * 1e3:.2f}"


def _ms(cost: RowCost | None) -> str:
    return f"{cost.first_s * 1e3:.3f} + {cost.per_row_s * 1e3:.3f}" if cost else "-"
