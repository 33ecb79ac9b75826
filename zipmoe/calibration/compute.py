"""Measures computing: the FFN of an expert, and the dense part of a step, which is all but the routed experts.

The model is built from the store as the router builds it. The provider lends random experts without delay. FFNs
therefore run among all other work of a step, with matrices that come from memory and not from a CPU cache.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from zipmoe.arena.headroom import memory_headroom
from zipmoe.calibration.measurement_time import MeasurementTime, undisturbed
from zipmoe.calibration.model_speed import CompressedDense, FormSpeed, ModelSpeed
from zipmoe.calibration.packed_experts import WORKING_SET_BYTES, read_packed
from zipmoe.errors import PACK_ANEW, NotFound, ResourceExhausted, ZipMoeError
from zipmoe.model.build.build import BuiltModel, build_from_store
from zipmoe.model.build.dense_forms import BF16, compressed_beside, form_of_machine
from zipmoe.model.experts.device import create_placement
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.compressed import CompressedMatrix
from zipmoe.model.linear.matrices import Matrices, Weights, unpacked
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.sequence import Sequence as Generation
from zipmoe.planning.costs import RowCost
from zipmoe.planning.memory_split import computes_packed
from zipmoe.store.format.layout import ExpertSpec
from zipmoe.store.format.manifest import Manifest

MANY_ROWS = 17
PROMPT_TOKENS = (4, 20)
PROMPT_TOKEN_ID = 3


def measure_model(store: Path, manifest: Manifest, device: torch.device, effort: MeasurementTime) -> ModelSpeed:
    """Measures a store's model on a device.

    If the model cannot be built (no config.json, or too little memory), the FFN is measured as products with bare
    matrices, and the dense part is not measured.

    Args:
        store: the store.
        manifest: the manifest of the store.
        device: result of `zipmoe.model.experts.device.resolve_device`.
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
        compute, hidden = _first_layer_ffn(built) or (multiply, 1)
        full_ffn = _ffn_cost(compute, lender.on(device), hidden, device, effort)
        packed_ffn = _ffn_cost(compute, packed, hidden, device, effort) if packed else None
        copy_s = expert_bytes / (copy_bytes_per_s or math.inf)
        dense = _dense_cost(built, lender, max(full_ffn.first_s, copy_s), effort)
        on_cpu = device.type == "cpu"
        compressed = _measure_compressed(built, linears, dense, effort) if on_cpu else None
        form_ffn = _form_ffn(compute, lender, linears, hidden, effort) if on_cpu else None
    del built, compute
    gc.collect()  # modules and parents form reference cycles: gigabytes would stay until a later collection
    return ModelSpeed(full_ffn, packed_ffn, dense, "", copy_bytes_per_s, compressed, form_ffn)


def _first_layer_ffn(
    built: BuiltModel,
) -> tuple[Callable[[torch.Tensor, torch.Tensor, Weights], object], int] | None:
    """Returns a function that computes an expert as the first MoE layer does, and the width of a row.

    Stock's own code for a whole layer is no such function: then the result is None.
    """
    module, spec = built.experts[0], built.layers[0].spec
    if not isinstance(module, RoutedExperts):
        return None
    biases = tuple(parameter[0] for parameter in module.parameters(recurse=False))
    transposed = isinstance(module.ffn, DirectFfn) and module.ffn.transposed

    def compute(rows: torch.Tensor, ones: torch.Tensor, expert: Weights) -> object:
        return module.ffn(rows, ones, expert if module.ffn.takes_packed else unpacked(expert), biases)

    return compute, spec.tensors[0].rows if transposed else spec.tensors[0].cols


