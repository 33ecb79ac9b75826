"""Native operations of a recorded pass beside torch, byte for byte, on drawn numbers and on hard ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch

from zipmoe.errors import InternalError
from zipmoe.kernels.program import Code, Context, Function, NativeSegment, Operand, Operation, Type, new_frame
from zipmoe.model.program.lockstep import same_bytes
from zipmoe.model.program.lowering.aten import rounded_scalar
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.lowering.pass_memory import PassMemory
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.torch_orders import exponentials, softmax_lanes, sum_lanes

pytestmark = pytest.mark.own_memory

BF16, FP32 = torch.bfloat16, torch.float32
ARITHMETIC = {
    Function.ADD: torch.add,
    Function.MUL: torch.mul,
    Function.SUB: torch.sub,
    Function.DIV: torch.div,
}


def operands() -> Operands:
    return Operands(PassMemory([], {}), UnaryTables())


def run(*operations: Operation) -> None:
    frame = new_frame(1, exponentials())
    NativeSegment(operations).run(ctypes.addressof(frame))


def drawn(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator) * torch.randn(*shape, generator=generator).exp()
    return numbers.to(dtype)


def every_number() -> torch.Tensor:
    """All bf16 numbers but NaN, whose payloads are nobody's promise."""
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(BF16)
    return numbers[~numbers.isnan()]


@pytest.mark.parametrize("function", ARITHMETIC)
@pytest.mark.parametrize(("a_dtype", "b_dtype"), [(BF16, BF16), (FP32, FP32), (BF16, FP32), (FP32, BF16)])
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [((1, 2048), (1, 2048)), ((4, 3, 700), (700,)), ((4, 3, 700), (4, 1, 1)), ((5, 7), (1, 7)), ((1,), (1,))],
)
def test_arithmetic_rounds_as_torch_does(
    function: Function,
    a_dtype: torch.dtype,
    b_dtype: torch.dtype,
    a_shape: Sequence[int],
    b_shape: Sequence[int],
) -> None:
    a, b = drawn(*a_shape, dtype=a_dtype), drawn(*b_shape, dtype=b_dtype, seed=1)
    wanted = ARITHMETIC[function](a, b)
    found = torch.empty_like(wanted)
    run(operands().elementwise(Code.BINARY, function, found, a, b))
    assert same_bytes(found, wanted)


@pytest.mark.parametrize("function", [Function.ADD, Function.MUL, Function.SUB])
def test_arithmetic_holds_for_subnormal_and_infinite_numbers(function: Function) -> None:
    a = every_number()
    b = a[torch.randperm(len(a), generator=torch.Generator().manual_seed(5))]
    wanted = ARITHMETIC[function](a, b)
    found = torch.empty_like(wanted)
    run(operands().elementwise(Code.BINARY, function, found, a, b))
    certain = ~wanted.isnan()
    assert same_bytes(found[certain], wanted[certain])
    assert bool(found[~certain].isnan().all())


def test_operations_follow_strides_and_broadcasts() -> None:
    a = drawn(6, 5, 4, 3, dtype=BF16).permute(2, 0, 3, 1)
    b = drawn(4, 1, 3, 1, dtype=BF16, seed=1)
    found = torch.zeros(4, 6, 3, 10, dtype=BF16)[..., ::2]
    run(operands().elementwise(Code.BINARY, Function.MUL, found, a, b))
    assert same_bytes(found, a * b)


def test_an_operation_may_write_over_its_input() -> None:
    a, b = drawn(3, 600), drawn(3, 600, seed=1)
    wanted = a / b
    run(operands().elementwise(Code.BINARY, Function.DIV, a, a, b))
    assert same_bytes(a, wanted)


@pytest.mark.parametrize("scalar", [1e-6, 0.3, -7, 2**-140])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_scalars_are_rounded_as_torch_rounds_them(scalar: float, dtype: torch.dtype) -> None:
    a = drawn(2, 300, dtype=dtype)
    for function, compute in ARITHMETIC.items():
        found = torch.empty_like(a)
        operation = operands().elementwise(Code.SCALAR, function, found, a)
        operation.scalar = rounded_scalar(function, dtype, scalar)
        run(operation)
        assert same_bytes(found, compute(a, scalar))


