"""Prepares the environment in which a process computes the same bits as stock, and tests the machine.

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
"""Torch's idle threads sleep between parallel loops. Spinning threads would take the cores from reads and kernels."""


def prepare_environment() -> str:
    """Makes MKL's fp32 results independent of operand addresses, and lets OpenMP's idle threads sleep.

    Call this function before torch is imported.

    A value of `MKL_CBWR` that the operator has set is kept. Only a strict value gives the bits of stock under the same
    value. The self-test reports the value.

    Returns:
        The value of `MKL_CBWR` that holds in this process.

    Raises:
        InternalError: torch is already imported and the variable is not set. MKL may have made its choice, and
            results would then depend on addresses without a message.
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
    """Result of the self-test: whether a row of torch's bf16 linear has the same bits alone and in a batch.

    On the CPU the answers equal stock in both cases: in a shared pass each row gets the bits that it has alone (see
    `Linears.alone`). On a GPU torch's own linears compute shared passes. If `row_invariant` is false there, a batched
    request may differ from the same request alone, in the share of outputs that this report gives.
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
        """Whether every row has the same bits alone and in a batch."""
        return self.outputs_differing == 0

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
        device: the device that computes.

    Returns:
        The figures. Inputs and weights are drawn from a fixed seed, so the report is repeatable.

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
