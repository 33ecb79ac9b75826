"""Form of recovered experts in tensor slots, and the room that a form takes.

The decoder recovers an expert to bf16, or straight to an in-memory form from which the CPU multiplies
(`zipmoe.kernels.memory_form`). Plan, decoder and router compute the same places from the manifest alone, so every
matrix has a fixed room. A matrix whose bytes do not fit, which only unusual weights have, stays in its chunks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, NamedTuple

from zipmoe.store.format.layout import ExpertSpec, align

TensorForm = Literal["bf16", "tile", "nibble"]
"""Form of the matrices of a recovered expert."""

BF16: Final = "bf16"

_BITS: Final = {"tile": 11.25, "nibble": 12.25}
"""Bits a weight, with 2 to 5 % for weights that are less regular than Gaussian ones."""

_ROW_BYTES: Final = 36
"""Tables, outline and padding of a row: half of those of a nibble tile."""

_ALIGNMENT: Final = 64
_PAGE: Final = 4096


class TensorRoom(NamedTuple):
    """Place of a matrix in a tensor slot, and its shape."""

    begin: int
    end: int
    rows: int
    cols: int


@lru_cache(256)
def tensor_rooms(spec: ExpertSpec, form: TensorForm) -> tuple[TensorRoom, ...]:
    """Returns the places of an expert's matrices in a tensor slot, in the order of the manifest; bytes."""
    rooms, begin = [], 0
    for tensor in spec.tensors:
        nbytes = tensor.nbytes
        if form != BF16:
            nbytes = int(tensor.weight_count * _BITS[form] / 8) + _ROW_BYTES * tensor.rows + _PAGE
        rooms.append(TensorRoom(begin, begin + nbytes, tensor.rows, tensor.cols))
        begin = align(begin + nbytes, _ALIGNMENT)
    return tuple(rooms)


def recovered_bytes(spec: ExpertSpec, form: TensorForm) -> int:
    """Returns the bytes that an expert takes in a tensor slot, rounded up to whole pages."""
    return align(tensor_rooms(spec, form)[-1].end, _PAGE)