@pytest.mark.parametrize(
    ("function", "compute"),
    [(Function.NEGATE, torch.neg), (Function.SQUARE, torch.square), (Function.RSQRT, torch.rsqrt)],
)
def test_functions_of_fp32_numbers_are_torchs(function: Function, compute: Callable[..., torch.Tensor]) -> None:
    a = drawn(5, 333).abs() + 1e-9
    found = torch.empty_like(a)
    run(operands().elementwise(Code.UNARY, function, found, a))
    assert same_bytes(found, compute(a))


@pytest.mark.parametrize(
    ("source", "target"), [(BF16, FP32), (FP32, BF16), (BF16, BF16), (FP32, FP32), (torch.int64, FP32)]
)
def test_conversions_round_as_torch_does(source: torch.dtype, target: torch.dtype) -> None:
    a = (drawn(7, 129) * 1000).to(source).t()
    found = torch.empty(129, 7, dtype=target)
    run(operands().copy(found, a))
    assert same_bytes(found, a.to(target))


def test_whole_numbers_and_complex_numbers_are_copied_bit_for_bit() -> None:
    big = torch.tensor([[2**53 + 1, -5], [7, 2**62]])
    found = torch.empty_like(big).t()
    run(operands().copy(found, big.t()))
    assert torch.equal(found, big.t())
    turned = torch.view_as_complex(drawn(4, 6, 2))
    other = torch.empty_like(turned)
    run(operands().copy(other, turned))
    assert same_bytes(other, turned)


def test_a_conversion_that_is_not_known_is_refused() -> None:
    with pytest.raises(CannotLower):
        operands().copy(torch.empty(3, dtype=torch.bool), drawn(3))


@pytest.mark.parametrize("length", [1, 3, 8, 15, 16, 60, 64, 129, 1408, 2048, 4099])
def test_sums_and_softmax_of_rows_are_torchs_where_an_order_is_found(length: int) -> None:
    x = drawn(9, length, seed=length)
    for code, variant, lanes, wanted in (
        (Code.ROW_SUM, 0, sum_lanes(), x.sum(-1)),
        (Code.ROW_SUM, 1, sum_lanes(), x.mean(-1)),
        (Code.SOFTMAX, 0, softmax_lanes(), torch.softmax(x, -1)),
    ):
        assert lanes is not None or torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2")
        if lanes is None:
            continue
        found = torch.empty_like(wanted)
        operation = Operation(code=code, variant=variant)
        operation.a, operation.out = operands().of(x), operands().of(found)
        operation.numbers[:3] = [len(x), length, lanes]
        run(operation)
        assert same_bytes(found, wanted), code


@pytest.mark.parametrize(("length", "k"), [(4, 2), (8, 2), (8, 8), (60, 4), (64, 6), (128, 8), (256, 8), (512, 8)])
@pytest.mark.parametrize("in_order", [True, False])
def test_the_largest_numbers_are_torchs_also_among_equal_ones(length: int, k: int, in_order: bool) -> None:
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 2 + seed % 9, (2, length), generator=generator).float()
        wanted = torch.topk(x, k, -1, sorted=in_order)
        values, indices = torch.empty(2, k), torch.empty(2, k, dtype=torch.int64)
        operation = Operation(code=Code.TOP_K)
        operation.a, operation.out, operation.b = (operands().of(each) for each in (x, values, indices))
        operation.numbers[:4] = [2, length, k, int(in_order)]
        run(operation)
        assert torch.equal(values, wanted.values)
        assert torch.equal(indices, wanted.indices)


