"""Chooses the backend of the kernels: the fastest that the CPU can run, or the value of ZIPMOE_KERNELS."""

from __future__ import annotations

import functools
import os

from zipmoe.errors import InvalidRequest
from zipmoe.kernels.library import load_library

BACKEND_VARIABLE = "ZIPMOE_KERNELS"

_library = load_library()
_INDEX_OF: dict[str, int] = {
    _library.zipmoe_backend_name(index).decode(): index for index in range(_library.zipmoe_backend_count())
}


def backends() -> list[str]:
    """Lists the backends that the CPU can run (`avx512`, `avx2`, `neon`, `scalar`), fastest first.

    A backend that lacks a kernel of its own uses the kernel of a slower backend. So `avx512` merges and splits planes
    as `avx2` does.
    """
    return list(_INDEX_OF)


@functools.cache
def backend() -> str:
    """Returns the backend in use: the fastest backend, or the value of ZIPMOE_KERNELS at the first call.

    Raises:
        InvalidRequest: the environment variable ZIPMOE_KERNELS names a backend that this machine does not have.
    """
    forced = os.environ.get(BACKEND_VARIABLE)
    index = _index_of(forced, BACKEND_VARIABLE) if forced else 0
    return backends()[index]


@functools.cache
def backend_index(using: str | None) -> int:
    """Returns the library's number of a backend.

    Args:
        using: One of `backends()`; None for `backend()`.

    Raises:
        InvalidRequest: This machine does not have the backend.
    """
    return _index_of(using, "using") if using else _INDEX_OF[backend()]


def _index_of(name: str, source: str) -> int:
    index = _INDEX_OF.get(name)
    if index is None:
        raise InvalidRequest(f"{source} names kernel backend {name!r}, this machine has {', '.join(_INDEX_OF)}")
    return index
