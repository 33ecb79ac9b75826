"""Hostile bytes: every in-memory form refuses them where its twin does, and nothing outside a buffer is touched."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms.cases import KINDS, FormCase, every_form, memory_before_a_page, plain, same
from tests.kernels.test_linear import compressed
from zipmoe.errors import CorruptData
from zipmoe.kernels.linear import CascadePart, LinearShape


@every_form
def test_a_corrupt_chunk_is_an_error(case: FormCase) -> None:
    weight = KINDS["gaussian"](np.random.default_rng(1), 64, 128)
    first, second = compressed(weight, [32, 32], block_rows=16)
    out = bytearray(case.form.bound(64, 128))
    rng = random.Random(3)
    for _ in range(200):
        chunk = bytearray(second.e_chunk)
        chunk[rng.randrange(len(chunk))] ^= 1 << rng.randrange(8)
        try:
            parts = [first, CascadePart(32, chunk, second.sm)]
            used = case.form.from_cascade(parts, out, 64, 128, using=case.using)
        except CorruptData:
            continue
        assert case.recovered(bytes(out[:used]), 64, 128).shape == (64, 128)
    truncated = CascadePart(32, bytes(second.e_chunk)[:-1], second.sm)
    with pytest.raises(CorruptData, match="do not hold exactly 64 rows of 128 exponents"):
        case.form.from_cascade([first, truncated], out, 64, 128, using=case.using)


@every_form
@pytest.mark.parametrize("kind", ["gaussian", "with_outliers", "pruned_row_scaled", "random_bits"])
@pytest.mark.parametrize(("n", "k"), [(33, 70), (8, 1026)])
def test_a_mutation_is_refused_exactly_where_the_twin_refuses_it(case: FormCase, kind: str, n: int, k: int) -> None:
    rng = random.Random(f"{kind} {n}")
    weight = KINDS[kind](np.random.default_rng(1), n, k)
    x = linear_twin.cancelling(6, n, k)[0]
    matrix = case.made(weight)
    refused = 0
    for turn in range(250):
        mutated = bytearray(matrix)
        # Most of what is believed stands in front of the weights; exceptions may stand behind them.
        for _ in range(rng.randint(1, 3)):
            reach = min(rng.choice((64, 192, 256, len(mutated))), len(mutated))
            at = rng.randrange(reach) - (len(mutated) if turn % 4 == 3 else 0)
            mutated[at % len(mutated)] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if turn % 5 == 0:
            del mutated[rng.randrange(len(mutated)) :]
        try:
            wanted = case.twin.decode(bytes(mutated), n, k)
        except case.twin.Refusal:
            refused += 1
            with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
                case.recovered(bytes(mutated), n, k)
            for m in (1, 3, 6):
                with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
                    case.compute(x[:m], bytes(mutated), n, case.order, threads=1 + turn % 2)
            continue
        assert (case.recovered(bytes(mutated), n, k) == wanted).all()
        for m in (1, 6):
            assert same(case.compute(x[:m], bytes(mutated), n, case.order), plain(x[:m], wanted, case.order))
    assert 20 < refused < 250


@every_form
def test_a_matrix_of_other_sizes_is_corrupt(case: FormCase) -> None:
    matrix = case.made(KINDS["gaussian"](np.random.default_rng(1), 40, 130))
    for n, k in ((39, 130), (40, 129), (40, 131), (72, 130)):
        with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
            case.form.to_bf16(matrix, bytearray(2 * n * k), n, k, using=case.using)
        shape = LinearShape(1, n, k)
        with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
            case.form.linear(bytes(2 * k), matrix, bytearray(2 * n), shape, case.order, using=case.using)
    assert case.recovered(matrix + bytes(100), 40, 130).shape == (40, 130), "bytes behind the matrix are another's"


@every_form
@pytest.mark.parametrize("kind", ["gaussian", "with_outliers", "random_bits"])
def test_no_byte_behind_a_buffer_is_touched(case: FormCase, kind: str) -> None:
    form, using = case.form, case.using
    for m, n, k in ((1, 5, 64), (2, 17, 130), (5, 3, 31), (20, 33, 1027), (3, 4, 256)):
        weight = KINDS[kind](np.random.default_rng(k), n, k)
        x = linear_twin.cancelling(m, n, k)[0]
        bias = linear_twin.round_to_bf16(np.ones(n, np.float32))
        matrix = case.made(weight)
        wanted = plain(x, weight, case.order, bias)
        out = np.zeros((m, n), np.uint16)
        with memory_before_a_page() as page_end:
            for index, buffer in enumerate((x, matrix, bias, out)):
                data = bytes(buffer)
                at_end = page_end[len(page_end) - len(data) :]
                at_end[:] = data
                buffers = [x, matrix, bias, out]
                buffers[index] = at_end  # type: ignore[call-overload]
                inputs, stored, added, outputs = buffers
                shape = LinearShape(m, n, k)
                form.linear(inputs, stored, outputs, shape, case.order, bias=added, using=using)  # type: ignore[arg-type]
                assert same(np.frombuffer(outputs, np.uint16).reshape(m, n), wanted)
            (part,) = compressed(weight, [n], block_rows=8)
            room = page_end[len(page_end) - form.bound(n, k) :]
            assert room[: form.from_bf16(weight, room, n, k, using=using)] == matrix
            assert room[: form.from_cascade([part], room, n, k, using=using)] == matrix
            for source in ("weight", "sm", "e_chunk"):
                data = weight.tobytes() if source == "weight" else bytes(getattr(part, source))
                at_end = page_end[len(page_end) - len(data) :]
                at_end[:] = data
                made = bytearray(form.bound(n, k))
                if source == "weight":
                    used = form.from_bf16(at_end, made, n, k, using=using)
                else:
                    chunk, sm = (at_end if name == source else getattr(part, name) for name in ("e_chunk", "sm"))
                    used = form.from_cascade([CascadePart(n, chunk, sm)], made, n, k, using=using)
                assert made[:used] == matrix
            rows = page_end[len(page_end) - weight.nbytes :]
            form.to_bf16(matrix, rows, n, k, using=using)
            assert rows == weight.tobytes()
