"""The bytes of in-memory forms against their twins: every bit kept, sizes as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms.cases import CANARY, KINDS, FormCase, every_form
from tests.kernels.test_linear import compressed
from zipmoe.errors import InvalidRequest, ResourceExhausted
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE

GOLDEN = Path(__file__).parents[2] / "golden"
SHAPES = [
    *((32, 512), (64, 1408), (100, 700), (33, 7), (1, 1), (45, 1023)),
    *((96, 768), (8, 2048), (33, 1027), (3, 128), (4, 192)),
]


@every_form
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_bytes_are_those_of_the_twin_and_give_every_bit_back(case: FormCase, kind: str, n: int, k: int) -> None:
    weight = KINDS[kind](np.random.default_rng([n, k]), n, k)
    matrix = case.made(weight)
    assert matrix == case.twin.encode(weight)
    assert (case.recovered(matrix, n, k) == weight).all()
    assert (case.twin.decode(matrix, n, k) == weight).all()


@every_form
@pytest.mark.parametrize("k", [64, 1024, 2047])
def test_all_patterns_of_bf16_come_back(case: FormCase, k: int) -> None:
    patterns = np.random.default_rng(k).permutation(1 << 16).astype(np.uint16)
    for row in (patterns, np.sort(patterns)):
        weight = np.resize(row, (-(-len(row) // k), k))
        assert (case.recovered(case.made(weight), *weight.shape) == weight).all()


@every_form
def test_chunks_of_a_store_become_the_same_bytes(case: FormCase) -> None:
    for counts, k, block_rows, cols in (
        ([16, 48], 512, 16, None),
        ([7, 0, 30, 1, 62], 192, 16, None),
        ([20, 25], 100, 8, None),
        ([56, 44], 48, 8, 2048),
    ):
        weight = KINDS["row_scaled"](np.random.default_rng(k), sum(counts), k)
        parts = compressed(weight, counts, block_rows=block_rows, cols=cols)
        out = bytearray(case.form.bound(*weight.shape))
        used = case.form.from_cascade(parts, out, *weight.shape, using=case.using)
        assert out[:used] == case.made(weight)


@every_form
def test_every_kind_of_cascade_block_is_converted(case: FormCase) -> None:
    weight = linear_twin.of_every_kind(192)
    out = bytearray(case.form.bound(*weight.shape))
    parts = compressed(weight, [len(weight)], block_rows=16)
    used = case.form.from_cascade(parts, out, *weight.shape, using=case.using)
    assert out[:used] == case.made(weight)


@every_form
def test_bytes_written_by_version_1_are_read_and_written_again(case: FormCase) -> None:
    folder = GOLDEN / f"{case.form.name}-v1"
    weight = np.frombuffer((folder / "weight.bf16").read_bytes(), np.uint16).reshape(33, 1026)
    matrix = (folder / "matrix").read_bytes()
    assert (case.recovered(matrix, 33, 1026) == weight).all()
    assert (case.twin.decode(matrix, 33, 1026) == weight).all()
    assert case.made(weight) == matrix


@every_form
@pytest.mark.parametrize("kind", ["gaussian", "with_outliers", "random_bits"])
def test_a_matrix_takes_the_bytes_that_it_needs_and_never_one_more(case: FormCase, kind: str) -> None:
    weight = KINDS[kind](np.random.default_rng(2), 40, 1100)
    matrix = case.made(weight)
    memory = np.full(len(matrix) + 64, CANARY, np.uint8)
    (part,) = compressed(weight, [40], block_rows=8)
    for room in (*range(len(matrix)), len(matrix))[-1::-999]:
        for make in (
            lambda out: case.form.from_bf16(weight, out, 40, 1100, using=case.using),
            lambda out: case.form.from_cascade([part], out, 40, 1100, using=case.using),
        ):
            memory[:] = CANARY
            if room == len(matrix):
                assert make(memory[:room]) == room
                assert memory[:room].tobytes() == matrix
            else:
                with pytest.raises(ResourceExhausted, match="40 rows of 1100 weights needs more bytes"):
                    make(memory[:room])
            assert (memory[room:] == CANARY).all()


@pytest.mark.parametrize("form", [TILE, NIBBLE], ids=str)
@pytest.mark.parametrize(("n", "k"), [(-1, 4), (4, -1), (1 << 31, 1), (1 << 20, 1 << 20)])
def test_sizes_out_of_range_are_refused(form: MemoryForm, n: int, k: int) -> None:
    for call in (lambda: form.bound(n, k), lambda: form.from_bf16(b"", bytearray(), n, k)):
        with pytest.raises(InvalidRequest, match=f"no {form} for {n} rows of {k} weights"):
            call()
