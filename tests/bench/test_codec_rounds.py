"""What a measurement consists of; how long anything took is nobody's business here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zipmoe.bench.codec_rounds import CodecPlan, CodecRow, measure_codecs
from zipmoe.bench.synthetic import synthesise
from zipmoe.codec.raw import RawCodec
from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer

SAMPLE = synthesise("gaussian", 2, 40, 72)


class Lossy(RawCodec):
    """Loses one bit of one weight in a hundred thousand."""

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        super().recover(e_chunk, sm, out)
        out[-1] ^= 1


def measure(plan: CodecPlan, **codecs: RawCodec) -> list[CodecRow]:
    chosen = codecs or {name: create_codec(name) for name in codec_names()}
    return measure_codecs(SAMPLE, chosen, plan, lambda _: None)


def test_every_codec_stands_beside_memcpy_and_zstd_for_each_number_of_threads() -> None:
    rows = measure(CodecPlan([1, 2], 2, 4))
    names = ["memcpy", "native-zstd-1", *codec_names()]
    assert [(row.codec, row.threads) for row in rows] == [(name, threads) for threads in (1, 2) for name in names]
    assert all(row.exact and row.data == "gaussian" and row.limit == SAMPLE.limit for row in rows)
    assert all(min(row.recover_gbps, row.encode_gbps, row.recover_wall_gbps, row.encode_wall_gbps) > 0 for row in rows)


def test_speeds_are_told_as_multiples_of_both_rivals() -> None:
    memcpy, zstd1, *_, last = measure(CodecPlan([1], 3, 4))
    assert memcpy.vs_memcpy == zstd1.vs_zstd1 == 1
    assert last.vs_memcpy == pytest.approx(last.recover_gbps / memcpy.recover_gbps)
    assert last.vs_zstd1 == pytest.approx(last.recover_gbps / zstd1.recover_gbps)


def test_the_ratio_counts_what_a_store_would_hold() -> None:
    (row,) = (row for row in measure(CodecPlan([1], 1, 3)) if row.codec == "zstd")
    stored = 0
    for matrix in SAMPLE.matrices:
        sm, e = matrix.planes
        stored += sm.nbytes + sum(len(create_codec("zstd").compress(e[part])) for part in matrix.e_chunks(3))
    assert row.ratio == stored / SAMPLE.nbytes


def test_a_codec_that_loses_a_bit_is_found_out() -> None:
    rows = measure(CodecPlan([1], 1, 1), lossy=Lossy(), raw=RawCodec())
    assert {row.codec: row.exact for row in rows if row.codec in ("lossy", "raw")} == {"lossy": False, "raw": True}


def test_a_plan_without_rounds_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="rounds"):
        measure(CodecPlan([1], 0, 1))
