"""Prints the parallel regions of OpenMP in a decode step of each kind, as JSON; run by `test_openmp.py`."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402

from tests.model.tiny import load_stock, save_checkpoint, split_stock  # noqa: E402
from zipmoe.model.build.build import build_model  # noqa: E402
from zipmoe.model.experts.device import HostPlacement  # noqa: E402
from zipmoe.model.linear.native_linear import Linears  # noqa: E402
from zipmoe.model.passes.ragged import BatchRow, RaggedModel  # noqa: E402


def main(counter: str, family: str, folder: Path) -> None:
    """Counts with the library `counter`."""
    regions = ctypes.CDLL(counter).openmp_regions
    regions.restype = ctypes.c_long
    torch.set_num_threads(2)
    save_checkpoint(family, folder)
    layers, dense, provider = split_stock(load_stock(folder))
    linears = Linears()
    model = RaggedModel(build_model(folder, layers, dense, provider, HostPlacement(), linears), linears, 24)
    report = model.record_row()
    counts = {"layers": report.layers, "recorded": report.recorded_layers}
    tables = [list(range(first, first + 4)) for first in (0, 4, 8, 12)]

    def steps(rows: int, position: int) -> int:
        before = regions()
        model.compute([BatchRow(5 + row, position, tables[row]) for row in range(rows)])
        return int(regions() - before)

    for rows in (1, 2, 4):
        for position in range(3):
            steps(rows, position)  # what is tested once for a length is tested here
        counts[str(rows)] = steps(rows, 3)
    before = regions()
    torch.ones(1, 8, 4).cos(), torch.ones(1, 8, 4).sin()
    counts["rotary"] = int(regions() - before)
    before = regions()
    torch.softmax(torch.ones(4, 8), -1)
    counts["gate"] = int(regions() - before)
    torch.ones(1 << 20).add_(1)
    counts["all"] = int(regions())
    print(json.dumps(counts))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
