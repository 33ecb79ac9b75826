"""Measures computing: the FFN of one expert, and what a step of the whole model takes beside its routed experts.

The model is built from the store as the router builds it, with a provider that lends random experts at once, so that
FFNs run among everything else that a step does, with matrices that come from memory and not from a cache.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from zipmoe.arena.headroom import memory_headroom
from zipmoe.calibration.measurement_time import MeasurementTime, undisturbed
from zipmoe.calibration.model_speed import ModelSpeed
from zipmoe.calibration.packed_experts import read_packed
from zipmoe.errors import NotFound, ResourceExhausted, ZipMoeError
from zipmoe.model.build.build import BuiltModel, build_from_store
from zipmoe.model.experts.device import Matrices, create_placement
from zipmoe.model.experts.provider import InProcessProvider
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.linear.packed import Weights, unpacked
from zipmoe.model.passes.sequence import Sequence as Generation
from zipmoe.planning.costs import RowCost
from zipmoe.planning.memory_split import computes_packed
from zipmoe.store.format.layout import ExpertSpec
from zipmoe.store.format.manifest import Manifest

WORKING_SET_BYTES = 96 << 20
"""Matrices that are computed with in turn: more than caches hold, as while serving."""

MANY_ROWS = 17
PROMPT_TOKENS = (4, 20)
PROMPT_TOKEN_ID = 3


def measure_model(store: Path, manifest: Manifest, device: torch.device, effort: MeasurementTime) -> ModelSpeed:
    """Measures a store's model on a device.

    Without a model (a store without config.json, or too little memory) the FFN is that of its bare matrices.

    Args:
        store: the store.
        manifest: its manifest.
        device: from `zipmoe.model.experts.device.resolve_device`.
        effort: how much to measure.

    Cost: the memory of the dense weights, read once, and of `WORKING_SET_BYTES`; torch's and transformers' import.
    """
    expert_bytes = manifest.max_tensor_bytes
    copy_bytes_per_s = _copy_rate(expert_bytes, device, effort) if device.type == "cuda" else None
    linears = Linears()
    lender = RandomExperts(manifest)
    with torch.inference_mode():
        packed = read_packed(store, manifest) if computes_packed(manifest, device.type) else None
        multiply = partial(_multiply, linears)
        try:
            _check_possible(store, manifest)
            built = build_from_store(store, manifest, lender, create_placement(device, expert_bytes), linears)
        except ZipMoeError as error:
            full_ffn = _ffn_cost(multiply, lender.on(device), 1, device, effort)
            packed_ffn = _ffn_cost(multiply, packed, 1, device, effort) if packed else None
            return ModelSpeed(full_ffn, packed_ffn, None, error.message, copy_bytes_per_s)
        compute, hidden = _computing(built)
        full_ffn = _ffn_cost(compute, lender.on(device), hidden, device, effort)
        packed_ffn = _ffn_cost(compute, packed, hidden, device, effort) if packed else None
        copy_s = expert_bytes / (copy_bytes_per_s or math.inf)
        dense = _dense_cost(built, lender, max(full_ffn.first_s, copy_s), effort)
    del built, compute
    gc.collect()  # a module and its parents refer to each other: gigabytes would stay until some later collection
    return ModelSpeed(full_ffn, packed_ffn, dense, "", copy_bytes_per_s)


def _computing(built: BuiltModel) -> tuple[Callable[[torch.Tensor, torch.Tensor, Weights], object], int]:
    """How the first MoE layer computes an expert from rows and routing weights, and how wide rows are."""
    module = built.experts[0]
    biases = tuple(parameter[0] for parameter in module.parameters(recurse=False))
    config = built.config.get_text_config(decoder=True)

    def compute(rows: torch.Tensor, ones: torch.Tensor, expert: Weights) -> object:
        return module.ffn(rows, ones, expert if module.ffn.takes_packed else unpacked(expert), biases)

    return compute, int(getattr(config, "hidden_size", 0) or config.d_model)


class RandomExperts(InProcessProvider):
    """Gives any expert some random matrices, and notes how long it was computed with.

    Implements `ExpertProvider`.
    """

    def __init__(self, manifest: Manifest) -> None:
        generator = torch.Generator().manual_seed(0)
        self.expert_count = min(max(2, -(-WORKING_SET_BYTES // manifest.max_tensor_bytes)), 64)
        self._specs = [layer.spec for layer in manifest.layers]
        self._turns = {
            spec: itertools.cycle([_draw_expert(spec, generator) for _ in range(self.expert_count)])
            for spec in dict.fromkeys(self._specs)
        }
        self.lent_count = 0
        self.lent_s = 0.0

    def next(self, layer: int) -> Matrices:
        """The matrices whose turn it is, in the shapes of that layer's experts."""
        return next(self._turns[self._specs[layer]])

    def on(self, device: torch.device) -> list[Weights]:
        """As many experts of the first layer as there are, on a device."""
        return [tuple(each.to(device) for each in self.next(0)) for _ in range(self.expert_count)]

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
        """Yields matrices for each expert; the time until the next is asked for is what it was computed in."""
        for expert in rows:
            matrices = self.next(layer)
            begin_s = time.perf_counter()
            yield expert, matrices
            self.lent_s += time.perf_counter() - begin_s
            self.lent_count += 1


