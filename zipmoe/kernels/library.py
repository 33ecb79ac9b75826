"""Finds and loads the kernels' shared library."""

from __future__ import annotations

import ctypes
from pathlib import Path

from zipmoe import kernels

LIBRARY_NAME = "libzipmoe_kernels.so"


def load_library() -> ctypes.CDLL:
    """Loads the shared library and declares the C signatures of the backend and plane functions.

    Calls through the returned library release the GIL.

    Raises:
        ImportError: The library has not been built.
    """
    # An editable installation has two folders: the sources, and the folder of the installed library.
    searched = [Path(folder) / LIBRARY_NAME for folder in kernels.__path__]
    path = next((candidate for candidate in searched if candidate.exists()), None)
    if path is None:
        places = ", ".join(str(candidate) for candidate in searched)
        raise ImportError(
            f"the native kernels are not built, looked for {places}; run `make setup` or install the wheel"
        )
    library = ctypes.CDLL(str(path))
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.zipmoe_backend_count.argtypes = []
    library.zipmoe_backend_count.restype = ctypes.c_int
    library.zipmoe_backend_name.argtypes = [ctypes.c_int]
    library.zipmoe_backend_name.restype = ctypes.c_char_p
    for function in (library.zipmoe_merge_planes, library.zipmoe_split_planes):
        function.argtypes = [ctypes.c_int, address, address, address, size]
        function.restype = ctypes.c_int
    return library
