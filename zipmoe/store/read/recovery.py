"""Recovers bf16 matrices from the chunks of a record: the readable whole of what the decoder's workers share out."""

from __future__ import annotations

from zipmoe.codec.base import Codec
from zipmoe.store.format.layout import TensorRecord


def recover_tensor(codec: Codec, tensor: TensorRecord, slot: memoryview, out: memoryview) -> None:
    """Recovers one matrix, chunk by chunk.

    Args:
        codec: the store's codec.
        tensor: where its chunks stand in the record.
        slot: holds the record at offset 0, all parts read and checked.
        out: writable, `tensor.spec.nbytes` bytes. Overwritten with the bytes of the checkpoint.

    Raises:
        CorruptData: a chunk does not hold what the layout says. `out` is undefined then.

    Thread: any; releases the GIL for the heavy part.
    """
    cols = tensor.spec.cols
    for chunk in tensor.e_chunks:
        begin, end = chunk.first_row * cols, (chunk.first_row + chunk.rows) * cols
        sm_begin = tensor.sm_chunk.offset
        codec.recover(slot[chunk.offset : chunk.end], slot[sm_begin + begin : sm_begin + end], out[2 * begin : 2 * end])