def _dense_cost(built: BuiltModel, lender: RandomExperts, expert_s: float, effort: MeasurementTime) -> RowCost:
    """Runs prompts of two lengths and some steps; what was not spent on experts is the dense part."""

    def beside_experts(run: Callable[[], object]) -> float:
        count, lent_s = lender.lent_count, lender.lent_s
        begin_s = time.perf_counter()
        run()
        _settle(built.placement.device)
        seconds = time.perf_counter() - begin_s
        # A device computes behind the back of the lender, who then only sees how long work takes to be enqueued.
        on_experts_s = lender.lent_s - lent_s if device_type == "cpu" else (lender.lent_count - count) * expert_s
        return max(0.0, seconds - on_experts_s)

    device_type = built.placement.device.type
    prompts: dict[int, list[float]] = {length: [] for length in PROMPT_TOKENS}
    steps: list[float] = []
    for _ in range(1 + effort.rounds // 3):  # the first of each is slower
        for length, taken in prompts.items():
            generation = Generation(built)
            taken.append(beside_experts(partial(generation.prefill, [PROMPT_TOKEN_ID] * length)))
        steps += [beside_experts(partial(generation.step, PROMPT_TOKEN_ID)) for _ in range(effort.model_steps)]
        generation.close()
    short, long = (min(prompts[length]) for length in PROMPT_TOKENS)
    per_row_s = max(0.0, long - short) / (PROMPT_TOKENS[1] - PROMPT_TOKENS[0])
    return RowCost(undisturbed(steps) / len(built.layers), per_row_s / len(built.layers))


def _ffn_cost(
    compute: Callable[[torch.Tensor, torch.Tensor, Weights], object],
    lent: Sequence[Weights],
    width: int,
    device: torch.device,
    effort: MeasurementTime,
) -> RowCost:
    """Times an FFN on one row and on many; `compute` takes rows, their routing weights and an expert's matrices."""
    experts = itertools.cycle(lent)
    taken: dict[int, list[float]] = {1: [], MANY_ROWS: []}
    end_s = time.perf_counter() + effort.point_s * effort.rounds
    while len(taken[1]) < 3 or time.perf_counter() < end_s:
        for count, seconds in taken.items():
            expert = next(experts)
            rows = torch.ones(count, width, dtype=torch.bfloat16, device=device)
            ones = rows.new_ones(count, 1)
            _settle(device)
            begin_s = time.perf_counter()
            compute(rows, ones, expert)
            _settle(device)
            seconds.append(time.perf_counter() - begin_s)
    one, many = (undisturbed(seconds) for seconds in taken.values())
    return RowCost(one, max(0.0, many - one) / (MANY_ROWS - 1))


def _multiply(linears: Linears, rows: torch.Tensor, _: torch.Tensor, matrices: Weights) -> None:
    """The bare products of an expert whose activation is not known."""
    for matrix in matrices:
        linears(rows.new_ones(rows.shape[0], matrix.shape[1]), matrix)


def _copy_rate(expert_bytes: int, device: torch.device, effort: MeasurementTime) -> float:
    """Copies one expert from pinned memory, as from a registered arena."""
    source = torch.zeros(expert_bytes, dtype=torch.uint8).pin_memory()
    target = torch.empty(expert_bytes, dtype=torch.uint8, device=device)
    taken = []
    for _ in range(3 + 3 * effort.rounds):
        begin_s = time.perf_counter()
        target.copy_(source, non_blocking=True)
        _settle(device)
        taken.append(time.perf_counter() - begin_s)
    return expert_bytes / undisturbed(taken)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draw_expert(spec: ExpertSpec, generator: torch.Generator) -> Matrices:
    """Random weights; a matrix repeats some rows, because drawing millions of weights takes seconds."""
    matrices = []
    for tensor in spec.tensors:
        block = torch.randn(min(tensor.rows, 64), tensor.cols, generator=generator).mul_(tensor.cols**-0.5).bfloat16()
        matrices.append(block.repeat(-(-tensor.rows // block.shape[0]), 1)[: tensor.rows].clone())
    return tuple(matrices)


def _check_possible(store: Path, manifest: Manifest) -> None:
    if not (store / "config.json").is_file():
        raise NotFound("the store has no config.json")
    headroom = memory_headroom()
    needed = 2 * manifest.dense_bytes + WORKING_SET_BYTES
    free_bytes = min(headroom.available_bytes, headroom.limit_free_bytes or headroom.available_bytes)
    if free_bytes < needed:
        raise ResourceExhausted(f"building the model takes up to {needed} bytes of memory, {free_bytes} are free")
