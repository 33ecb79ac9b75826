"""Computes the time of an MoE layer from the number of chosen experts in each residency state.

An expert passes through up to three stages. The residency state of the expert determines the stages:

    state     read (the I/O channel)    recover (L workers)   compute (the model's thread)
    FULL      nothing                   -                     FFN from the tensor
    PACKED    nothing                   its E-chunks, shared  FFN from the tensor; where there is
    SM_ONLY   E-chunks                  over all L workers    a fused kernel FFN from the chunks,
    E_ONLY    SM-chunks                                       without a recovery
    ABSENT    both

Stages of different experts overlap, and the stages of one expert follow each other. This is a flow shop. Experts are
ordered by the time of their reads, shortest first, so that resident experts are computed while other experts load. For
one channel and one computing thread this is Johnson's order, and no other order is faster. With a_j, b_j, c_j for the
seconds of the stages of the j-th expert:

    makespan = max over u <= v of  a_1 + .. + a_u  +  b_u + .. + b_v  +  c_v + .. + c_k

Source: ZipMoE (arXiv 2601.21198), compression states and their DAGs of I/O and decompression; makespan by counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zipmoe.planning.conditional_poisson import Floats
from zipmoe.planning.costs import Costs
from zipmoe.residency.state import Residency

STATES = (Residency.FULL, Residency.PACKED, Residency.SM_ONLY, Residency.E_ONLY, Residency.ABSENT)
"""Residency states in the order in which plans assign states, to the most popular experts first."""


class ExpertBytes(NamedTuple):
    """Bytes of an expert: the E-chunks and the SM-chunks on disk, and the recovered bf16 tensors."""

    e: int
    sm: int
    tensor: int

    def missing(self, state: Residency) -> int:
        """Returns the bytes that have to be read before an expert in a state can be computed."""
        return {
            Residency.FULL: 0,
            Residency.PACKED: 0,
            Residency.SM_ONLY: self.e,
            Residency.E_ONLY: self.sm,
            Residency.ABSENT: self.e + self.sm,
        }[state]


class Stages(NamedTuple):
    """Seconds that an expert occupies each resource."""

    read_s: float
    recover_s: float
    compute_s: float


def stages(state: Residency, expert: ExpertBytes, costs: Costs, rows: int = 1) -> Stages:
    """Computes the stages of an expert in a residency state.

    Args:
        state: residency state of the expert.
        expert: bytes of the expert.
        costs: measured costs of this machine.
        rows: rows that are routed to the expert.
    """
    read_s = costs.queued_read_s(expert.missing(state))
    compute_s = max(costs.ffn_s(Residency.FULL, rows), costs.copy_s(expert.tensor))
    if state is Residency.FULL:
        return Stages(read_s, 0.0, compute_s)
    if costs.packed_ffn is not None:
        return Stages(read_s, 0.0, costs.ffn_s(Residency.PACKED, rows))
    recover_s = costs.recover_s(expert.tensor) / costs.worker_count
    if costs.shares_cores:  # both need the same cores, so they are one stage
        return Stages(read_s, 0.0, recover_s + compute_s)
    return Stages(read_s, recover_s, compute_s)


def layer_seconds(counts: NDArray[np.int64], expert: ExpertBytes, costs: Costs, rows: int = 1) -> Floats:
    """Computes the makespan of a layer for each combination of counts.

    Args:
        counts: int64, shape (..., 5), at least 0: number of chosen experts in each of `STATES`.
        expert: bytes of one expert.
        costs: measured costs of this machine.
        rows: rows that are routed to each expert.

    Returns:
        Float64, shape (...): seconds from the gate's choice to the last expert's output; 0 for no experts.

    Cost: 3 array updates for each expert of the largest counts.
    """
    needs = [stages(state, expert, costs, rows) for state in STATES]
    order = sorted(range(len(STATES)), key=lambda index: needs[index].read_s)
    read = np.where((counts * [need.read_s for need in needs]).sum(axis=-1) > 0, costs.read_latency_s, 0.0)
    recovered = np.zeros_like(read)
    computed = np.zeros_like(read)
    for index in order:
        need, count = needs[index], counts[..., index]
        for position in range(int(count.max(initial=0))):
            here = position < count
            read = read + need.read_s * here
            ready = read if need.read_s else np.zeros_like(read)
            recovered = np.where(here, np.maximum(recovered, ready) + need.recover_s, recovered)
            ready = recovered if need.recover_s else ready
            computed = np.where(here, np.maximum(computed, ready) + need.compute_s, computed)
    return computed


def seconds_table(chosen: int, expert: ExpertBytes, costs: Costs, rows: int = 1) -> Floats:
    """Computes the makespans of a layer for every combination of counts of `chosen` experts.

    Returns:
        Float64, shape (k + 1,) * 4, by counts of the first four states. The remaining experts are ABSENT. Entries with
        more than k experts are 0.
    """
    first = np.moveaxis(np.indices((chosen + 1,) * 4, dtype=np.int64), 0, -1)
    rest = chosen - first.sum(axis=-1)
    seconds = layer_seconds(np.concatenate([first, np.maximum(rest, 0)[..., None]], axis=-1), expert, costs, rows)
    return np.where(rest >= 0, seconds, 0.0)
