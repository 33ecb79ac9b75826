"""zstd at level 1 with the least overhead, as a reference for codecs of exponents. Not a codec of stores.

The system's libzstd is called as by C programs, and recovers straight into the output. Without a system libzstd,
the library of python-zstandard is used, which costs some per cent more.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, ClassVar

import zstandard

from zipmoe.buffer import Address
from zipmoe.codec.base import Codec, Parameters
from zipmoe.codec.zstd import ZstdCodec
from zipmoe.errors import CorruptData

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

LEVEL = 1


def native_zstd() -> Codec:
    """Returns the fastest zstd codec that this machine has."""
    library = _load()
    return PythonZstd() if library is None else NativeZstd(library)


def zstd_version() -> str:
    """Returns name and version of the library that `native_zstd` uses."""
    library = _load()
    if library is None:
        return f"python-zstandard {zstandard.__version__}, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
    return f"libzstd {library.ZSTD_versionString().decode()}"


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        return None
    address, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ZSTD_versionString", ctypes.c_char_p, []),
        ("ZSTD_createCCtx", address, []),
        ("ZSTD_createDCtx", address, []),
        ("ZSTD_compressBound", size, [size]),
        ("ZSTD_isError", ctypes.c_uint, [size]),
        ("ZSTD_compressCCtx", size, [address, address, size, address, size, ctypes.c_int]),
        ("ZSTD_decompressDCtx", size, [address, address, size, address, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class PythonZstd(ZstdCodec):
    """The compressor of python-zstandard at level 1, with the recovery of the codec `zstd`."""

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        return zstandard.ZstdCompressor(level=LEVEL).compress(memoryview(e_plane))


class NativeZstd(Codec):
    """libzstd with contexts for each thread. The contexts live as long as the process."""

    name: ClassVar[str] = "native-zstd-1"
    parameters: Parameters = {}  # noqa: RUF012 - an attribute of every codec, never mutated

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._contexts = threading.local()

    @classmethod
    def create(cls, parameters: Parameters) -> Self:
        """Creates the codec, which has no parameters."""
        library = _load()
        assert library is not None and not parameters
        return cls(library)

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        context = self._context("compressor", self._library.ZSTD_createCCtx)
        with Address("e_plane", e_plane) as plane:
            room = bytearray(self._library.ZSTD_compressBound(plane.nbytes))
            with Address("room", room, writable=True) as r:
                count = self._library.ZSTD_compressCCtx(context, r.start, r.nbytes, plane.start, plane.nbytes, LEVEL)
        assert not self._library.ZSTD_isError(count)
        return bytes(memoryview(room)[:count])

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`."""
        context = self._context("decompressor", self._library.ZSTD_createDCtx)
        with Address("chunk", chunk) as c, Address("out", out, writable=True) as o:
            count = self._library.ZSTD_decompressDCtx(context, o.start, o.nbytes, c.start, c.nbytes)
        if count != out.nbytes:
            raise CorruptData(f"zstd frame does not hold {out.nbytes} exponents")

    def _context(self, name: str, create: ctypes._NamedFuncPointer) -> int:
        context: int | None = getattr(self._contexts, name, None)
        if context is None:
            context = create()
            setattr(self._contexts, name, context)
        assert context is not None
        return context
