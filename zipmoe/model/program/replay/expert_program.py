"""Records and replays the computation of one routed expert: some operations for each matrix, as the matrices arrive."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from zipmoe.kernels.program import NativeSegment, Operation
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.experts.provider import Arrival
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.compressed import CompressedMatrix
from zipmoe.model.linear.matrices import Matrices, Matrix
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.linear.packed import PackedMatrix
from zipmoe.model.program.lowering.aten import lower_aten
from zipmoe.model.program.lowering.kernels import lower_linear
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.lowering.pass_memory import PassMemory, StorageUse
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.record import noting_linear
from zipmoe.model.program.recording.tape import Kind, Tape, TapeEntry, storage_of
from zipmoe.model.program.replay.replay_state import Replay

ROWS, WEIGHT, OUT, FIRST_MATRIX = 1, 2, 3, 4
"""Bases of the frame: the layer's input, the expert's routing weight, the place of the output, the matrices."""

MOST_MATRICES = 4


@dataclass(frozen=True, eq=False)
class ExpertRecording:
    """The computation of one expert, written down. Each of its tensors has a storage of its own."""

    tape: Tape
    rows: torch.Tensor
    weight: torch.Tensor
    matrices: Matrices
    output: torch.Tensor


def record_expert(
    module: RoutedExperts, linears: Linears, rows: torch.Tensor, weight: torch.Tensor, matrices: Matrices
) -> ExpertRecording:
    """Computes an expert and writes the operations down.

    Args:
        module: the layer's routed experts.
        linears: linears of the model.
        rows: rows of the layer's input, shape (rows, hidden).
        weight: their routing weights, shape (rows, 1).
        matrices: the expert's matrices, each a tensor with a storage of its own.

    Raises:
        CannotLower: only stock's own code computes the layer's experts, or an expert has vectors beside matrices.
    """
    ffn = module.ffn
    if not isinstance(ffn, DirectFfn) or ffn.transposed or module.has_vectors or len(matrices) > MOST_MATRICES:
        raise CannotLower("experts of another kind")
    tape = Tape()
    rows, weight = rows.clone(), weight.clone()
    with torch.no_grad(), linears.watched_by(noting_linear(tape)), tape.running():
        output = ffn(rows, weight, matrices, ())
    return ExpertRecording(tape, rows, weight, matrices, output)


@dataclass(frozen=True, eq=False)
class LoweredExpert:
    """The native operations of a recorded expert, entry by entry."""

    steps: tuple[tuple[TapeEntry, tuple[Operation, ...]], ...]
    memory: PassMemory
    first_matrices: tuple[int, ...]
    """For each entry, how many matrices have to be there."""


def lower_expert(recording: ExpertRecording, linears: Linears, tables: UnaryTables) -> LoweredExpert:
    """Lowers the computation of an expert.

    Raises:
        CannotLower: an operation has no native code; the text names it.
    """
    entries = recording.tape.entries
    written = [each for entry in entries for each in entry.outputs]
    sizes = {storage_of(each): each.untyped_storage().nbytes() for each in written}
    if recording.output.nbytes != sizes.get(storage_of(recording.output)):
        raise CannotLower("an expert's output that is a part of something")
    memory = PassMemory([StorageUse.of(entry.inputs, entry.outputs) for entry in entries], sizes)
    places = {storage_of(each): FIRST_MATRIX + index for index, each in enumerate(recording.matrices)}
    bases = {storage_of(recording.rows): ROWS, storage_of(recording.weight): WEIGHT, storage_of(recording.output): OUT}
    operands = Operands(memory, tables, {**bases, **places})
    steps, counts, count = [], [], 0
    for entry in entries:
        try:
            lowered = (
                lower_linear(entry, operands, linears) if entry.kind is Kind.LINEAR else lower_aten(entry, operands)
            )
        except CannotLower as reason:
            raise CannotLower(f"an expert's {entry.name}: {reason}") from None
        steps.append((entry, tuple(lowered)))
        needed = [places[storage_of(each)] - FIRST_MATRIX + 1 for each in entry.inputs if storage_of(each) in places]
        count = max(count, *needed, 0)
        counts.append(count)
    return LoweredExpert(tuple(steps), memory, tuple(counts))


class ExpertProgram:
    """Computes an expert's rows natively from matrices of any form. Thread: one at a time."""

    def __init__(self, lowered: LoweredExpert, matrix_count: int) -> None:
        """Joins the operations between two matrices into segments."""
        self._memory = lowered.memory
        self._segments: list[NativeSegment] = []
        for count in range(matrix_count + 1):
            alike = [ops for (_, ops), each in zip(lowered.steps, lowered.first_matrices, strict=True) if each == count]
            self._segments.append(NativeSegment([operation for operations in alike for operation in operations]))
        self._whole = NativeSegment([operation for _, operations in lowered.steps for operation in operations])

    def run(self, replay: Replay, rows: int, weight: int, out: int, arrival: Arrival) -> None:
        """Computes an expert's weighted output.

        Args:
            replay: the replay, whose frame gets other bases from 1 on.
            rows: address of the rows.
            weight: address of their routing weights.
            out: address of the output.
            arrival: the expert. Operations that need only the first matrix do not wait for the others.

        Raises:
            CorruptData: a chunk does not hold exactly the exponents of its rows.
        """
        bases = replay.bases
        bases[ROWS], bases[WEIGHT], bases[OUT] = rows, weight, out
        if arrival.await_rest is None:
            for index, matrix in enumerate(arrival.matrices, FIRST_MATRIX):
                _bind(replay, index, matrix)
            self._whole.run(replay.address)
            return
        self._segments[0].run(replay.address)
        for index, (matrix, segment) in enumerate(
            zip(arrival.one_by_one(), self._segments[1:], strict=True), FIRST_MATRIX
        ):
            _bind(replay, index, matrix)
            segment.run(replay.address)

    @property
    def nbytes(self) -> int:
        """Bytes of the operations and their memory."""
        return self._memory.nbytes + 2 * self._whole.nbytes


def _bind(replay: Replay, base: int, matrix: Matrix) -> None:
    """Makes a base of the frame a matrix; the caller keeps the matrix while operations run."""
    if isinstance(matrix, PackedMatrix):
        weights = matrix.weights
        replay.bases[base], replay.parts[base] = ctypes.addressof(weights.table), len(weights.table)
    elif isinstance(matrix, CompressedMatrix):
        replay.bases[base], replay.parts[base] = matrix.memory.data_ptr(), -matrix.nbytes
    else:
        replay.bases[base], replay.parts[base] = matrix.data_ptr(), 0
