"""The native computation of a layer's experts, for each number of rows that an expert gets."""

from __future__ import annotations

import torch

from zipmoe.kernels.program import new_frame
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lockstep import DIFFERS, Lockstep
from zipmoe.model.program.lowering.operands import CannotLower
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.borrowed_experts import BorrowedExperts
from zipmoe.model.program.recording.row_model import RowModel
from zipmoe.model.program.replay.expert_program import (
    FIRST_MATRIX,
    OUT,
    ROWS,
    WEIGHT,
    ExpertProgram,
    lower_expert,
    record_expert,
)
from zipmoe.model.torch_orders import exponentials


class ExpertPrograms:
    """Programs of the experts of one layer. A program is recorded and proved when its number of rows first occurs."""

    def __init__(
        self,
        model: RowModel,
        module: RoutedExperts,
        borrowed: BorrowedExperts,
        tables: UnaryTables,
        rows: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """Keeps what recordings need.

        Args:
            model: the model.
            module: the layer's routed experts.
            borrowed: experts for recordings and proofs.
            tables: tables of functions of one number.
            rows: drawn or recorded input of the layer, shape (rows, hidden).
            weights: routing weights, shape (choices, 1).
        """
        self._model, self._module = model, module
        self._borrowed, self._tables = borrowed, tables
        self._rows, self._weights = rows[:1].clone(), weights[:1].clone()
        self._programs: dict[int, ExpertProgram | None] = {}

    def of_rows(self, rows: int) -> ExpertProgram:
        """Returns the program for a number of rows.

        Raises:
            CannotLower: Python has to compute the expert.
        """
        if rows not in self._programs:
            self._programs[rows] = None
            self._programs[rows] = self._record(rows)
        program = self._programs[rows]
        if program is None:
            raise CannotLower("it could not be lowered before")
        return program

    def _record(self, count: int) -> ExpertProgram:
        linears = self._model.linears
        matrices = self._borrowed.matrices(self._module.layer, 1)
        with self._model.rows_alone(count), torch.inference_mode(False), torch.no_grad():
            scale = torch.linspace(1, 2, count)[:, None]  # rows that differ
            rows, weights = (self._rows * scale).to(self._rows.dtype), self._weights.expand(count, 1)
            recording = record_expert(self._module, linears, rows, weights, matrices)
            lowered = lower_expert(recording, linears, self._tables)
        with self._model.rows_alone(count), torch.inference_mode():
            frame = new_frame(torch.get_num_threads(), exponentials())
            places = ((ROWS, recording.rows), (WEIGHT, recording.weight), (OUT, lowered.memory.view(recording.output)))
            for base, tensor in (*places, *enumerate(recording.matrices, FIRST_MATRIX)):
                frame.bases[base] = tensor.data_ptr()
            lockstep = Lockstep(lowered.memory, frame)
            for each, operations in lowered.steps:
                lockstep.compute(each, operations)
        if lockstep.different:
            raise CannotLower(f"an expert's {lockstep.different[0].name}: {DIFFERS}")
        return ExpertProgram(lowered, len(matrices))

    @property
    def nbytes(self) -> int:
        """Bytes of all programs."""
        return sum(each.nbytes for each in self._programs.values() if each is not None)
