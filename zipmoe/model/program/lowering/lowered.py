"""Lowers the entries of a schedule to native operations, and says which of them torch computes instead."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from zipmoe.kernels.program import Operation
from zipmoe.model.program.lowering.aten import lower_aten
from zipmoe.model.program.lowering.kernels import aim, lower_attention, lower_linear
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.lowering.schedule import Gate, Schedule
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.row_model import RowModel
from zipmoe.model.program.recording.tape import Kind, TapeEntry


@dataclass
class Lowered:
    """The native operations of a scheduled recording.

    Attributes:
        operations: of each entry that has native operations.
        attention: the operation of each lowered attention.
        by_torch: why an entry has none, by part.
    """

    operations: dict[TapeEntry, list[Operation]] = field(default_factory=dict)
    attention: dict[TapeEntry, Operation] = field(default_factory=dict)
    by_torch: dict[str, Counter[str]] = field(default_factory=dict)

    def leave_to_torch(self, entry: TapeEntry, reason: str) -> None:
        """Makes torch compute an entry."""
        self.operations.pop(entry, None)
        self.attention.pop(entry, None)
        self.by_torch.setdefault(entry.part, Counter())[f"{entry.name}: {reason}"] += 1


class Lowering:
    """Lowers the entries of a schedule."""

    def __init__(self, model: RowModel, plan: Schedule, tables: UnaryTables, refused: Mapping[TapeEntry, str]) -> None:
        """Lowers every entry that has native code.

        Args:
            model: the model.
            plan: order and memory.
            tables: tables of functions of one number.
            refused: entries whose native operations differ from torch, and why they are left to torch.
        """
        self.operands = Operands(plan.memory, tables)
        self.windows = sorted({*model.pool.layout.windows}, key=lambda window: window or 0)
        self.lowered = Lowered()
        self._model = model
        queries = [each.args[2].numel() for each in flat(plan) if each.kind is Kind.ATTEND]
        self.query = torch.zeros(max(queries, default=0), dtype=torch.bfloat16)
        for entry in flat(plan):
            if entry.kind in (Kind.EXPERTS, Kind.LAYER):
                continue
            try:
                if entry in refused:
                    raise CannotLower(refused[entry])
                self.lowered.operations[entry] = self._lower(entry)
            except CannotLower as reason:
                self.lowered.leave_to_torch(entry, str(reason))

    def _lower(self, entry: TapeEntry) -> list[Operation]:
        if entry.kind is Kind.LINEAR:
            return lower_linear(entry, self.operands, self._model.linears)
        if entry.kind is Kind.ATEN:
            return lower_aten(entry, self.operands)
        layer, pool = int(entry.subject.layer_idx), self._model.pool
        blocks = pool.keys[layer], pool.values[layer]
        window = pool.layout.windows[layer]
        length = min(entry.args[0].spans[0].tokens, sys.maxsize if window is None else window)
        method = self._model.attention.method(entry.subject, entry.args[2][:, :, :1], *blocks, length, entry.args[5])
        if method is None:
            raise CannotLower("the kernels do not have the bits of this attention")
        operations = lower_attention(entry, self.operands, blocks, self.windows.index(window), self.query)
        aim(operations[-1], method)
        self.lowered.attention[entry] = operations[-1]
        return operations


def flat(plan: Schedule) -> list[TapeEntry]:
    """Returns all entries of a schedule in the order of the replay."""
    entries: list[TapeEntry] = []
    for each in plan.order:
        entries += [*each.beside, each.entry] if isinstance(each, Gate) else [each]
    return entries
