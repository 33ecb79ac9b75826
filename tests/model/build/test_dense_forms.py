"""Dense weights compressed in memory: stock's bits in every pass, the bytes that are held, and what stays bf16."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from tests.model.conftest import Twin
from tests.model.known_orders import kernels_have_torchs_bits
from tests.model.passes.test_ragged import StockPasses, prompt
from tests.model.tiny import load_stock, save_checkpoint, split_stock
from zipmoe.errors import CorruptData
from zipmoe.kernels.linear import LinearShape, Order, lanes
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.program import Code, WeightForm
from zipmoe.model.build.build import BuiltModel, build_model
from zipmoe.model.build.dense import DenseFiles
from zipmoe.model.build.dense_forms import compressed_beside, form_of_machine
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.linear.compressed import CompressedMatrix, CompressedWeight
from zipmoe.model.linear.linear_module import NativeLinear
from zipmoe.model.linear.linear_order import OrderTable, cancelling
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.model.passes.sequence import Sequence as Generation
from zipmoe.model.program.replay.steps import NativeStep
from zipmoe.serving.pages import PAGE_TOKENS

WIDE = {"hidden_size": 256, "intermediate_size": 256}
"""A linear has to have 128 inputs to get smaller."""

PAGED = ["qwen2_moe", "mixtral", "deepseek_v2", "glm4_moe"]

needs_form = pytest.mark.skipif(
    form_of_machine(Linears(), 256, 256) is None, reason="no in-memory form has the bits of this machine's torch"
)


class Wide:
    """A stock model, and ours with bf16 and with compressed weights."""

    def __init__(self, family: str, path: Path, **overrides: Any) -> None:
        save_checkpoint(family, path, **{**WIDE, **overrides})
        self.path = path
        self.stock = load_stock(path)
        self.layers, self.dense, self.provider = split_stock(self.stock)
        self.linears = Linears()

    def built(self, linears: Linears | None = None, *, compress_dense: bool = True) -> BuiltModel:
        return build_model(
            self.path,
            self.layers,
            self.dense,
            self.provider,
            HostPlacement(),
            self.linears if linears is None else linears,
            compress_dense=compress_dense,
        )

    def twin(self, built: BuiltModel) -> Twin:
        return Twin(self.path, self.stock, self.layers, self.dense, self.provider, built, self.linears)


@pytest.fixture(scope="module")
def wide_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Wide, BuiltModel]]:
    made: dict[str, tuple[Wide, BuiltModel]] = {}

    def get(family: str) -> tuple[Wide, BuiltModel]:
        if family not in made:
            wide = Wide(family, tmp_path_factory.mktemp(family))
            made[family] = wide, wide.built()
        return made[family]

    return get


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16)


def prefilled(model: RaggedModel, ids: list[int], pages: list[int]) -> torch.Tensor:
    waiting = model.prompt(ids, 0, pages)
    while waiting.layers_left:
        waiting.advance(1)
    return waiting.finish().logits


@needs_form
@pytest.mark.parametrize("family", PAGED)
def test_prompts_and_recorded_tokens_have_stocks_bits(
    family: str, wide_of: Callable[[str], tuple[Wide, BuiltModel]]
) -> None:
    wide, built = wide_of(family)
    assert built.dense_forms.compressed_count > 0
    assert any(isinstance(each, CompressedWeight) for each in built.model.parameters())
    model = RaggedModel(built, wide.linears, 12)
    report = model.record_row()
    assert report.recorded_layers == report.layers, report.why_eager
    stock, pages, ids = StockPasses(wide.twin(built)), [3, 8], prompt(PAGE_TOKENS - 4)
    assert torch.equal(bits(prefilled(model, ids, pages)), bits(stock(ids)))
    for position, token in enumerate(prompt(6, 2), len(ids)):
        found = model.compute([BatchRow(token, position, pages)])[0]
        assert found is not None
        assert torch.equal(bits(found), bits(stock([token]))), position
    program = model.row_programs[1]
    assert program is not None and program.passes > 0


@needs_form
@pytest.mark.parametrize("family", PAGED)
def test_a_recorded_pass_multiplies_from_the_form(
    family: str, wide_of: Callable[[str], tuple[Wide, BuiltModel]]
) -> None:
    wide, built = wide_of(family)
    model = RaggedModel(built, wide.linears, 12)
    report = model.record_row()
    assert not any("form" in name for counts in report.by_torch.values() for name in counts), report.why_not_native
    program = model.row_programs[1]
    assert program is not None
    segments = [step.segment for step in program.steps if isinstance(step, NativeStep)]
    for gate in program.gates:
        segments += [step.segment for step in gate.beside if isinstance(step, NativeStep)]
    operations = [segment[index] for segment in segments for index in range(len(segment))]
    in_form = [each for each in operations if each.code == Code.LINEAR and each.numbers[7] != WeightForm.ROWS]
    assert len(in_form) == built.dense_forms.compressed_count


@needs_form
@pytest.mark.parametrize("family", PAGED[:3])
def test_rows_of_several_requests_have_the_bits_they_have_alone(
    family: str, wide_of: Callable[[str], tuple[Wide, BuiltModel]]
) -> None:
    wide, built = wide_of(family)
    model = RaggedModel(built, wide.linears, 12)
    plain = RaggedModel(wide.built(Linears(), compress_dense=False), wide.linears, 12)
    ids = [prompt(5 + index, index) for index in range(5)]
    for each in (model, plain):
        for page, of_one in enumerate(ids):
            prefilled(each, of_one, [page])
    rows = [BatchRow(7 + index, len(of_one), [index]) for index, of_one in enumerate(ids)]
    for found, wanted in zip(model.compute(rows), plain.compute(rows), strict=True):
        assert found is not None and wanted is not None
        assert torch.equal(bits(found), bits(wanted))


@needs_form
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}], ids=["own head", "tied head"])
def test_answers_do_not_depend_on_the_form(overrides: dict[str, Any], tmp_path: Path) -> None:
    wide = Wide("qwen2_moe", tmp_path, **overrides)
    answers = []
    for compress in (False, True):
        with torch.inference_mode():
            generation = Generation(wide.built(compress_dense=compress))
            logits = generation.prefill(prompt(9)).logits
            tokens = []
            for _ in range(12):
                tokens.append(int(logits.argmax()))
                logits = generation.step(tokens[-1])
        answers.append(tokens)
    assert answers[0] == answers[1]


@needs_form
def test_a_head_that_is_tied_to_embeddings_stays_bf16_and_is_named(tmp_path: Path) -> None:
    built = Wide("qwen2_moe", tmp_path, tie_word_embeddings=True).built()
    head = built.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert not isinstance(head.weight, CompressedWeight)
    assert head.weight is built.model.get_input_embeddings().weight
    assert built.dense_forms.left["shared with a module that is no linear"] == 1


@needs_form
def test_the_report_counts_the_bytes_that_are_held(wide_of: Callable[[str], tuple[Wide, BuiltModel]]) -> None:
    wide, built = wide_of("qwen2_moe")
    plain = wide.built(Linears(), compress_dense=False)
    forms = built.dense_forms
    assert forms.saved_bytes > 0
    assert plain.dense.nbytes - built.dense.nbytes == forms.saved_bytes + forms.scratch_bytes
    assert plain.dense_forms.counts == {}


@needs_form
def test_a_measurement_compresses_what_loading_compresses(
    wide_of: Callable[[str], tuple[Wide, BuiltModel]],
) -> None:
    wide, built = wide_of("qwen2_moe")
    linears = Linears()
    pairs, report = compressed_beside(wide.built(linears, compress_dense=False).model, linears)
    assert report == built.dense_forms
    assert all(torch.equal(bits(plain), bits(matrix.recover())) for plain, matrix in pairs)


def test_without_a_known_order_everything_stays_bf16_and_says_so(tmp_path: Path) -> None:
    wide = Wide("qwen2_moe", tmp_path)
    built = wide.built(Linears(OrderTable(orders=())))
    forms = built.dense_forms
    assert forms.compressed_count == forms.saved_bytes == 0
    assert set(forms.left) == {"no form has torch's bits for one row", "fewer than 8 outputs"}
    assert sum(forms.left.values()) == forms.counts["bf16"]


@needs_form
def test_a_matrix_that_is_overwritten_is_an_error_of_a_recorded_pass(tmp_path: Path) -> None:
    wide = Wide("mixtral", tmp_path)
    built = wide.built()
    model = RaggedModel(built, wide.linears, 12)
    model.record_row()
    prefilled(model, prompt(5), [0])
    head = built.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.matrix.memory[:4] = 0
    with pytest.raises(CorruptData, match="compressed matrix"):
        model.compute([BatchRow(7, 5, [0])])


@needs_form
def test_a_form_with_other_bits_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = CompressedMatrix.product

    def wrong(matrix: CompressedMatrix, *args: Any) -> torch.Tensor:
        return torch.nextafter(product(matrix, *args), torch.tensor(torch.inf).bfloat16())

    monkeypatch.setattr(CompressedMatrix, "product", wrong)
    wide = Wide("qwen2_moe", tmp_path)
    forms = wide.built().dense_forms
    assert forms.compressed_count == 0
    assert "has other bits than bf16 rows" in forms.why_left


class _FewRows(OrderTable):
    """Knows the order of few rows alone."""

    def order(self, shape: LinearShape, *, bias: bool) -> Order | None:
        return super().order(shape, bias=bias) if shape.m <= 4 else None


@needs_form
def test_numbers_of_rows_without_an_order_are_recovered_into_a_counted_scratch(tmp_path: Path) -> None:
    wide = Wide("qwen2_moe", tmp_path)
    linears = Linears(_FewRows())
    built = wide.built(linears)
    sizes = [
        2 * module.in_features * module.out_features
        for module in built.model.modules()
        if isinstance(module, NativeLinear) and isinstance(module.weight, CompressedWeight)
    ]
    assert built.dense_forms.scratch_bytes == max(sizes)
    head = built.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        rows = torch.randn(9, 256).bfloat16()
        plain = wide.dense["lm_head.weight"]
        assert torch.equal(bits(head(rows)), bits(linear(rows, plain)))
        address = linears.recovered(head.weight.matrix).data_ptr()
        assert linears.recovered(head.weight.matrix).data_ptr() == address
    recovering = Generation(built)
    with torch.inference_mode():
        found = recovering.prefill(prompt(9)).logits
        wanted = Generation(wide.built(Linears(), compress_dense=False)).prefill(prompt(9)).logits
    assert torch.equal(bits(found), bits(wanted))


class _Watched:
    """Dense weights that note how many of the tensors given away are alive when the next one is asked for."""

    def __init__(self, dense: dict[str, torch.Tensor]) -> None:
        self._dense = dense
        self.most_alive = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._dense)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        given: list[weakref.ref[torch.UntypedStorage]] = []
        linears = {name for name, tensor in self._dense.items() if tensor.dim() == 2 and "embed" not in name}
        for name, tensor in self._dense.items():
            self.most_alive = max(self.most_alive, sum(each() is not None for each in given))
            copy = tensor.clone()
            if name in linears and tensor.shape[0] > 8:
                given.append(weakref.ref(copy))
            yield name, copy
            del copy


@needs_form
def test_loading_never_holds_the_bf16_rows_of_two_compressed_matrices(tmp_path: Path) -> None:
    wide = Wide("mixtral", tmp_path)
    watched = _Watched(wide.dense)
    built = build_model(
        wide.path, wide.layers, watched, wide.provider, HostPlacement(), wide.linears, compress_dense=True
    )
    assert built.dense_forms.compressed_count > 8
    assert watched.most_alive <= 1


@needs_form
@torch.inference_mode()
def test_other_code_of_torch_sees_the_recovered_weight() -> None:
    x, weight = cancelling(LinearShape(3, 96, 256))
    form = form_of_machine(Linears(), 96, 256)
    assert form is not None
    kept = CompressedWeight.of(CompressedMatrix.of(weight, form))
    assert (kept.shape, kept.dtype, kept.device.type) == (weight.shape, torch.bfloat16, "cpu")
    assert torch.equal(bits(linear(x, kept)), bits(linear(x, weight)))
    assert torch.equal(bits(kept[5]), bits(weight[5]))


@pytest.mark.parametrize("n", [9, 64])
@torch.inference_mode()
def test_groups_and_rows_alone_have_the_bits_of_bf16_rows(n: int) -> None:
    if not kernels_have_torchs_bits():
        pytest.skip("torch's order is not known")
    x, weight = cancelling(LinearShape(12, n, 256))
    linears, bias = Linears(), torch.randn(n).mul_(1e-5).bfloat16()
    form = form_of_machine(linears, n, 256)
    if form is None:
        pytest.skip("no form has the order")
    kept = CompressedMatrix.of(weight, form)
    ways: Sequence[Callable[[Any], torch.Tensor]] = [
        lambda each: linears.alone(x, each, bias),
        lambda each: linears(x.view(3, 4, 256)[:, 1:2], each, bias),
        lambda each: linears(x.view(3, 4, 256), each),
    ]
    for way in ways:
        assert torch.equal(bits(way(kept)), bits(way(weight)))
    with linears.in_groups([5, 7]):
        assert torch.equal(bits(linears(x, kept, bias)), bits(linears(x, weight, bias)))


def test_the_nibble_form_takes_torchs_own_order_alone() -> None:
    weight = torch.randn(16, 256).bfloat16()
    matrix = CompressedMatrix.of(weight, NIBBLE)
    assert matrix.takes(lanes())
    assert matrix.nbytes < weight.nbytes
    assert torch.equal(bits(matrix.recover()), bits(weight))


def test_names_come_before_tensors_from_a_stores_files(tmp_path: Path) -> None:
    assert list(DenseFiles(tmp_path, [])) == []
