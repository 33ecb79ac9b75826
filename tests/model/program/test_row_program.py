"""The recorded pass of one row beside the eager pass: every family, every bit, and what happens on errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.conftest import Twin, TwinOf
from tests.model.passes.test_ragged import DECODERS, prompt
from zipmoe.errors import NotFound
from zipmoe.kernels.program import Code
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.model.program import start
from zipmoe.model.program.lowering import aten
from zipmoe.model.program.recording.borrowed_experts import BorrowedExperts
from zipmoe.model.program.recording.row_model import ProofRow
from zipmoe.model.program.recording.tape import Kind
from zipmoe.model.program.replay.row_program import RowProgram
from zipmoe.model.program.replay.steps import NativeStep, TorchStep
from zipmoe.model.program.report import RowReport
from zipmoe.serving.pages import PAGE_TOKENS

PAGES = 24

LEFT_TO_TORCH = {
    "linear", "attend", "cos", "sin", "polar", "mul", "sigmoid", "scatter_", "scatter", "gather", "_to_copy",
    "bitwise_not", "masked_fill", "native_layer_norm", "max", "clamp", "gt", "_softmax", "topk", "add",
}  # fmt: skip
"""What torch may compute between native segments, in one family or another, or where an order is not known."""


@dataclass
class Recorded:
    """A recorded model, and the report of its recording."""

    model: RaggedModel
    report: RowReport

    def token(self, token: int, position: int, pages: list[int]) -> torch.Tensor:
        logits = self.model.compute([BatchRow(token, position, pages)])[0]
        assert logits is not None
        return logits

    def eager_token(self, token: int, position: int, pages: list[int]) -> torch.Tensor:
        logits = self.model.compute_eagerly([BatchRow(token, position, pages)])[0]
        assert logits is not None
        return logits


def recorded(twin: Twin) -> Recorded:
    model = RaggedModel(twin.built, twin.linears, PAGES)
    return Recorded(model, model.record_row())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


def same_cache(model: RaggedModel, ours: list[int], theirs: list[int], tokens: int) -> bool:
    pairs = [(model.pool.slot(ours, place), model.pool.slot(theirs, place)) for place in range(tokens)]
    mine, other = (torch.tensor(slots) for slots in zip(*pairs, strict=True))
    return all(same_bits(block[:, mine], block[:, other]) for block in (*model.pool.keys, *model.pool.values))


def prefill(model: RaggedModel, ids: list[int], pages: list[int]) -> None:
    waiting = model.prompt(ids, 0, pages)
    while waiting.layers_left:
        waiting.advance(2)


@pytest.mark.parametrize("family", DECODERS)
def test_every_layer_is_recorded_and_every_bit_is_that_of_the_eager_pass(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    ours = recorded(twin)
    model, report = ours.model, ours.report
    if model.pool.layout.latent:  # torch's order of an expansion is not known on this machine
        assert (report.recorded_layers, report.reason) == (0, "cached latents are expanded anew for every row")
        return
    assert report.recorded_layers == report.layers == model.layer_count, report.why_eager
    kinds = {name.partition(":")[0] for counts in report.by_torch.values() for name in counts}
    assert {kind.split(".")[1] if kind.startswith("aten.") else kind for kind in kinds} <= LEFT_TO_TORCH
    mine, theirs = [5, 1, 9, 3], [20, 17, 22, 12]  # no two pages are adjacent
    ids = prompt(PAGE_TOKENS - 5)
    prefill(model, ids, mine)
    prefill(model, ids, theirs)
    position = len(ids)
    for token in prompt(PAGE_TOKENS + 9, 3):
        twin.provider.requests.clear()
        found = ours.token(token, position, mine)
        asked = list(twin.provider.requests)
        twin.provider.requests.clear()
        wanted = ours.eager_token(token, position, theirs)
        assert same_bits(found, wanted), position
        assert asked == twin.provider.requests
        position += 1
    assert same_cache(model, mine, theirs, position)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "gpt_oss"])
def test_the_order_of_arrival_never_shows(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    ours = recorded(twin)
    twin.provider.arrange = lambda ids: ids[::-1]
    assert same_bits(ours.token(7, 0, [0]), ours.eager_token(7, 0, [1]))
    twin.provider.arrange = lambda ids: ids[1:] + ids[:1]
    assert same_bits(ours.token(8, 1, [0]), ours.eager_token(8, 1, [1]))


def test_an_error_of_the_provider_leaves_the_cache_as_an_eager_pass_does(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    ours = recorded(twin)
    calls = 0

    def fail_in_the_second_layer(ids: list[int]) -> Iterator[int]:
        nonlocal calls
        calls += 1
        for index, expert in enumerate(ids):
            if calls == 2 and index == 2:
                raise NotFound("this expert is missing")
            yield expert

    closed = 0
    for compute, pages in ((ours.token, [0]), (ours.eager_token, [1])):
        calls = 0
        twin.provider.arrange = fail_in_the_second_layer  # type: ignore[assignment]
        with pytest.raises(NotFound):
            compute(9, 0, pages)
        assert twin.provider.closed - closed == 2
        closed = twin.provider.closed
    assert same_cache(ours.model, [0], [1], 1)
    twin.provider.arrange = list
    assert same_bits(ours.token(9, 0, [0]), ours.eager_token(9, 0, [1]))


def test_a_row_that_chooses_nothing_has_no_logits(twin_of: TwinOf) -> None:
    ours = recorded(twin_of("qwen2_moe"))
    assert ours.model.compute([BatchRow(7, 0, [0], chooses=False)]) == [None]
    ours.eager_token(7, 0, [1])
    assert same_cache(ours.model, [0], [1], 1)


def test_an_operation_with_other_bits_is_left_to_torch_by_name(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower_wrongly(entry: object, operands: object) -> list[object]:
        (operation,) = right(entry, operands)  # type: ignore[arg-type]
        if operation.code == Code.BINARY:
            operation.variant = (operation.variant + 1) % 2
        return [operation]

    right = aten.TABLE["add.Tensor"]
    monkeypatch.setitem(aten.TABLE, "add.Tensor", lower_wrongly)  # type: ignore[misc]
    ours = recorded(twin_of("qwen3_moe"))
    assert ours.report.recorded_layers == ours.report.layers
    for layer in range(ours.report.layers):
        assert ours.report.by_torch[f"layer {layer}"]["aten.add.Tensor: its bits differ from torch's"] > 0
    assert same_bits(ours.token(7, 0, [0]), ours.eager_token(7, 0, [1]))


class _Branching(torch.nn.Module):
    """A norm whose result depends on a number of its input."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(rows)
        return normed * 2 if rows.sum().item() > 0 else normed


