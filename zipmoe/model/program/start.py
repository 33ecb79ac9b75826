"""Records a model's pass of one row at the start, proves it, and reports what is replayed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.kernels.attention import Contexts
from zipmoe.kernels.program import Context, new_frame
from zipmoe.model.attention.kv_pool import KvPlace
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lockstep import DIFFERS, Lockstep, same_bytes
from zipmoe.model.program.lowering.lowered import Lowering, flat
from zipmoe.model.program.lowering.operands import CannotLower
from zipmoe.model.program.lowering.schedule import Schedule, schedule
from zipmoe.model.program.lowering.torch_orders import exponentials
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.borrowed_experts import BorrowedExperts
from zipmoe.model.program.recording.parts import left_eager
from zipmoe.model.program.recording.record import Recording, record
from zipmoe.model.program.recording.row_model import RowModel
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.program.replay.expert_program import (
    FIRST_MATRIX,
    OUT,
    ROWS,
    WEIGHT,
    ExpertProgram,
    lower_expert,
    record_expert,
)
from zipmoe.model.program.replay.row_program import RowProgram
from zipmoe.model.program.report import RowReport
from zipmoe.serving.pages import PAGE_TOKENS, pages_of
from zipmoe.system_error import first_line

POSITIONS = (37, 2)
"""Positions of the two recordings, and of the comparison of single operations."""

WHOLE_PASSES = (0, 21, 40, 75)
"""Positions of whole passes that are compared with eager ones."""


def record_row(model: RowModel) -> tuple[RowProgram | None, RowReport]:
    """Records and proves the pass of one row. The pool has to be unused, and is left filled with zeros.

    Returns:
        The program, None if nothing is replayed; and the report.
    """
    begin = time.perf_counter()
    borrowed = BorrowedExperts(model.built)
    start = _Start(model, borrowed)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in model.experts:
            stack.enter_context(module.served_by(borrowed))
        try:
            program, reason = start.program(), ""
        except UnsupportedModel as error:
            program, reason = None, error.message
        except Exception as error:  # stock's code may raise anything on a path that is not its own; it is told
            program, reason = None, f"{type(error).__name__}: {first_line(error)}"
        finally:
            start.clear()
    return program, RowReport(
        layers=model.layer_count,
        eager=start.eager,
        by_torch=start.by_torch,
        experts_by_python=start.experts_by_python,
        reason=reason,
        nbytes=0 if program is None else program.nbytes,
        seconds=time.perf_counter() - begin,
        failed=program is None,
    )


class _Start:
    """One recording on its way to a program."""

    def __init__(self, model: RowModel, borrowed: BorrowedExperts) -> None:
        self._model = model
        self._borrowed = borrowed
        self._tables = UnaryTables()
        self.eager: dict[str, str] = {}
        self.by_torch: Mapping[str, Counter[str]] = {}
        self.experts_by_python: dict[str, str] = {}
        half = min(model.pool.page_count // 2, pages_of(max(*POSITIONS, *WHOLE_PASSES) + 1))
        self._ours, self._theirs = list(range(half)), list(range(half, 2 * half))
        self._most = half * PAGE_TOKENS
        self._vocabulary = model.built.vocabulary_size

    def program(self) -> RowProgram:
        """Records, lowers and proves.

        Raises:
            UnsupportedModel: nothing can be replayed.
        """
        positions = [position for position in POSITIONS if position < self._most]
        if len(positions) < len(POSITIONS):
            raise UnsupportedModel(f"{self._most} tokens of cache are too few for a proof")
        self._fill_pages()
        first, second = (record(self._model, 11 + 2 * each, each, self._ours) for each in positions)
        self.eager = left_eager(first, second)
        if len(self.eager) == len(first.layers):
            raise UnsupportedModel(f"no layer can be replayed: {next(iter(self.eager.values()))}")
        plan = schedule(first, self.eager)
        refused: dict[TapeEntry, str] = {}
        while True:
            lowering = Lowering(self._model, plan, self._tables, refused)
            found = {entry for each in positions for entry in self._differing(first, lowering, plan, each)}
            if not found:
                break
            refused.update(dict.fromkeys(found, DIFFERS))
        self.by_torch = lowering.lowered.by_torch
        program = RowProgram(self._model, first, plan, lowering, self._expert_programs(first))
        self._fill_pages()
        self._compare_passes(program)
        return program

    def _fill_pages(self) -> None:
        """Draws keys and values for all tokens, the same in both page tables."""
        generator = torch.Generator().manual_seed(2)
        for block, used in self._used_blocks():
            drawn = torch.randn((block.shape[0], self._most, block.shape[2]), generator=generator).bfloat16()
            used.copy_(drawn.repeat(1, 2, 1))

    def clear(self) -> None:
        """Fills the used part of the pool with zeros, as it was."""
        for _, used in self._used_blocks():
            used.zero_()

    def _used_blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields every block of the pool, and its part in both page tables."""
        for block in (*self._model.pool.keys, *self._model.pool.values):
            yield block, block[:, : 2 * self._most]

    def _differing(self, recording: Recording, lowering: Lowering, plan: Schedule, position: int) -> list[TapeEntry]:
        """Compares every native operation with its twin in a pass at a position."""
        pool, memory = self._model.pool, lowering.operands.memory
        frame = new_frame(torch.get_num_threads(), exponentials())
        windows = lowering.windows
        lengths = [position + 1 if window is None else min(position + 1, window) for window in windows]
        place = KvPlace(self._ours, position + 1, pool.device)
        contexts = [Contexts([place.runs(position + 1 - each)], pool.keys[0].shape[1]) for each in lengths]
        frame.contexts = (Context * len(contexts))(*(Context(c.entries, c.runs, c.tokens) for c in contexts))
        frame.slot = pool.slot(self._ours, position)
        heads = max((op.numbers[1] * op.numbers[2] for op in lowering.lowered.attention.values()), default=0)
        scores = torch.empty(2, max(heads, 1) * (position + 1))
        frame.scores, frame.weights = scores[0].data_ptr(), scores[1].data_ptr()
        memory.view(recording.token_id).fill_(7 + position)
        memory.view(recording.position).fill_(position)
        cache = self._model.cache(position, self._ours)
        lockstep = Lockstep(memory, frame, recording, cache)
        with torch.inference_mode():
            for entry in flat(plan):
                lockstep.compute(entry, lowering.lowered.operations.get(entry))
        return lockstep.different

    def _expert_programs(self, recording: Recording) -> dict[RoutedExperts, ExpertProgram]:
        programs = {}
        for entry in recording.entries:
            if isinstance(module := entry.subject, RoutedExperts) and entry.part not in self.eager:
                try:
                    programs[module] = self._expert_program(module, entry)
                except CannotLower as reason:
                    self.experts_by_python[entry.part] = str(reason)
        return programs

    def _expert_program(self, module: RoutedExperts, entry: TapeEntry) -> ExpertProgram:
        if entry.args[1].dim() != 2:
            raise CannotLower("experts that are chosen by one-hot rows")
        rows, weight = entry.args[0], entry.args[2].reshape(-1)[:1].view(1, 1)
        linears = self._model.linears
        matrices = self._borrowed.matrices(module.layer, 1)
        recording = record_expert(module, linears, rows, weight, matrices)
        lowered = lower_expert(recording, linears, self._tables)
        frame = new_frame(torch.get_num_threads(), exponentials())
        places = ((ROWS, recording.rows), (WEIGHT, recording.weight), (OUT, lowered.memory.view(recording.output)))
        for base, tensor in (*places, *enumerate(recording.matrices, FIRST_MATRIX)):
            frame.bases[base] = tensor.data_ptr()
        lockstep = Lockstep(lowered.memory, frame)
        with torch.inference_mode():
            for each, operations in lowered.steps:
                lockstep.compute(each, operations)
        if lockstep.different:
            raise CannotLower(f"an expert's {lockstep.different[0].name}: {DIFFERS}")
        return ExpertProgram(lowered, len(matrices))

    def _compare_passes(self, program: RowProgram) -> None:
        """Compares whole passes with eager ones: all logits, all keys and values.

        Raises:
            UnsupportedModel: a pass differs.
        """
        pool = self._model.pool
        for position in WHOLE_PASSES:
            if position >= self._most:
                continue
            token = (position * 31 + 5) % self._vocabulary
            with torch.inference_mode():
                cache = self._model.cache(position, self._theirs)
                ids, places = torch.tensor([[token]]), torch.tensor([[position]])
                wanted, hidden_state = self._model.eager(ids, places, cache)
                found = program.compute(token, position, self._ours)
            if found is None or not same_bytes(found, wanted) or not same_bytes(program.hidden_state, hidden_state):
                raise UnsupportedModel(f"the replayed pass at position {position} has other logits than the eager one")
            ours, theirs = pool.slot(self._ours, position), pool.slot(self._theirs, position)
            for block in (*pool.keys, *pool.values):
                if not same_bytes(block[:, ours], block[:, theirs]):
                    raise UnsupportedModel(f"the replayed pass at position {position} caches other keys or values")
