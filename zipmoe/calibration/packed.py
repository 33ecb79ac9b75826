"""Measures the FFN of an expert straight from its chunks, where there is a kernel for the store's codec."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import relu, silu

from zipmoe.calibration.effort import Effort, undisturbed
from zipmoe.residency.costs import RowCost
from zipmoe.store.layout import ExpertRecord
from zipmoe.store.manifest import Manifest
from zipmoe.store.memory import aligned_memory
from zipmoe.store.reader import StoreReader
from zipmoe.types import Part

WORKING_SET_BYTES = 96 << 20
MANY_ROWS = 17
KERNELS_MODULE = "zipmoe.kernels.linear"


def measure_packed(store: Path, manifest: Manifest, effort: Effort) -> RowCost | None:
    """Measures the fused FFN on a store's own chunks.

    Returns:
        None where there is no kernel for the store's codec, or it is not built.

    Raises:
        CorruptData: the experts cannot be read.
    """
    kernels = packed_kernels(manifest.codec_name)
    if kernels is None:
        return None
    experts = itertools.cycle(_read_experts(store, manifest))
    taken: dict[int, list[float]] = {1: [], MANY_ROWS: []}
    end_s = time.perf_counter() + effort.point_s * effort.rounds
    while len(taken[1]) < 3 or time.perf_counter() < end_s:
        for count, seconds in taken.items():
            record, slot = next(experts)
            matrices = [_parts(kernels, record, index, slot) for index in range(len(record.tensors))]
            rows = torch.ones(count, record.tensors[0].spec.cols, dtype=torch.bfloat16)
            begin_s = time.perf_counter()
            _compute(kernels, record, matrices, rows)
            seconds.append(time.perf_counter() - begin_s)
    one, many = (undisturbed(seconds) for seconds in taken.values())
    return RowCost(one, max(0.0, many - one) / (MANY_ROWS - 1))


def packed_kernels(codec_name: str) -> Any | None:
    """The module that computes linears from a codec's chunks; None where there is none."""
    try:
        module = importlib.import_module(KERNELS_MODULE)
    except (ImportError, AttributeError):  # not part of this version, or of the library that was built
        return None
    return module if codec_name == "cascade" and hasattr(module, "linear_cascade") else None


def _read_experts(store: Path, manifest: Manifest) -> list[tuple[ExpertRecord, memoryview]]:
    keys = list(manifest.expert_keys())
    count = max(1, min(len(keys), WORKING_SET_BYTES // manifest.max_record_bytes))
    experts = []
    with closing(StoreReader(store, manifest)) as reader:
        for index in range(count):
            key = keys[index * len(keys) // count]
            slot = aligned_memory(manifest.max_record_bytes)
            reader.read(key, Part.ALL, slot)
            experts.append((manifest.record(key), slot))
    return experts


def _parts(kernels: Any, record: ExpertRecord, index: int, slot: memoryview) -> list[Any]:
    """The chunks of one matrix as the kernel takes them."""
    tensor = record.tensors[index]
    sm, cols = tensor.sm_chunk.offset, tensor.spec.cols
    return [
        kernels.CascadePart(
            chunk.rows,
            slot[chunk.offset : chunk.end],
            slot[sm + chunk.first_row * cols : sm + (chunk.first_row + chunk.rows) * cols],
        )
        for chunk in tensor.e_chunks
    ]


def _compute(kernels: Any, record: ExpertRecord, matrices: Sequence[list[Any]], rows: torch.Tensor) -> None:
    """The products of an expert one after the other, with an activation between them."""
    threads, count = torch.get_num_threads(), rows.shape[0]
    values = rows
    for tensor, parts in zip(record.tensors, matrices, strict=True):
        spec = tensor.spec
        if values.shape[1] == 2 * spec.cols:
            gate, up = values.chunk(2, dim=-1)
            values = silu(gate) * up
        elif values.shape[1] != spec.cols:  # matrices that are not applied in this order
            values = rows.new_ones(count, spec.cols)
        elif values is not rows:
            values = relu(values)
        out = torch.empty(count, spec.rows, dtype=torch.bfloat16)
        kernels.linear_cascade(
            values.contiguous().view(torch.uint8).numpy(),
            parts,
            out.view(torch.uint8).numpy(),
            kernels.Shape(count, spec.rows, spec.cols),
            kernels.lanes(),
            threads=threads,
        )
        values = out