def test_a_layer_that_branches_on_its_data_runs_eagerly_by_name(twin_of: TwinOf) -> None:
    twin = twin_of("olmoe")
    layer = twin.built.model.model.layers[1]
    before = layer.input_layernorm
    layer.input_layernorm = _Branching(before)
    try:
        ours = recorded(twin)
        report = ours.report
        assert report.recorded_layers == report.layers - 1
        assert list(report.eager) == ["layer 1"]
        assert "data dependent output" in report.why_eager
        for position, token in enumerate(prompt(6)):
            assert same_bits(ours.token(token, position, [0]), ours.eager_token(token, position, [1]))
    finally:
        layer.input_layernorm = before


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("count", [2, 5, 16])
def test_passes_of_several_rows_have_the_bits_of_the_eager_pass(family: str, count: int, twin_of: TwinOf) -> None:
    """Rows of other requests and rows behind one another in the same one, at short and at long contexts."""
    model = RaggedModel(twin_of(family).built, twin_of(family).linears, 96)
    one = model.record_row()
    report = model.record_rows(count, range(10, 96))
    assert report.recorded_layers == one.recorded_layers
    if not report.recorded_layers:
        return
    program = model.row_programs[count]
    assert program is not None
    ours, theirs = [[10 + 6 * place + half for half in range(3)] for place in range(8)], []
    for place, pages in enumerate(ours):
        theirs.append([page + 3 for page in pages])
        for block in (*model.pool.keys, *model.pool.values):
            drawn = torch.randn(block.shape[0], 96, block.shape[2], generator=torch.Generator().manual_seed(place))
            for table in (pages, theirs[-1]):
                block[:, table[0] * PAGE_TOKENS : (table[-1] + 1) * PAGE_TOKENS] = drawn.bfloat16()
    for turn in range(4):
        places = [(0, 20 * turn + row) if row < 3 else (row % 8, 70 - turn * 9 + row) for row in range(count)]
        wanted = model.compute_eagerly([BatchRow(5 + row, at, theirs[which]) for row, (which, at) in enumerate(places)])
        found = model.compute([BatchRow(5 + row, at, ours[which]) for row, (which, at) in enumerate(places)])
        for row, (our, their) in enumerate(zip(found, wanted, strict=True)):
            assert our is not None and their is not None
            assert same_bits(our, their), (turn, row)
        for block in (*model.pool.keys, *model.pool.values):
            for one_table, other in zip(ours, theirs, strict=True):
                first, second = one_table[0] * PAGE_TOKENS, other[0] * PAGE_TOKENS
                assert same_bits(block[:, first : first + 96], block[:, second : second + 96])
    assert program.passes == 4 + 4  # the proof's and these


