"""The steps of a replayed pass: native segments, and what runs in Python between them."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch

from zipmoe.kernels.program import Code, NativeSegment, Operation
from zipmoe.model.experts.provider import Arrival
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.lowering.pass_memory import PassMemory
from zipmoe.model.program.recording.record import Recording
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.program.replay.expert_programs import ExpertPrograms
from zipmoe.model.program.replay.replay_state import Replay
from zipmoe.model.program.replay.torch_twin import TwinOf


class ReplayStep(Protocol):
    """A step of a replayed pass."""

    def run(self, replay: Replay) -> None:
        """Computes the step; raises as the eager pass does."""


class NativeStep:
    """Operations that one native call computes."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.segment = NativeSegment(operations)

    def run(self, replay: Replay) -> None:
        """Computes the operations."""
        self.segment.run(replay.address)


class TorchStep:
    """An entry that torch computes, or stock's code: an operation without native code, an attention, a layer."""

    def __init__(self, entry: TapeEntry, memory: PassMemory, recording: Recording) -> None:
        self.kind = entry.kind
        self._twin = TwinOf(entry, memory, recording.cache)
        self._cached = entry.subject is not None

    def run(self, replay: Replay) -> None:
        """Computes the entry."""
        self._twin.compute(replay.cache() if self._cached else None)


class ExpertsStep:
    """Routed experts: asks the provider, computes what may be computed meanwhile, then each expert as it arrives."""

    def __init__(
        self,
        module: RoutedExperts,
        entry: TapeEntry,
        beside: Sequence[ReplayStep],
        programs: ExpertPrograms | None,
        operands: Operands,
        sum_dtype: torch.dtype,
    ) -> None:
        """Prepares the step.

        Args:
            module: the layer's routed experts.
            entry: their noted call: input, chosen experts, weights.
            beside: steps for the time of the reads.
            programs: the computation of an expert; None where only stock's code, or ours in Python, computes it.
            operands: operands of the pass.
            sum_dtype: dtype of the experts' outputs and of their sum.
        """
        self._module = module
        self.beside = beside
        self._programs = programs
        self._hidden, self._selected, self._weights = (operands.memory.view(each) for each in entry.args[:3])
        self._result = operands.memory.view(entry.outputs[0])
        if programs is None:
            return
        if not self._weights.is_contiguous():
            self._programs = None
            return
        rows, hidden = self._hidden.shape
        choices = self._selected.numel()
        self._row_ids, self._weight_ids = (ctypes.c_int64 * choices)(), (ctypes.c_int64 * choices)()
        ids = [torch.frombuffer(each, dtype=torch.int64) for each in (self._row_ids, self._weight_ids)]
        self._partials = torch.zeros(choices, hidden, dtype=sum_dtype)
        self._total = torch.zeros(rows, hidden, dtype=sum_dtype)
        if rows == 1:  # each expert gets the row where it is
            self._rows, self._row_weights = self._hidden.expand(choices, hidden), self._weights.view(-1, 1)
            self._gather = NativeSegment([])
        else:
            self._rows = torch.zeros(choices, hidden, dtype=self._hidden.dtype)
            self._row_weights = torch.zeros(choices, 1, dtype=self._weights.dtype)
            self._gather = NativeSegment(
                [
                    operands.gather(self._rows, entry.args[0], ids[0]),
                    operands.gather(self._row_weights, entry.args[2].view(-1, 1), ids[1]),
                ]
            )
        add = Operation(code=Code.ADD_ROWS)
        add.a, add.out = operands.of(self._partials, (hidden, 0, 0, 0)), operands.of(self._total, (hidden, 0, 0, 0))
        add.b = operands.of(ids[0])
        add.numbers[:3] = [rows, hidden, choices]
        fill = operands.elementwise(Code.FILL, 0, self._total)
        self._sum = NativeSegment([fill, add, operands.copy(entry.outputs[0].view(rows, hidden), self._total)])

    def run(self, replay: Replay) -> None:
        """Computes the experts; the outputs are added in ascending expert id.

        Raises:
            ZipMoeError: error of the provider.
        """
        programs = self._programs
        chosen: list[list[int]] = [] if programs is None else self._selected.tolist()
        if programs is None or any(len(set(ids)) != len(ids) for ids in chosen):
            self._run_in_python(replay)
            return
        width = len(chosen[0])
        choices = sorted((expert, row, rank) for row, ids in enumerate(chosen) for rank, expert in enumerate(ids))
        counts = Counter(expert for expert, _, _ in choices)
        try:
            computed = {count: programs.of_rows(count) for count in set(counts.values())}
        except CannotLower:
            self._programs = None
            self._run_in_python(replay)
            return
        begins = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
        weight_ids = [row * width + rank for _, row, rank in choices]
        self._row_ids[:] = [row for _, row, _ in choices]
        self._weight_ids[:] = weight_ids  # type: ignore[assignment]
        self._gather.run(replay.address)
        alone = len(chosen) == 1

        def beside() -> None:
            self._module.predict(lambda: self._hidden)
            self._run_beside(replay)

        def serve(arrival: Arrival) -> None:
            begin = begins[arrival.expert]
            weight = weight_ids[begin] if alone else begin
            rows, weights = _row(self._rows, begin), _row(self._row_weights, weight)
            computed[counts[arrival.expert]].run(replay, rows, weights, _row(self._partials, begin), arrival)

        self._module.fetch(counts, beside, serve)
        self._sum.run(replay.address)

    def _run_in_python(self, replay: Replay) -> None:
        computed = self._module.compute_with(
            self._hidden, self._selected, self._weights, lambda: self._run_beside(replay)
        )
        self._result.copy_(computed)

    def _run_beside(self, replay: Replay) -> None:
        for step in self.beside:
            step.run(replay)


def _row(tensor: torch.Tensor, index: int) -> int:
    """Returns the address of a row of a matrix."""
    return tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()