@pytest.mark.parametrize("name", ["silu", "sigmoid", "tanh", "relu", "gelu"])
def test_a_table_is_right_for_vectors_and_for_what_is_left_over(name: str) -> None:
    compute = getattr(torch.ops.aten, name).default
    for numbers in (64, 1408, 1403, 7):
        x = every_number()[:: 65536 // numbers][:numbers].clone()
        table = UnaryTables().table(name, compute, (), {}, len(x))
        if table is None:  # torch's vector code and its scalar code differ
            assert len(x) % 64
            continue
        found = torch.empty_like(x)
        operation = operands().elementwise(Code.TABLE, 0, found, x)
        operation.b = operands().of(table)
        run(operation)
        assert same_bytes(found, compute(x))


def test_a_row_outside_the_table_is_an_error() -> None:
    weight, out = drawn(10, 8, dtype=BF16), torch.empty(8, dtype=BF16)
    for row, inside in ((9, True), (10, False), (-1, False)):
        index = torch.tensor([row])
        operation = operands().gather(out, weight, index)
        if inside:
            run(operation)
            assert same_bytes(out, weight[9])
        else:
            with pytest.raises(InternalError):
                run(operation)


@pytest.mark.parametrize(
    "operation",
    [
        Operation(code=99),
        Operation(code=Code.BINARY, variant=77, sizes=(1, 1, 1, 1)),
        Operation(code=Code.TABLE, a=Operand(type=Type.FP32)),
        Operation(code=Code.COPY, a=Operand(type=Type.BYTE), out=Operand(type=Type.BF16)),
    ],
)
def test_an_operation_that_nobody_knows_is_an_error(operation: Operation) -> None:
    room = torch.zeros(8)
    for operand in (operation.out, operation.a, operation.b):
        operand.offset = room.data_ptr()
    with pytest.raises(InternalError):
        run(operation)


def test_rows_are_gathered_from_a_table_with_room_between_rows() -> None:
    table, index = drawn(10, 12, dtype=BF16)[:, :8], torch.tensor([9, 0, 9, 3])
    out = torch.empty(4, 8, dtype=BF16)
    run(operands().gather(out, table, index))
    assert same_bytes(out, table[index])


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_rows_are_added_as_torch_adds_them(dtype: torch.dtype) -> None:
    out, rows, places = drawn(4, 300, dtype=dtype), drawn(6, 320, dtype=dtype)[:, :300], [1, 0, 1, 3, 1, 0]
    wanted = out.clone()
    for row, place in zip(rows, places, strict=True):
        wanted[place] += row
    index = torch.tensor(places)
    operation = Operation(code=Code.ADD_ROWS)
    operation.a, operation.b = operands().of(rows, (320, 0, 0, 0)), operands().of(index)
    operation.out = operands().of(out, (300, 0, 0, 0))
    operation.numbers[:3] = [4, 300, 6]
    run(operation)
    assert same_bytes(out, wanted)
    index[5] = 4
    with pytest.raises(InternalError):
        run(operation)


def test_keys_and_values_go_to_the_token_slots_of_the_frame() -> None:
    block, rows = torch.zeros(3, 8, 5, dtype=BF16), drawn(2, 5, 3, dtype=BF16).transpose(1, 2)
    operation = Operation(code=Code.KV_WRITE, sizes=(2, 3, 5, 0))
    operation.a, operation.out = operands().of(rows, (15, 1, 3, 0)), operands().of(block, (0, 40, 1, 0))
    frame = new_frame(1)
    slots = torch.tensor([6, 2])
    frame.slots = slots.data_ptr()
    NativeSegment([operation]).run(ctypes.addressof(frame))
    assert same_bytes(block[:, 6], rows[0])
    assert same_bytes(block[:, 2], rows[1])
    assert not block[:, [0, 1, 3, 4, 5, 7]].any()


def test_an_attention_without_an_exponential_is_an_error() -> None:
    block = torch.zeros(1, 4, 32, dtype=BF16)
    scores = torch.zeros(64)
    operation = Operation(code=Code.ATTEND)
    operation.a = operation.b = operation.out = operands().of(block)
    operation.numbers[:] = [0, 1, 1, 32, 4, 0, 0, 0, block.data_ptr(), 32, 0, 16]
    entries, runs = torch.tensor([0, 0, 1, 4]), torch.tensor([0, 4])
    frame = new_frame(1)
    frame.contexts = (Context * 1)(Context(entries.data_ptr(), runs.data_ptr(), 1))
    frame.scores, frame.weights = scores.data_ptr(), scores[32:].data_ptr()
    with pytest.raises(InternalError):
        NativeSegment([operation]).run(ctypes.addressof(frame))