class RandomExperts(InProcessProvider):
    """Provides random matrices for any expert, and measures how long the caller computes with the matrices.

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
        """Returns the next random matrices in the shapes of a layer's experts."""
        return next(self._turns[self._specs[layer]])

    def on(self, device: torch.device) -> list[Weights]:
        """Copies `expert_count` random experts of the first layer to a device."""
        return [tuple(each.to(device) for each in self.next(0)) for _ in range(self.expert_count)]

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields matrices for each expert; measures the time until the caller asks for the next expert."""
        for expert in rows:
            matrices = self.next(layer)
            begin_s = time.perf_counter()
            yield Arrival(expert, matrices)
            self.lent_s += time.perf_counter() - begin_s
            self.lent_count += 1


def _dense_cost(built: BuiltModel, lender: RandomExperts, expert_s: float, effort: MeasurementTime) -> RowCost:
    """Measures the dense part of a step: the time of prompts of two lengths and of steps, less the time of experts."""

    def beside_experts(run: Callable[[], object]) -> float:
        count, lent_s = lender.lent_count, lender.lent_s
        begin_s = time.perf_counter()
        run()
        _settle(built.placement.device)
        seconds = time.perf_counter() - begin_s
        # A GPU computes asynchronously: `lent_s` would only count the time to enqueue work.
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


def _measure_compressed(
    built: BuiltModel, linears: Linears, dense: RowCost, effort: MeasurementTime
) -> CompressedDense:
    """Measures the dense part with compressed weights.

    Both forms of all matrices are in memory and take turns, so that both come from memory and not from a CPU cache.

    Args:
        built: a model with bf16 weights, which stays as it is.
        linears: its linears.
        dense: the measured dense part of a layer with these weights.
        effort: how much to measure.

    Cost: memory of the compressed weights; one conversion of each.
    """
    weights, report = compressed_beside(built.model, linears)
    form = next((name for name in report.counts if name != BF16), "")
    if not form:
        return CompressedDense("", 0, dense, report.why_left)
    saved = []
    for rows in (1, MANY_ROWS):
        bf16_s, form_s = [], []
        for _ in range(1 + effort.rounds):
            bf16_s.append(_sweep_s([plain for plain, _ in weights], linears, rows))
            form_s.append(_sweep_s([matrix for _, matrix in weights], linears, rows))
        saved.append((undisturbed(bf16_s) - undisturbed(form_s)) / len(built.layers))
    per_row_s = (saved[1] - saved[0]) / (MANY_ROWS - 1)
    cost = RowCost(max(0.0, dense.first_s - saved[0]), max(0.0, dense.per_row_s - per_row_s))
    return CompressedDense(form, report.saved_bytes, cost, report.why_left)


def _sweep_s(weights: Sequence[torch.Tensor | CompressedMatrix], linears: Linears, rows: int) -> float:
    """Returns the seconds of a linear with each matrix."""
    inputs = {weight.shape[1]: torch.ones(rows, weight.shape[1], dtype=torch.bfloat16) for weight in weights}
    begin_s = time.perf_counter()
    for weight in weights:
        linears(inputs[weight.shape[1]], weight)
    return time.perf_counter() - begin_s


def _ffn_cost(
    compute: Callable[[torch.Tensor, torch.Tensor, Weights], object],
    lent: Sequence[Weights],
    width: int,
    device: torch.device,
    effort: MeasurementTime,
) -> RowCost:
    """Times an FFN on one row and on `MANY_ROWS`; `compute` takes rows, routing weights and an expert's matrices."""
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


def _form_ffn(
    compute: Callable[[torch.Tensor, torch.Tensor, Weights], object],
    lender: RandomExperts,
    linears: Linears,
    width: int,
    effort: MeasurementTime,
) -> FormSpeed | None:
    """Times an FFN from the in-memory form of the machine; None if a matrix of the experts has none."""
    forms = {form_of_machine(linears, *matrix.shape) for matrix in lender.next(0)}
    if len(forms) != 1 or (form := forms.pop()) is None:
        return None
    formed = [tuple(CompressedMatrix.of(matrix, form) for matrix in lender.next(0)) for _ in range(lender.expert_count)]
    return FormSpeed(form.name, _ffn_cost(compute, formed, width, torch.device("cpu"), effort))


def _multiply(linears: Linears, rows: torch.Tensor, _: torch.Tensor, matrices: Weights) -> None:
    """Multiplies rows of ones with the bare matrices of an expert, without an activation."""
    for matrix in matrices:
        linears(rows.new_ones(rows.shape[0], matrix.shape[1]), matrix)


def _copy_rate(expert_bytes: int, device: torch.device, effort: MeasurementTime) -> float:
    """Measures the bytes per second of copying an expert from pinned memory, as from a registered arena."""
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
    """Draws random weights; a matrix repeats up to 64 rows, because drawing millions of weights takes seconds."""
    matrices = []
    for tensor in spec.tensors:
        block = torch.randn(min(tensor.rows, 64), tensor.cols, generator=generator).mul_(tensor.cols**-0.5).bfloat16()
        matrices.append(block.repeat(-(-tensor.rows // block.shape[0]), 1)[: tensor.rows].clone())
    return tuple(matrices)


def _check_possible(store: Path, manifest: Manifest) -> None:
    if not (store / "config.json").is_file():
        raise NotFound("the store has no config.json", next_step=PACK_ANEW)
    headroom = memory_headroom()
    needed = 2 * manifest.dense_bytes + WORKING_SET_BYTES
    free_bytes = min(headroom.available_bytes, headroom.limit_free_bytes or headroom.available_bytes)
    if free_bytes < needed:
        raise ResourceExhausted(f"building the model takes up to {needed} bytes of memory, {free_bytes} are free")
