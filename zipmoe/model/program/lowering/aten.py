"""Lowers ATen operations to native operations. What has no entry in the table here is left to torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from zipmoe.kernels.program import Code, Function, Operation
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.torch_orders import softmax_lanes, sum_lanes

Lower = Callable[[TapeEntry, Operands], list[Operation]]

_NUMBERS = (torch.bfloat16, torch.float32)
_FUNCTIONS = {"add": Function.ADD, "mul": Function.MUL, "sub": Function.SUB, "div": Function.DIV}


def _plain_name(entry: TapeEntry) -> str:
    return entry.name.split(".")[1].rstrip("_")


def _arithmetic(entry: TapeEntry, operands: Operands) -> list[Operation]:
    """A + b, a * b, a - b, a / b; b is a tensor or a number."""
    a, b, out = entry.args[0], entry.args[1], entry.outputs[0]
    function = _FUNCTIONS[_plain_name(entry)]
    if len(entry.args) > 2 or any(value != 1 for value in entry.kwargs.values()) or not isinstance(a, torch.Tensor):
        raise CannotLower("further arguments")
    if isinstance(b, torch.Tensor):
        if out.dtype is torch.complex64 and a.dtype is b.dtype is torch.complex64 and function is Function.MUL:
            return [operands.elementwise(Code.COMPLEX_MUL, 0, out, a, b)]
        _require_numbers(out, a, b)
        if out.dtype is torch.bfloat16 and not a.dtype is b.dtype is torch.bfloat16:
            raise CannotLower("mixed dtypes")
        return [operands.elementwise(Code.BINARY, function, out, a, b)]
    if isinstance(b, bool) or not isinstance(b, int | float) or out.dtype is not a.dtype:
        raise CannotLower("a scalar of another kind")
    _require_numbers(out, a)
    operation = operands.elementwise(Code.SCALAR, function, out, a)
    operation.scalar = rounded_scalar(function, out.dtype, b)
    return [operation]


def rounded_scalar(function: Function, dtype: torch.dtype, scalar: float) -> float:
    """Returns a scalar as torch uses it: rounded to bf16 in sums and differences of bf16 numbers, else to fp32."""
    summand = function in (Function.ADD, Function.SUB)
    return torch.tensor(scalar, dtype=dtype if summand else torch.float32).item()


def _require_numbers(*tensors: torch.Tensor) -> None:
    if any(each.dtype not in _NUMBERS for each in tensors):
        raise CannotLower(f"{', '.join(str(each.dtype) for each in tensors)} numbers")


def _function(entry: TapeEntry, operands: Operands) -> list[Operation]:
    """A function of one number: by a table in bf16, by arithmetic in fp32 where that is exact."""
    x, out = entry.args[0], entry.outputs[0]
    if len(entry.inputs) > 1:
        raise CannotLower("further tensors")
    if x.dtype is out.dtype is torch.bfloat16:
        name = entry.name.replace("_.", ".")
        call = entry.call if not entry.mutates else _on_copy(entry.call)
        table = operands.tables.table(name, call, entry.args[1:], entry.kwargs, x.numel() if x.is_contiguous() else 1)
        if table is None:
            raise CannotLower("torch's vector code and its scalar code differ")
        operation = operands.elementwise(Code.TABLE, 0, out, x)
        operation.b = operands.of(table)
        return [operation]
    exact = {"neg": Function.NEGATE, "rsqrt": Function.RSQRT}.get(_plain_name(entry))
    if _plain_name(entry) == "pow" and entry.args[1] == 2:
        exact = Function.SQUARE
    if exact is None or not x.dtype is out.dtype is torch.float32:
        raise CannotLower(f"{x.dtype} numbers")
    return [operands.elementwise(Code.UNARY, exact, out, x)]


def _on_copy(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, *others, **settings: call(x.clone(), *others, **settings)


def _copy(entry: TapeEntry, operands: Operands) -> list[Operation]:
    source = entry.args[1] if _plain_name(entry) == "copy" else entry.args[0]
    return [operands.copy(entry.outputs[0], source)]


def _cat(entry: TapeEntry, operands: Operands) -> list[Operation]:
    out, parts = entry.outputs[0], entry.args[0]
    dim = entry.args[1] if len(entry.args) > 1 else entry.kwargs.get("dim", 0)
    operations, begin = [], 0
    for part in parts:
        if part.dim() != out.dim() or part.dtype is not out.dtype:
            raise CannotLower("parts of several kinds")
        operations.append(operands.copy(out.narrow(dim, begin, part.shape[dim]), part))
        begin += part.shape[dim]
    return operations


def _stack(entry: TapeEntry, operands: Operands) -> list[Operation]:
    out, parts = entry.outputs[0], entry.args[0]
    dim = entry.args[1] if len(entry.args) > 1 else entry.kwargs.get("dim", 0)
    return [operands.copy(out.select(dim, index), part) for index, part in enumerate(parts)]


def _last_dim(x: torch.Tensor, dims: object) -> None:
    found = list(dims) if isinstance(dims, list | tuple) else [dims]
    if found not in ([-1], [x.dim() - 1]) or not x.is_contiguous() or x.dtype is not torch.float32:
        raise CannotLower("rows that are not contiguous fp32 numbers")


def _row_sum(entry: TapeEntry, operands: Operands) -> list[Operation]:
    x, lanes = entry.args[0], sum_lanes()
    _last_dim(x, entry.args[1])
    if lanes is None or entry.outputs[0].dtype is not torch.float32:
        raise CannotLower("an order of sums that is not known")
    operation = Operation(code=Code.ROW_SUM, variant=int(_plain_name(entry) == "mean"))
    operation.a, operation.out = operands.of(x), operands.of(entry.outputs[0])
    operation.numbers[:3] = [x.numel() // x.shape[-1], x.shape[-1], lanes]
    return [operation]


def _softmax(entry: TapeEntry, operands: Operands) -> list[Operation]:
    x, lanes = entry.args[0], softmax_lanes()
    _last_dim(x, entry.args[1])
    if lanes is None:
        raise CannotLower("an order of sums that is not known")
    operation = Operation(code=Code.SOFTMAX)
    operation.a, operation.out = operands.of(x), operands.of(entry.outputs[0])
    operation.numbers[:3] = [x.numel() // x.shape[-1], x.shape[-1], lanes]
    return [operation]


def _top_k(entry: TapeEntry, operands: Operands) -> list[Operation]:
    x, k, *given = entry.args
    dim, largest, in_order = given + [-1, True, True][len(given) :]
    _last_dim(x, dim)
    if not largest or entry.kwargs:
        raise CannotLower("the smallest numbers")
    operation = Operation(code=Code.TOP_K)
    values, indices = entry.outputs
    operation.a, operation.out, operation.b = operands.of(x), operands.of(values), operands.of(indices)
    operation.numbers[:4] = [x.numel() // x.shape[-1], x.shape[-1], k, int(in_order)]
    return [operation]


def _embedding(entry: TapeEntry, operands: Operands) -> list[Operation]:
    weight, ids, out = entry.args[0], entry.args[1], entry.outputs[0]
    if not ids.is_contiguous() or not weight.is_contiguous() or weight.dtype is not out.dtype:
        raise CannotLower("rows that are not contiguous")
    return [operands.gather(out, weight, ids)]


_FUNCTIONS_OF_ONE = (
    "silu", "sigmoid", "tanh", "gelu", "relu", "exp", "log", "softplus", "neg", "rsqrt", "sqrt", "reciprocal", "abs",
    "pow", "square", "clamp", "hardtanh", "leaky_relu", "elu", "mish", "hardswish",
)  # fmt: skip

TABLE: Mapping[str, Lower] = {
    **dict.fromkeys(("add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor"), _arithmetic),
    **dict.fromkeys(("add_.Tensor", "mul_.Tensor", "sub_.Tensor", "div_.Tensor"), _arithmetic),
    **dict.fromkeys(("add.Scalar", "mul.Scalar", "sub.Scalar", "div.Scalar"), _arithmetic),
    **dict.fromkeys(("_to_copy.default", "clone.default", "copy_.default"), _copy),
    "cat.default": _cat,
    "stack.default": _stack,
    "mean.dim": _row_sum,
    "sum.dim_IntList": _row_sum,
    "_softmax.default": _softmax,
    "topk.default": _top_k,
    "embedding.default": _embedding,
}


def lower_aten(entry: TapeEntry, operands: Operands) -> list[Operation]:
    """Lowers an ATen operation.

    Raises:
        CannotLower: torch has to compute it.
    """
    name = entry.name.removeprefix("aten.")
    if entry.value is not None:
        return [operands.copy(entry.outputs[0], entry.value)]
    if name in TABLE:
        return TABLE[name](entry, operands)
    if _plain_name(entry) in _FUNCTIONS_OF_ONE and isinstance(entry.args[0], torch.Tensor):
        return _function(entry, operands)
    raise CannotLower("no native operation")
