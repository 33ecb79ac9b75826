"""Records a model's pass of some single rows, proves it, and reports what is replayed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.kernels.program import new_frame
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.program.lockstep import DIFFERS, Lockstep, same_bytes
from zipmoe.model.program.lowering.lowered import Lowering, flat
from zipmoe.model.program.lowering.operands import CannotLower
from zipmoe.model.program.lowering.schedule import Schedule, schedule
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.borrowed_experts import BorrowedExperts
from zipmoe.model.program.recording.parts import left_eager
from zipmoe.model.program.recording.record import Recording, record
from zipmoe.model.program.recording.row_model import ProofRow, RowModel
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.program.replay.expert_programs import ExpertPrograms
from zipmoe.model.program.replay.row_places import RowPlaces
from zipmoe.model.program.replay.row_program import RowProgram
from zipmoe.model.program.report import RowReport
from zipmoe.model.torch_orders import exponentials
from zipmoe.serving.pages import PAGE_TOKENS, pages_of
from zipmoe.system_error import first_line

POSITIONS = (37, 2)
"""Positions of the first row in the two recordings, and in the comparison of single operations."""

WHOLE_PASSES = (0, 21, 40, 75)
"""Positions of the first row in whole passes that are compared with eager ones."""

FIRST_ROW_PAGES = pages_of(max(*POSITIONS, *WHOLE_PASSES) + 1)
"""Pages of the first row. Each further row stays within one page."""


def proof_pages(rows: int) -> int:
    """Returns the pages for the proof of a pass: two page tables for each row."""
    return 2 * (FIRST_ROW_PAGES + rows - 1)


def record_rows(model: RowModel, rows: int, pages: Sequence[int]) -> tuple[RowProgram | None, RowReport]:
    """Records and proves the pass of some rows.

    Args:
        model: the model.
        rows: number of rows, each of another request or behind another one of the same request.
        pages: pages of the pool that nobody uses, `proof_pages` of them or fewer. They are left filled with zeros.

    Returns:
        The program, None if nothing is replayed; and the report.
    """
    begin = time.perf_counter()
    borrowed = BorrowedExperts(model.built)
    start = _Start(model, borrowed, rows, pages)
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

    def __init__(self, model: RowModel, borrowed: BorrowedExperts, rows: int, pages: Sequence[int]) -> None:
        self._model = model
        self._rows = rows
        self._borrowed = borrowed
        self._tables = UnaryTables()
        self.eager: dict[str, str] = {}
        self.by_torch: Mapping[str, Counter[str]] = {}
        self.experts_by_python: dict[str, str] = {}
        half = min(len(pages) // 2, proof_pages(rows) // 2)
        self._ours, self._theirs = list(pages[:half]), list(pages[half : 2 * half])
        self._most = (half - rows + 1) * PAGE_TOKENS
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
        first, second = (record(self._model, self._rows_at(each, self._ours)) for each in positions)
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
        program = RowProgram(self._model, first, plan, lowering, self._experts_of(first))
        self._fill_pages()
        self._compare_passes(program)
        return program

    def _rows_at(self, position: int, pages: Sequence[int]) -> list[ProofRow]:
        """Returns the rows of a pass: the first at a position in its pages, each other in a page of its own."""
        own = len(pages) - self._rows + 1
        first = ProofRow(self._token(position), position, pages[:own])
        others = [(position * 5 + 7 * number) % PAGE_TOKENS for number in range(1, self._rows)]
        return [
            first,
            *(ProofRow(self._token(each), each, [page]) for each, page in zip(others, pages[own:], strict=True)),
        ]

    def _token(self, position: int) -> int:
        return (position * 31 + 5) % self._vocabulary

    def _fill_pages(self) -> None:
        """Draws keys and values for all tokens, the same in both page tables."""
        generator = torch.Generator().manual_seed(2)
        for block in self._blocks():
            heads, _, tokens, numbers = block.shape
            drawn = torch.randn((heads, len(self._ours), tokens, numbers), generator=generator).bfloat16()
            block[:, self._ours] = block[:, self._theirs] = drawn

    def clear(self) -> None:
        """Fills the pages with zeros."""
        for block in self._blocks():
            block[:, [*self._ours, *self._theirs]] = 0

    def _blocks(self) -> Iterator[torch.Tensor]:
        """Yields every block of the pool by pages, shape (heads, pages, tokens of a page, numbers)."""
        for block in (*self._model.pool.keys, *self._model.pool.values):
            yield block.view(block.shape[0], -1, PAGE_TOKENS, block.shape[2])

    def _differing(self, recording: Recording, lowering: Lowering, plan: Schedule, position: int) -> list[TapeEntry]:
        """Compares every native operation with its twin in a pass whose first row is at a position."""
        pool, memory = self._model.pool, lowering.operands.memory
        frame = new_frame(torch.get_num_threads(), exponentials())
        rows = self._rows_at(position, self._ours)
        places = RowPlaces(pool, rows, lowering.windows)
        places.bind(frame)
        heads = max((op.numbers[1] * op.numbers[2] for op in lowering.lowered.attention.values()), default=0)
        scores = torch.empty(2, max(heads, 1) * places.tokens)
        frame.scores, frame.weights = scores[0].data_ptr(), scores[1].data_ptr()
        memory.view(recording.token_ids).copy_(torch.tensor([[row.token_id + 2 for row in rows]]) % self._vocabulary)
        memory.view(recording.positions).copy_(torch.tensor([[row.position for row in rows]]))
        lockstep = Lockstep(memory, frame, recording, self._model.cache(rows))
        with torch.inference_mode(), self._model.rows_alone(self._rows):
            for entry in flat(plan):
                lockstep.compute(entry, lowering.lowered.operations.get(entry))
        return lockstep.different

    def _experts_of(self, recording: Recording) -> dict[RoutedExperts, ExpertPrograms]:
        programs = {}
        for entry in recording.entries:
            if isinstance(module := entry.subject, RoutedExperts) and entry.part not in self.eager:
                try:
                    if entry.args[1].dim() != 2:
                        raise CannotLower("experts that are chosen by one-hot rows")
                    rows, weights = entry.args[0], entry.args[2].reshape(-1, 1)
                    each = ExpertPrograms(self._model, module, self._borrowed, self._tables, rows, weights)
                    each.of_rows(1)
                    programs[module] = each
                except CannotLower as reason:
                    self.experts_by_python[entry.part] = str(reason)
        return programs

    def _compare_passes(self, program: RowProgram) -> None:
        """Compares whole passes with eager ones: all logits, all keys and values.

        Raises:
            UnsupportedModel: a pass differs.
        """
        for position in WHOLE_PASSES:
            if position >= self._most:
                continue
            rows = self._rows_at(position, self._theirs)
            with torch.inference_mode():
                ids = torch.tensor([[row.token_id for row in rows]])
                wanted, hidden_states = self._model.eager(
                    ids, torch.tensor([[row.position for row in rows]]), self._model.cache(rows)
                )
                found = program.compute(self._rows_at(position, self._ours))
            if found is None or not same_bytes(found, wanted) or not same_bytes(program.hidden_states, hidden_states):
                raise UnsupportedModel(f"the replayed pass at position {position} has other logits than the eager one")
            for block in self._blocks():
                if not same_bytes(block[:, self._ours], block[:, self._theirs]):
                    raise UnsupportedModel(f"the replayed pass at position {position} caches other keys or values")
