"""Recovers bf16 matrices from the chunks of a record. The decoder's workers share the same work, E-chunk by E-chunk."""

from __future__ import annotations

from zipmoe.codec.base import Codec
from zipmoe.store.format.layout import TensorRecord


def recover_tensor(codec: Codec, tensor: TensorRecord, slot: memoryview, out: memoryview) -> None:
    """Recovers one matrix, E-chunk by E-chunk.

    Args:
        codec: the store's codec.
        tensor: places of the matrix's chunks in the record.
        slot: the record from byte 0 on, with all parts read and checked.
        out: writable, `tensor.spec.nbytes` bytes. Overwritten with the bytes of the checkpoint.

    Raises:
        CorruptData: a chunk does not hold the exponents of its rows. `out` is undefined then.

    Thread: any; releases the GIL for the heavy part.
    """
    cols = tensor.spec.cols
    for chunk in tensor.e_chunks:
        begin, end = chunk.first_row * cols, (chunk.first_row + chunk.rows) * cols
        sm_begin = tensor.sm_chunk.offset
        codec.recover(slot[chunk.offset : chunk.end], slot[sm_begin + begin : sm_begin + end], out[2 * begin : 2 * end])
