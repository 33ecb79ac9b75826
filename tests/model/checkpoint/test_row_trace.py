"""The bytes that the tracer finds are those that transformers' operations make, whatever they do to the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    ErnieFuseAndSplitTextVisionExperts,
    Interleave,
    MergeModulelist,
    Split,
    SplitModulelist,
    Transpose,
    WeightConverter,
)

from tests.model.hub import bytes_of, read
from zipmoe.errors import BudgetInfeasible, UnsupportedModel
from zipmoe.model.checkpoint import conversion
from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.checkpoint.conversion import ConvertedPiece
from zipmoe.model.checkpoint.key_plan import ConversionGroup
from zipmoe.model.checkpoint.row_trace import RowTracer
from zipmoe.model.checkpoint.shard import TensorEntry, row_major
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.checkpoint.transposed_piece import TransposedPiece
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange, Piece

Shape = tuple[int, ...]
E, R, C = 5, 12, 8  # experts, rows and columns of the model's matrix


class AddOne(ConversionOps):
    """An operation on values."""

    def convert(self, input_dict: Any, source_patterns: Any, target_patterns: Any, **_: Any) -> Any:
        (tensors,) = input_dict.values()
        return {target_patterns[0]: (tensors[0] if isinstance(tensors, list) else tensors) + 1}


class Widen(AddOne):
    def convert(self, input_dict: Any, source_patterns: Any, target_patterns: Any, **_: Any) -> Any:
        (tensors,) = input_dict.values()
        return {target_patterns[0]: tensors[0].float()}


@dataclass(frozen=True)
class ModelOfShapes:
    """So much of a skeleton as the tracer and the operations ask for."""

    shapes: Mapping[str, Shape]

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        return {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in self.shapes.items()}

    @cached_property
    def model(self) -> Any:
        return SimpleNamespace(get_parameter=lambda name: self.state[name], config=None)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.state[name].dtype


@dataclass
class Case:
    """A group of tensors on disk, and its conversion."""

    group: ConversionGroup
    skeleton: Skeleton

    def matrices(self, parameter: str, rows: int) -> list[tuple[Piece, ...]]:
        return RowTracer(self.skeleton).trace_matrices(self.group, parameter, rows, "layer")

    def expected(self, parameter: str) -> torch.Tensor:
        """What stock loads: every tensor cast, then the operations."""
        tensors = {
            entry.name: partial(lambda entry: _tensor(entry).to(torch.bfloat16), entry)
            for _, entry in self.group.sources
        }
        return self.group.convert(tensors, self.skeleton)[parameter]


def _tensor(entry: TensorEntry) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(read((entry.byte_range,))), dtype=DTYPES[entry.dtype])
    return raw.as_strided(entry.shape, entry.steps)


def make_case(
    folder: Path,
    sources: Mapping[str, Sequence[Shape]],
    targets: Mapping[str, Shape],
    operations: list[ConversionOps],
    dtype: str = "BF16",
) -> Case:
    """Writes tensors of these shapes, by source pattern, one behind the other."""
    random = torch.Generator().manual_seed(1)
    path = folder / "shard"
    content = bytearray(b"header")
    group = ConversionGroup(next(iter(targets)), WeightConverter(list(sources), list(targets), operations))
    number = count()
    for pattern, shapes in sources.items():
        for shape in shapes:
            tensor = torch.randn(shape, generator=random, dtype=torch.float64).to(DTYPES[dtype])
            entry = TensorEntry(
                f"{pattern}{next(number)}", dtype, shape, path, len(content), tensor.nbytes, row_major(shape)
            )
            content += bytes_of(tensor)
            group.sources.append((pattern, entry))
    path.write_bytes(content)
    return Case(group, ModelOfShapes(targets))  # type: ignore[arg-type]


P: Shape = (E, R, C)
T: Shape = (E, C, R)
MERGE = MergeModulelist(dim=0)
CASES: dict[str, tuple[type, dict[str, list[Shape]], dict[str, Shape], list[ConversionOps], int]] = {
    "merged": (ByteRange, {"a": [(R, C)] * E}, {"p": P}, [MERGE], R),
    "gate and up": (
        ByteRange, {"g": [(R // 2, C)] * E, "u": [(R // 2, C)] * E}, {"p": P}, [MERGE, Concatenate(dim=1)], R,
    ),
    "rows interleaved": (ByteRange, {"a": [P]}, {"p": P}, [Interleave(dim=1)], R),
    "two targets": (
        ByteRange,
        {"g": [(R // 2, C)] * (2 * E), "u": [(R // 2, C)] * (2 * E)},
        {"text": P, "vision": P},
        [ErnieFuseAndSplitTextVisionExperts(stack_dim=0, concat_dim=1)],
        R,
    ),
    "two targets of different widths": (
        ByteRange,
        {"d": [(R, C)] * E + [(R, C - 2)] * E},
        {"text": P, "vision": (E, R, C - 2)},
        [ErnieFuseAndSplitTextVisionExperts(stack_dim=0, concat_dim=1)],
        R,
    ),
    "one tensor for two parameters": (ByteRange, {"a": [(E, 2 * R, C)]}, {"p": P, "q": P}, [Chunk(dim=1)], R),
    "split by the sizes of the parameters": (
        ByteRange, {"a": [(E, R + 4, C)]}, {"p": P, "q": (E, 4, C)}, [Split(dim=1)], 4,
    ),
    "one matrix below the other": (ByteRange, {"a": [(E * R // 2, C)] * 2}, {"p": (E * R, C)}, [Concatenate()], R),
    "transposed": (TransposedPiece, {"a": [T]}, {"p": P}, [Transpose(1, 2)], R),
    "transposed where the shapes differ": (
        TransposedPiece, {"a": [T]}, {"p": P}, [Transpose(1, 2, check_dims=True)], R,
    ),
    "left alone where the shapes are equal": (ByteRange, {"a": [P]}, {"p": P}, [Transpose(1, 2, check_dims=True)], R),
    "square, and so left alone": (
        ByteRange, {"a": [(E, C, C)]}, {"p": (E, C, C)}, [Transpose(1, 2, check_dims=True)], C,
    ),
    "square and transposed": (TransposedPiece, {"a": [(E, C, C)]}, {"p": (E, C, C)}, [Transpose(1, 2)], C),
    "as few columns as a stand-in has numbers": (
        ConvertedPiece, {"a": [(E, R, 4)]}, {"p": (E, 4, R)}, [Transpose(1, 2, check_dims=True)], 4,
    ),
    "merged and transposed": (TransposedPiece, {"a": [(C, R)] * E}, {"p": P}, [MERGE, Transpose(1, 2)], R),
    "gate and up transposed": (
        TransposedPiece,
        {"g": [(C, R // 2)] * E, "u": [(C, R // 2)] * E},
        {"p": P},
        [MERGE, Concatenate(dim=2), Transpose(1, 2)],
        R,
    ),
    "a transposed matrix for two parameters": (
        TransposedPiece, {"a": [(E, C, 2 * R)]}, {"p": P, "q": P}, [Transpose(1, 2), Chunk(dim=1)], R,
    ),
    "experts transposed to the front": (ByteRange, {"a": [(R, E, C)]}, {"p": P}, [Transpose(0, 1)], R),
    "experts last": (ConvertedPiece, {"a": [(R, C, E)]}, {"p": P}, [Transpose(1, 2), Transpose(0, 1)], R),
    "columns interleaved": (ConvertedPiece, {"a": [P]}, {"p": P}, [Interleave(dim=2)], R),
    "columns that become rows one by one": (
        ConvertedPiece, {"a": [T]}, {"p": P}, [Interleave(dim=2), Transpose(1, 2)], R,
    ),
    "columns from two tensors": (
        ConvertedPiece, {"a": [(E, R, C // 2)], "b": [(E, R, C // 2)]}, {"p": P}, [Concatenate(dim=2)], R,
    ),
    "values": (ConvertedPiece, {"a": [P]}, {"p": P}, [AddOne()], R),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("name", CASES)
def test_the_bytes_are_those_of_the_operations(name: str, dtype: str, tmp_path: Path) -> None:
    kind, sources, targets, operations, rows = CASES[name]
    case = make_case(tmp_path, sources, targets, operations, dtype)
    for parameter in targets:
        found = case.matrices(parameter, rows)
        expected = case.expected(parameter).reshape(-1, rows, targets[parameter][-1])
        assert [read(pieces) for pieces in found] == [bytes_of(matrix) for matrix in expected]
        kinds = {type(piece) for pieces in found for piece in pieces}
        assert kinds == {CastPiece if (kind, dtype) == (ByteRange, "F32") else kind}
        with closing(PieceReader()) as reader:
            reader.check(piece for pieces in found for piece in pieces)


@pytest.mark.parametrize("name", ["transposed", "values", "merged"])
def test_any_part_of_a_matrix_can_be_read(name: str, tmp_path: Path) -> None:
    _, sources, targets, operations, rows = CASES[name]
    pieces = make_case(tmp_path, sources, targets, operations, "F32").matrices("p", rows)[3]
    whole = read(pieces)
    with closing(PieceReader()) as reader:
        for begin, end in [(0, 1), (1, 3), (7, 100), (len(whole) - 1, len(whole))]:
            part = bytearray(end - begin)
            reader.read(pieces, memoryview(part), skip=begin)
            assert bytes(part) == whole[begin:end]


def test_a_large_matrix_is_transposed_block_by_block(tmp_path: Path) -> None:
    # more than one read of rows, and blocks whose last is smaller, in both directions
    rows, cols = 1500, 777
    case = make_case(tmp_path, {"a": [(2, rows, cols)]}, {"p": (2, cols, rows)}, [Transpose(1, 2)], "F32")
    found = case.matrices("p", cols)
    assert [read(pieces) for pieces in found] == [bytes_of(matrix) for matrix in case.expected("p")]


def test_a_group_is_converted_once_for_all_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    run = conversion.convert
    monkeypatch.setattr(
        conversion, "convert", lambda group, *others: (converted.append(group.target), run(group, *others))[1]
    )
    cases = [make_case(tmp_path, {"a": [P]}, {name: P}, [AddOne()]) for name in "pqr"]
    tracer = RowTracer(ModelOfShapes(dict.fromkeys("pqr", P)))  # type: ignore[arg-type]
    found = {name: tracer.trace_matrices(case.group, name, R, name) for name, case in zip("pqr", cases, strict=True)}
    for name in "ppqqpr":
        for pieces in found[name]:
            read(pieces)
    assert converted == ["p", "q", "r"]  # two layers stay in memory
    read(found["q"][0])
    assert converted == ["p", "q", "r", "q"]


def test_a_conversion_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    huge: Shape = (1 << 20, 1 << 12, 1 << 12)
    group = make_case(tmp_path, {"a": [P]}, {"p": P}, [AddOne()]).group
    entry = group.sources[0][1]
    group.sources[0] = ("a", TensorEntry("a", "BF16", huge, entry.path, 0, 2 << 44, row_major(huge)))
    with pytest.raises(BudgetInfeasible, match=r"the conversion of p by AddOne needs \d+ bytes"):
        RowTracer(ModelOfShapes({"p": huge})).trace_matrices(group, "p", 1 << 12, "layer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sources", "operations", "message"),
    [
        ({"a": [(R, C)] * (E + 1)}, [MERGE], r"be bf16 of shape \[5, 12, 8\], 6 .* make bf16 of shape \[6, 12"),
        ({"a": [(R, C), (R, C + 1)]}, [MERGE], "cannot be made of 2 tensors like 'a0' by MergeModulelist.*: stack"),
        ({"a": [P]}, [Widen()], r"make torch\.float32 of shape"),
        ({"a": [P], "b": [P]}, [MERGE], "MergeModulelist.*gives a, b, but not p"),
    ],
)  # fmt: skip
def test_operations_that_give_another_parameter_are_refused(
    sources: dict[str, list[Shape]], operations: list[ConversionOps], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        make_case(tmp_path, sources, {"p": P}, operations).matrices("p", R)


def test_splitting_a_stack_gives_each_module_its_matrix(tmp_path: Path) -> None:
    case = make_case(tmp_path, {"a": [P]}, {"m.*.w": (R, C)}, [SplitModulelist(dim=0)])
    case.skeleton = ModelOfShapes({f"m.{index}.w": (R, C) for index in range(E)} | {"m.*.w": (R, C)})  # type: ignore[assignment]
    for index in range(E):
        ((piece,),) = case.matrices(f"m.{index}.w", R)
        assert isinstance(piece, ByteRange)
        assert read((piece,)) == bytes_of(case.expected(f"m.{index}.w"))
