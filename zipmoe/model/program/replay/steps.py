"""The steps of a replayed pass: native segments, and what runs in Python between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from zipmoe.kernels.program import Code, Function, NativeSegment, Operation
from zipmoe.model.experts.provider import Arrival
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lowering.operands import Operands
from zipmoe.model.program.lowering.pass_memory import ALIGNMENT, PassMemory
from zipmoe.model.program.recording.record import Recording
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.program.replay.expert_program import ExpertProgram
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
        program: ExpertProgram | None,
        operands: Operands,
        sum_dtype: torch.dtype,
    ) -> None:
        """Prepares the step.

        Args:
            module: the layer's routed experts.
            entry: their noted call: input, chosen experts, weights.
            beside: steps for the time of the reads.
            program: the computation of an expert; None where only stock's code, or ours in Python, computes it.
            operands: operands of the pass.
            sum_dtype: dtype of the experts' outputs and of their sum.
        """
        self._module = module
        self.beside = beside
        self._program = program
        self._hidden, self._selected, self._weights = (operands.memory.view(each) for each in entry.args[:3])
        self._result = operands.memory.view(entry.outputs[0])
        if program is None:
            return
        count, hidden = self._selected.shape[-1], self._hidden.shape[-1]
        self._rows = self._hidden.data_ptr()
        self._weight, self._weight_bytes = self._weights.data_ptr(), self._weights.stride(-1) * self._weights.itemsize
        stride = -(-hidden * sum_dtype.itemsize // ALIGNMENT) * ALIGNMENT // sum_dtype.itemsize
        self._partials = torch.zeros(count, stride, dtype=sum_dtype)
        self._outputs = [self._partials[index].data_ptr() for index in range(count)]
        total = torch.zeros(1, hidden, dtype=sum_dtype)
        self._total = total
        fill = operands.elementwise(Code.FILL, 0, total)
        adds = [
            operands.elementwise(Code.BINARY, Function.ADD, total, total, self._partials[index : index + 1, :hidden])
            for index in range(count)
        ]
        self._sum = NativeSegment([fill, *adds, operands.copy(entry.outputs[0].view(1, hidden), total)])

    def run(self, replay: Replay) -> None:
        """Computes the experts; the outputs are added in ascending expert id.

        Raises:
            ZipMoeError: error of the provider.
        """
        ids: list[int] = self._selected.reshape(-1).tolist()
        program = self._program
        if program is None or len(set(ids)) != len(ids):
            computed = self._module.compute_with(
                self._hidden, self._selected, self._weights, lambda: self._run_beside(replay)
            )
            self._result.copy_(computed)
            return
        ascending = sorted(ids)

        def beside() -> None:
            self._module.predict(lambda: self._hidden)
            self._run_beside(replay)

        def serve(arrival: Arrival) -> None:
            weight = self._weight + ids.index(arrival.expert) * self._weight_bytes
            program.run(replay, self._rows, weight, self._outputs[ascending.index(arrival.expert)], arrival)

        self._module.fetch(dict.fromkeys(ascending, 1), beside, serve)
        self._sum.run(replay.address)

    def _run_beside(self, replay: Replay) -> None:
        for step in self.beside:
            step.run(replay)