def test_whole_passes_are_compared_before_anything_is_served(twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that no single operation shows, such as a place that is used twice."""
    compute: Callable[..., torch.Tensor | None] = RowProgram.compute

    def wrong(self: RowProgram, rows: list[ProofRow]) -> torch.Tensor | None:
        return compute(self, [row._replace(token_id=row.token_id + (row.position > 0)) for row in rows])

    monkeypatch.setattr(RowProgram, "compute", wrong)
    ours = recorded(twin_of("olmoe"))
    assert ours.report.recorded_layers == 0
    assert ours.model.row_programs[1] is None
    assert "has other logits than the eager one" in ours.report.reason


def test_an_error_of_the_models_own_code_is_a_reason_and_no_end(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not under a dispatch mode")

    monkeypatch.setattr(start, "record", fail)
    ours = recorded(twin_of("olmoe"))
    assert ours.report.failed
    assert ours.report.why_eager == "RuntimeError: not under a dispatch mode"
    assert same_bits(ours.token(7, 0, [0]), ours.eager_token(7, 0, [1]))


def test_another_number_of_threads_is_computed_eagerly(twin_of: TwinOf) -> None:
    ours = recorded(twin_of("olmoe"))
    assert ours.model.row_programs[1] is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert ours.model.row_programs[1].compute([BatchRow(7, 0, [0])]) is None
        assert same_bits(ours.token(7, 0, [0]), ours.eager_token(7, 0, [1]))
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_read_or_counted_at_the_start_and_the_pool_stays_empty(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    ours = recorded(twin)
    assert twin.provider.requests == []
    assert not any(bool(block.any()) for block in (*ours.model.pool.keys, *ours.model.pool.values))


def test_a_shared_expert_is_computed_while_experts_are_read(twin_of: TwinOf) -> None:
    """Wherever stock computes it: before the gate (qwen2_moe), after the routed experts (glm4_moe)."""
    for family in ("qwen2_moe", "glm4_moe"):
        ours = recorded(twin_of(family))
        program = ours.model.row_programs[1]
        assert program is not None
        for gate in program.gates:
            native = [step.segment[index] for step in gate.beside if isinstance(step, NativeStep)
                      for index in range(len(step.segment))]  # fmt: skip
            linears = [each for each in native if each.code == Code.LINEAR]
            by_torch = [step for step in gate.beside if isinstance(step, TorchStep) and step.kind is Kind.LINEAR]
            assert len(linears) + len(by_torch) >= 3, family


class _Counting(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def test_torch_computes_nothing_of_a_layer_between_the_gates(twin_of: TwinOf) -> None:
    """So no operation of a layer enters OpenMP: softmax, gates of few outputs and norms are native."""
    ours = recorded(twin_of("qwen2_moe"))
    if any(part.startswith("layer") for part in ours.report.by_torch):
        pytest.skip(f"torch's orders are not known on this machine: {ours.report.why_not_native}")
    borrowed = BorrowedExperts(twin_of("qwen2_moe").built)  # the twin's own provider copies matrices
    with ExitStack() as stack:
        for module in twin_of("qwen2_moe").built.experts:
            assert isinstance(module, RoutedExperts)
            stack.enter_context(module.served_by(borrowed))
        ours.token(7, 40, [0, 1])
        with _Counting() as counting:
            ours.token(8, 41, [0, 1])
    computing = [name for name in counting.names if name not in VIEWS]
    assert sorted(computing) == ["clone", "copy_", "copy_", "cos", "fill_", "fill_", "sin"]


VIEWS = ("view", "select", "reshape", "alias", "lift_fresh", "resolve_conj", "resolve_neg")
"""Operations that compute nothing: views, and what `tolist` and a tensor of borrowed memory begin with."""


def test_the_program_takes_little_memory(twin_of: TwinOf) -> None:
    report = recorded(twin_of("qwen2_moe")).report
    assert 0 < report.nbytes < 1 << 20
