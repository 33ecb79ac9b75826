"""Costs of made-up machines, for tests of plans and schedules."""

from __future__ import annotations

from zipmoe.planning.costs import Costs, RowCost

MB = 10**6


def make_costs(**changes: object) -> Costs:
    """A machine with round numbers: 1 GB/s of disk, 1 GB/s recovered a worker, two workers, no fused kernel."""
    values: dict[str, object] = {
        "read_latency_s": 0.0,
        "read_overhead_s": 0.0,
        "read_bytes_per_s": 1e9,
        "recover_bytes_per_s": 1e9,
        "worker_count": 2,
        "full_ffn": RowCost(1e-3, 0.5e-3),
        "packed_ffn": None,
        "dense": RowCost(5e-3, 0.1e-3),
    }
    return Costs(**{**values, **changes})  # type: ignore[arg-type]
