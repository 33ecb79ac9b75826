import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import InvalidRequest
from zipmoe.store.format.layout import (
    ALIGNMENT_BYTES,
    CHUNK_ALIGNMENT_BYTES,
    TAIL_PADDING_BYTES,
    ExpertSpec,
    PackedTensorEntry,
    TensorSpec,
    e_chunk_rows,
    lay_out,
)
from zipmoe.types import Part


@given(rows=st.integers(1, 5000), chunk_count=st.integers(1, 64))
def test_e_chunks_hold_whole_blocks_of_8_rows_but_the_last_one(rows: int, chunk_count: int) -> None:
    counts = e_chunk_rows(rows, chunk_count)
    assert sum(counts) == rows
    assert len(counts) == min(chunk_count, -(-rows // 8))
    assert all(count % 8 == 0 for count in counts[:-1])
    assert all(count > 0 for count in counts)
    assert max(counts) - min(counts[:-1] or counts) <= 8


@pytest.mark.parametrize(("rows", "chunk_count"), [(0, 1), (8, 0), (8, 65), (-8, 1)])
def test_impossible_chunkings_are_refused(rows: int, chunk_count: int) -> None:
    with pytest.raises(InvalidRequest):
        e_chunk_rows(rows, chunk_count)


def test_a_recovered_expert_has_its_matrices_on_64_byte_boundaries() -> None:
    spec = ExpertSpec((TensorSpec("gate_up_proj", 3, 5), TensorSpec("down_proj", 5, 3), TensorSpec("x", 1, 1)))
    assert spec.tensor_offsets == (0, 64, 128)
    assert spec.tensor_bytes == 192
    assert spec.weight_bytes == 30 + 30 + 2


@given(
    shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 300)), min_size=1, max_size=4),
    chunk_count=st.integers(1, 6),
    data=st.data(),
)
def test_parts_are_aligned_contiguous_and_padded(
    shapes: list[tuple[int, int]], chunk_count: int, data: st.DataObject
) -> None:
    spec = ExpertSpec(tuple(TensorSpec(f"t{index}", rows, cols) for index, (rows, cols) in enumerate(shapes)))
    entries = []
    for tensor in spec.tensors:
        count = len(e_chunk_rows(tensor.rows, chunk_count))
        sizes = data.draw(st.lists(st.integers(1, 9000), min_size=count, max_size=count))
        entries.append(PackedTensorEntry(tuple(sizes), tuple(range(count)), 1, 2))
    record = lay_out(spec, entries, chunk_count, 3, 8192)

    assert (record.file, record.offset) == (3, 8192)
    assert record.span(Part.E) == (0, record.e_bytes)
    assert record.span(Part.SM) == (record.e_bytes, record.nbytes)
    assert record.span(Part.ALL) == (0, record.nbytes)
    assert record.e_bytes % ALIGNMENT_BYTES == record.nbytes % ALIGNMENT_BYTES == 0
    position = 0
    for tensor_record, entry in zip(record.tensors, entries, strict=True):
        assert tensor_record.e_chunks[0].offset % ALIGNMENT_BYTES == 0
        assert tuple(chunk.nbytes for chunk in tensor_record.e_chunks) == entry.e_sizes
        for chunk in tensor_record.e_chunks:
            assert chunk.offset % CHUNK_ALIGNMENT_BYTES == 0
            assert chunk.offset >= position
            position = chunk.end
        position += TAIL_PADDING_BYTES
    assert position <= record.e_bytes
    for tensor_record in record.tensors:
        assert tensor_record.sm_chunk.offset % ALIGNMENT_BYTES == 0
        assert tensor_record.sm_chunk.offset >= position
        assert tensor_record.sm_chunk.nbytes == tensor_record.spec.rows * tensor_record.spec.cols
        position = tensor_record.sm_chunk.end
    assert position <= record.nbytes < position + ALIGNMENT_BYTES
    assert [chunk.offset for chunk in record.chunks(Part.ALL)] == sorted(
        chunk.offset for chunk in record.chunks(Part.ALL)
    )


def test_the_span_of_no_part_is_refused() -> None:
    record = lay_out(ExpertSpec((TensorSpec("t", 1, 1),)), [PackedTensorEntry((1,), (0,), 0, 0)], 1, 0, 0)
    with pytest.raises(InvalidRequest, match="not 0"):
        record.span(Part.NONE)
