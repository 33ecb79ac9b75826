"""Checks whether the kernels sum the products of a bf16 linear in the order of this machine's torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zipmoe.doctor.finding import Finding, ok, warn
from zipmoe.doctor.processor import cpu_features
from zipmoe.model.numerics import prepare_environment
from zipmoe.system_error import first_line

if TYPE_CHECKING:
    from zipmoe.model.linear.linear_order import OrderTable

ISA_VARIABLE: Final = "ONEDNN_MAX_CPU_ISA"
ISA_SETTING: Final = "AVX512_CORE_BF16"
"""Keeps oneDNN from AMX. Every processor with AMX has these instructions, and the kernels know their order."""

_OUTPUTS, _INPUTS = 64, 2048


def check_linears(table: OrderTable | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Tests one bf16 linear with several numbers of rows, as the router tests those of its model.

    Args:
        table: summation orders; by default those of this machine's torch.
        cpuinfo: the description of the processor.

    Raises:
        InternalError: torch was imported before `MKL_CBWR` was set.

    Cost: the import of torch, and half a second.
    """
    prepare_environment()
    try:
        import torch

        from zipmoe.model.build.dense_forms import form_of_machine
        from zipmoe.model.linear.native_linear import Linears
    except (ImportError, OSError) as error:
        return warn("linears", f"not tested: {first_line(error)}", "repair torch or the kernels, then run this again")
    linears = Linears(table)
    report = linears.self_test([(_OUTPUTS, _INPUTS, False)])
    if report.matched:
        form = form_of_machine(linears, _OUTPUTS, _INPUTS)
        dense = "stay bf16: no in-memory form has this order" if form is None else f"can be compressed in {form}"
        return ok("linears", f"{report}; dense weights {dense}")
    found = (
        f"torch {torch.__version__} sums in an order that the kernels do not know: torch computes all linears, "
        "and experts are recovered before use; answers stay exact"
    )
    if "amx_bf16" in cpu_features(cpuinfo) and ISA_VARIABLE not in os.environ:
        return warn(
            "linears",
            found,
            f"for faster tokens but slower prompts start ZipMoE with {ISA_VARIABLE}={ISA_SETTING}, and stock too if "
            "you compare: without AMX torch sums in an order that the kernels know",
        )
    return warn("linears", found, "report this line and the processor's, so that the kernels learn the order")
