"""Replays the recorded pass of some rows: native segments between the gates, experts as in an eager pass."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from zipmoe.kernels.program import Code, Operation, new_frame
from zipmoe.model.attention.row_attention import Method, size_of
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lowering.kernels import aim
from zipmoe.model.program.lowering.lowered import Lowering
from zipmoe.model.program.lowering.schedule import Gate, Schedule
from zipmoe.model.program.recording.record import Recording
from zipmoe.model.program.recording.row_model import PassRow, RowModel
from zipmoe.model.program.recording.tape import Kind, TapeEntry
from zipmoe.model.program.replay.expert_programs import ExpertPrograms
from zipmoe.model.program.replay.replay_state import Replay
from zipmoe.model.program.replay.row_places import RowPlaces
from zipmoe.model.program.replay.steps import ExpertsStep, NativeStep, ReplayStep, TorchStep
from zipmoe.model.torch_orders import exponentials


class RowProgram:
    """The pass of some rows, replayed. Thread: one at a time."""

    def __init__(
        self,
        model: RowModel,
        recording: Recording,
        plan: Schedule,
        lowering: Lowering,
        experts: Mapping[RoutedExperts, ExpertPrograms],
    ) -> None:
        """Joins lowered operations to segments.

        Args:
            model: the model.
            recording: the recorded pass.
            plan: order and memory of its entries.
            lowering: their native operations.
            experts: programs of the experts; the experts of other layers are computed by Python.
        """
        self._model = model
        self._threads = torch.get_num_threads()
        self._windows = lowering.windows
        self._operands = lowering.operands
        self._experts = experts
        self.memory = plan.memory
        self._token_ids = self.memory.view(recording.token_ids)
        self._positions = self.memory.view(recording.positions)
        self.rows = recording.token_ids.shape[1]
        self._logits = self.memory.view(recording.logits)
        self._hidden_states = self.memory.view(recording.hidden_states)
        joining = _Joining(recording, lowering, experts)
        self.steps = joining.steps(plan.order, native_attention=True)
        self._aimed = joining.attentions
        self._steps_by_stock = joining.steps(plan.order, native_attention=False) if self._aimed else self.steps
        self._replay = Replay(new_frame(self._threads, exponentials()))
        self._query_heads = max((each.query.shape[1] for each in self._aimed), default=0)
        self._scores = torch.empty(0)
        self._methods: dict[tuple[tuple[int, ...], ...], list[Method] | None] = {}
        self._aim: tuple[tuple[int, ...], ...] = ()
        self.passes = 0
        """Passes that have been replayed to the end."""

    def compute(self, rows: Sequence[PassRow]) -> torch.Tensor | None:
        """Computes rows.

        Args:
            rows: as many rows as were recorded.

        Returns:
            Logits, bf16, shape (rows, vocabulary); None if torch's number of threads is not that of the recording.

        Raises:
            ZipMoeError: error of the provider. The keys and values of the layers before are written, as in an eager
                pass.
        """
        if torch.get_num_threads() != self._threads:
            return None
        with torch.inference_mode(), self._model.rows_alone(self.rows):
            native = self._begin(rows)
            if self.rows == 1:
                self._token_ids.fill_(rows[0].token_id)
                self._positions.fill_(rows[0].position)
            else:
                self._token_ids.copy_(torch.tensor([[row.token_id for row in rows]]))
                self._positions.copy_(torch.tensor([[row.position for row in rows]]))
            for step in self.steps if native else self._steps_by_stock:
                step.run(self._replay)
            self.passes += 1
            return self._logits.clone()

    @property
    def hidden_states(self) -> torch.Tensor:
        """Output of the model's body for the rows that were computed last, bf16, shape (rows, hidden)."""
        return self._hidden_states.clone()

    @property
    def gates(self) -> list[ExpertsStep]:
        """Steps of the routed experts, in order."""
        return [step for step in self.steps if isinstance(step, ExpertsStep)]

    @contextmanager
    def clocked(self) -> Iterator[dict[Code, float]]:
        """Measures the native operations of the block: processor seconds of this thread for each kind, at the end."""
        spent = (ctypes.c_int64 * len(Code))()
        seconds: dict[Code, float] = {}
        self._replay.frame.spent_ns = spent
        try:
            yield seconds
        finally:
            self._replay.frame.spent_ns = None
            seconds.update((code, spent[code] / 1e9) for code in Code)

    def _begin(self, rows: Sequence[PassRow]) -> bool:
        """Sets the contexts of the rows; returns whether the native attention has the bits for their lengths."""
        places = RowPlaces(self._model.pool, rows, self._windows)
        frame = self._replay.frame
        places.bind(frame)
        self._places = places  # the frame has the addresses of its arrays
        if self._query_heads * places.tokens * 2 > self._scores.numel():
            self._scores = torch.empty(self._query_heads * max(256, 1 << places.tokens.bit_length()) * 2)
            frame.scores = self._scores.data_ptr()
            frame.weights = frame.scores + self._scores.nbytes // 2
        self._replay.cache = functools.cache(lambda: self._model.cache(rows))
        sizes = tuple(tuple(sorted({size_of(length) for length in lengths})) for lengths in places.lengths)
        return sizes == self._aim or self._aim_at(sizes, places.lengths)

    def _aim_at(self, sizes: tuple[tuple[int, ...], ...], lengths: Sequence[tuple[int, ...]]) -> bool:
        """Sets the summation orders of all attentions for contexts of some sizes; tests sizes that are new."""
        if sizes not in self._methods:
            self._methods[sizes] = self._methods_for(lengths)
        methods = self._methods[sizes]
        if methods is None:
            return False
        for attention, method in zip(self._aimed, methods, strict=True):
            aim(attention.operation, method)
        self._aim = sizes
        return True

    def _methods_for(self, lengths: Sequence[tuple[int, ...]]) -> list[Method] | None:
        pool, found = self._model.pool, []
        for each in self._aimed:
            layer = int(each.module.layer_idx)
            blocks = pool.keys[layer], pool.values[layer]
            methods = {
                self._model.attention.method(each.module, each.query[:, :, :1], *blocks, length, each.kwargs)
                for length in lengths[self._windows.index(pool.layout.windows[layer])]
            }
            method = methods.pop()
            if method is None or methods:
                return None
            found.append(method)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, the operations and the tables."""
        native = [step for step in (*self.steps, *self._steps_by_stock) if isinstance(step, NativeStep)]
        experts = sum(each.nbytes for each in self._experts.values())
        operations = sum(step.segment.nbytes for step in native)
        return self.memory.nbytes + operations + experts + self._operands.tables.nbytes


@dataclass(frozen=True)
class _Attention:
    """A lowered attention: its operation in a segment, and what the choice of its method depends on."""

    operation: Operation
    module: Any
    query: torch.Tensor
    kwargs: Mapping[str, Any]


class _Joining:
    """Joins entries to steps."""

    def __init__(
        self, recording: Recording, lowering: Lowering, experts: Mapping[RoutedExperts, ExpertPrograms]
    ) -> None:
        self._recording = recording
        self._lowering = lowering
        self._experts = experts
        self.attentions: list[_Attention] = []

    def steps(self, order: Sequence[TapeEntry | Gate], *, native_attention: bool) -> list[ReplayStep]:
        """Makes the steps of some entries; without native attention, stock's code attends."""
        steps: list[ReplayStep] = []
        pending: list[TapeEntry] = []
        operations = self._lowering.lowered.operations
        for each in order:
            native = isinstance(each, TapeEntry) and (native_attention or each.kind is not Kind.ATTEND)
            if isinstance(each, TapeEntry) and native and each in operations:
                pending.append(each)
                continue
            self._flush(pending, steps)
            if isinstance(each, Gate):
                steps.append(self._gate(each, self.steps(each.beside, native_attention=native_attention)))
            else:
                steps.append(TorchStep(each, self._lowering.operands.memory, self._recording))
        self._flush(pending, steps)
        return steps

    def _flush(self, pending: list[TapeEntry], steps: list[ReplayStep]) -> None:
        """Makes one step of the entries so far, and remembers the attentions among its operations."""
        if not pending:
            return
        operations: list[Operation] = []
        places: list[tuple[TapeEntry, int]] = []
        for entry in pending:
            operations += self._lowering.lowered.operations[entry]
            if entry.kind is Kind.ATTEND:
                places.append((entry, len(operations) - 1))
        step = NativeStep(operations)
        for entry, index in places:
            self.attentions.append(_Attention(step.segment[index], entry.subject, entry.args[2], entry.args[5]))
        steps.append(step)
        pending.clear()

    def _gate(self, gate: Gate, beside: Sequence[ReplayStep]) -> ExpertsStep:
        module: RoutedExperts = gate.entry.subject
        dtype = module.ffn.sum_dtype.of(gate.entry.args[0], gate.entry.args[2])
        return ExpertsStep(module, gate.entry, beside, self._experts.get(module), self._lowering.operands, dtype)
