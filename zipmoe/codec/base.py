"""The contract of a codec: an exponent plane (one byte a weight) becomes an E-chunk, and an E-chunk becomes exponents.

Chunks come from disk, so a codec treats every chunk as hostile. A codec either recovers exactly the number of exponents
that the caller expects, or raises CorruptData. A codec never allocates memory by a size that only the chunk states.
`recover` is the hot path: it merges the exponents with the SM bytes to bf16 weights.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from zipmoe.errors import InvalidRequest
from zipmoe.kernels.planes import merge_planes

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

Parameters = Mapping[str, int | str]


class Codec(ABC):
    """Compresses exponent planes; one instance serves any number of threads.

    `parameters` goes into the manifest unchanged. A codec of the same parameters compresses to the same bytes.
    Decompression does not depend on the parameters, because chunks describe themselves.
    """

    name: ClassVar[str]
    parameters: Parameters

    @classmethod
    @abstractmethod
    def create(cls, parameters: Parameters) -> Self:
        """Creates the codec from its parameters. Absent parameters take their defaults.

        Raises:
            UnsupportedStore: A parameter or its value is unknown to this version.
        """

    @abstractmethod
    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """Compresses an exponent plane, always to the same bytes.

        Args:
            e_plane: n bytes, contiguous. Biased exponents.
            cols: weights a row, if the plane is whole rows of a matrix. Codecs with blocks or bases by row use it.

        Thread: releases the GIL for the heavy part; safe from any thread.
        """

    @abstractmethod
    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """Recovers exactly `out.nbytes` exponents.

        Args:
            chunk: An E-chunk without padding, contiguous, not overlapping `out`.
            out: Contiguous and writable. Overwritten.

        Raises:
            CorruptData: The chunk does not hold exactly `out.nbytes` exponents. The content of `out` is undefined.

        Thread: releases the GIL for the heavy part; safe from any thread.
        """

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """Recovers n bf16 weights from an E-chunk and their SM bytes, bit for bit.

        Args:
            e_chunk: An E-chunk without padding, contiguous.
            sm: n bytes, contiguous. Sign in bit 7, mantissa in bits 0-6.
            out: 2n bytes, contiguous, writable, not overlapping the inputs. Overwritten with little-endian bf16.

        Raises:
            CorruptData: The chunk does not hold exactly n exponents. The content of `out` is undefined.
            InvalidRequest: A buffer's size or layout differs from the above.

        Cost: scratch memory of one exponent plane for each thread, kept for the next call.
        Thread: releases the GIL for the heavy part; safe from any thread.
        """
        e_plane = _scratch(check_recover_sizes(sm, out))
        self.decompress(e_chunk, e_plane)
        merge_planes(sm, e_plane, out)


def check_recover_sizes(sm: Buffer, out: memoryview) -> int:
    """Checks that `out` has two bytes for each SM byte, and returns the number of weights.

    Raises:
        InvalidRequest: `out` is not twice as large as `sm`.
    """
    count = memoryview(sm).nbytes
    if out.nbytes != 2 * count:
        raise InvalidRequest(f"out has {out.nbytes} bytes, expected two for each of the {count} sm bytes")
    return count


_thread = threading.local()


def _scratch(nbytes: int) -> memoryview:
    """Returns the first `nbytes` of this thread's scratch plane, which grows to the thread's largest plane."""
    plane: bytearray | None = getattr(_thread, "plane", None)
    if plane is None or len(plane) < nbytes:
        plane = _thread.plane = bytearray(nbytes)
    return memoryview(plane)[:nbytes]
