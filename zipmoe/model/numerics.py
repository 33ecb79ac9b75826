"""The numerical environment in which "the same answer as stock" holds, and a self-test of this machine.

This module imports no torch, so that `prepare_environment` can run before torch is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.errors import InternalError

if TYPE_CHECKING:
    import torch

MKL_VARIABLE = "MKL_CBWR"
MKL_SETTING = "AVX2,STRICT"

WAIT_POLICY_VARIABLE = "OMP_WAIT_POLICY"
WAIT_POLICY_SETTING = "passive"
"""Torch's threads sleep between their loops: spinning, they would take the cores from reads and from our kernels."""


def prepare_environment() -> str:
    """Makes MKL's fp32 results independent of the addresses of their operands, and lets OpenMP's idle threads sleep.

    Call it before torch is imported.

    A value that the operator has set is kept: stock under the same value gives the same bits only if it is strict,
    and the self-test reports it.

    Returns:
        The value of `MKL_CBWR` that holds in this process.

    Raises:
        InternalError: torch is already imported and the variable is not set: MKL may have made its choice, and
            results would depend on addresses without anybody noticing.
    """
    os.environ.setdefault(WAIT_POLICY_VARIABLE, WAIT_POLICY_SETTING)
    setting = os.environ.get(MKL_VARIABLE)
    if setting is not None:
        return setting
    if "torch" in sys.modules:
        raise InternalError(
            f"torch was imported before {MKL_VARIABLE} was set",
            next_step=f"call zipmoe.model.numerics.prepare_environment() before importing torch, "
            f"or start the process with {MKL_VARIABLE}={MKL_SETTING}",
        )
    os.environ[MKL_VARIABLE] = MKL_SETTING
    return MKL_SETTING


@dataclass(frozen=True)
class NumericsReport:
    """What the self-test found: does a row of torch's own bf16 linear depend on how many rows are computed with it?

    Requests equal stock either way on the CPU: where they share a pass, each row gets the bits that it has alone (see
    `Linears.alone`). On a GPU torch's linears compute what is shared; where `row_invariant` is false there, a request
    that is batched with others may differ in the share of outputs reported here.
    """

    mkl_cbwr: str
    thread_count: int
    row_counts: tuple[int, ...]
    outputs_checked: int
    outputs_differing: int
    worst_relative_difference: float
    """Largest difference, in units of the largest output of the same linear."""

    @property
    def row_invariant(self) -> bool:
        """Whether every row came out the same bits alone and among others."""
        return self.outputs_differing == 0

    @property
    def strict(self) -> bool:
        """Whether fp32 results are independent of operand addresses under the setting that holds."""
        return "STRICT" in self.mkl_cbwr.upper().split(",")

    def __str__(self) -> str:
        verdict = "row-invariant" if self.row_invariant else "not row-invariant"
        return (
            f"bf16 linears are {verdict}: {self.outputs_differing} of {self.outputs_checked} outputs differ between "
            f"1 row and {self.row_counts[0]}..{self.row_counts[-1]} rows, at most by "
            f"{self.worst_relative_difference:.2e} of the largest output; {self.thread_count} threads, "
            f"{MKL_VARIABLE}={self.mkl_cbwr or 'unset'}"
        )


def check_row_invariance(
    shapes: Sequence[tuple[int, int]] = ((2816, 2048), (2048, 1408)),
    row_counts: Sequence[int] = (2, 3, 4, 8, 16, 32, 64),
    device: torch.device | str = "cpu",
) -> NumericsReport:
    """Compares bf16 linears on one row with the same linears on several rows, bit for bit.

    Args:
        shapes: (outputs, inputs) of the linears, by default those of Qwen1.5-MoE's experts.
        row_counts: ascending numbers of rows to compare one row with, each at least 2.
        device: where to compute.

    Returns:
        The figures; data are drawn from a fixed seed, so the report is repeatable.

    Cost: about a quarter of a second for the default shapes on two AVX2 cores.
    """
    import torch
    from torch.nn.functional import linear

    generator = torch.Generator().manual_seed(0)
    checked = differing = 0
    worst = 0.0
    with torch.inference_mode():
        for outputs, inputs in shapes:
            weight = torch.randn(outputs, inputs, generator=generator).mul_(0.02).bfloat16().to(device)
            rows = torch.randn(max(row_counts), inputs, generator=generator).bfloat16().to(device)
            alone = torch.cat([linear(row, weight) for row in torch.split(rows, 1)])
            for count in row_counts:
                together = linear(rows[:count], weight)
                difference = (together.float() - alone[:count].float()).abs()
                checked += difference.numel()
                differing += int(torch.count_nonzero(difference))
                worst = max(worst, float(difference.max() / alone.abs().max()))
    return NumericsReport(
        mkl_cbwr=os.environ.get(MKL_VARIABLE, ""),
        thread_count=torch.get_num_threads(),
        row_counts=tuple(row_counts),
        outputs_checked=checked,
        outputs_differing=differing,
        worst_relative_difference=worst,
    )
