"""Stands in for a ctypes library that runs on an emulated machine: what Python passes is copied there and back.

A pointer is an integer, so which bytes it stands for is read from the `Address` that holds the buffer during the call.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import threading
from dataclasses import dataclass
from typing import IO, Any

from zipmoe import buffer

NO_MEMORY = 0xFFFFFFFF
ALIGNMENTS = 64


@dataclass(frozen=True)
class Region:
    """Bytes of this process that a call may be given a pointer to."""

    start: int
    nbytes: int
    writable: bool

    def holds(self, address: int) -> bool:
        return self.start <= address < self.start + max(self.nbytes, 1)


held: dict[int, list[Region]] = {}
"""By thread, the buffers that its open `Address` blocks hold."""


class RecordingAddress(buffer.Address):
    """An `Address` that tells what it holds."""

    __slots__ = ("region",)

    def __init__(self, name: str, content: Any, *, writable: bool = False) -> None:
        super().__init__(name, content, writable=writable)
        self.region = Region(self.start, self.nbytes, writable)
        held.setdefault(threading.get_ident(), []).append(self.region)

    def __exit__(self, *reason: object) -> None:
        held[threading.get_ident()].remove(self.region)
        super().__exit__(*reason)


class EmulatorDied(Exception):
    """The emulated process ended: a signal, such as that of an access behind a buffer; the message says which."""


class EmulatedLibrary:
    """Looks like `ctypes.CDLL` to the kernels' Python side."""

    def __init__(self, runner: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(runner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._one_call = threading.Lock()

    def __getattr__(self, name: str) -> EmulatedFunction:
        function = EmulatedFunction(self, name)
        setattr(self, name, function)
        return function

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def call(self, request: bytes, writable: list[Region]) -> tuple[int, bytes]:
        """Sends one request, copies what it wrote into the writable regions, and returns both forms of the result."""
        with self._one_call:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            try:
                stdin.write(request)
                stdin.flush()
                (result,) = struct.unpack("<q", self._read(stdout, 8))
                text, complaint = self._read_text(stdout), self._read_text(stdout)
                contents = [self._read(stdout, region.nbytes) for region in writable]
            except BrokenPipeError as error:
                raise self._death() from error
        assert not complaint, complaint.decode()
        for region, content in zip(writable, contents, strict=True):
            ctypes.memmove(region.start, content, region.nbytes)
        return result, text

    def _read(self, pipe: IO[bytes], count: int) -> bytes:
        content = pipe.read(count)
        if len(content) != count:
            raise self._death()
        return content

    def _read_text(self, pipe: IO[bytes]) -> bytes:
        return self._read(pipe, struct.unpack("<I", self._read(pipe, 4))[0])

    def _death(self) -> EmulatorDied:
        assert self._process.stderr is not None
        code = self._process.wait()
        return EmulatorDied(f"the emulated process ended with {code}: {self._process.stderr.read().decode()}")


class EmulatedFunction:
    """One function of the library, with ctypes' way to declare it."""

    def __init__(self, library: EmulatedLibrary, name: str) -> None:
        self._library, self._name = library, name
        self.argtypes: list[Any] | None = None
        self.restype: Any = ctypes.c_int

    def __call__(self, *arguments: Any) -> Any:
        assert self.argtypes is not None, f"{self._name} is called without declared argtypes"
        assert len(arguments) == len(self.argtypes), f"{self._name} takes {len(self.argtypes)}, got {len(arguments)}"
        regions: list[Region] = []
        pointers: list[bytes] = []
        encoded = [
            self._encode(kind, argument, regions, pointers)
            for kind, argument in zip(self.argtypes, arguments, strict=True)
        ]
        name = self._name.encode()
        request = [struct.pack("<I", len(name)), name, struct.pack("<III", len(regions), len(pointers), len(encoded))]
        for region in regions:
            request.append(struct.pack("<QII", region.nbytes, region.start % ALIGNMENTS, region.writable))
            request.append(ctypes.string_at(region.start, region.nbytes))
        request += [*pointers, *encoded]
        result, text = self._library.call(b"".join(request), [region for region in regions if region.writable])
        if self.restype is None:
            return None
        if self.restype is ctypes.c_char_p:
            assert self._name.endswith("_name"), f"{self._name}: the runner reads strings of *_name functions only"
            return text or None
        return self.restype(result).value

    def _encode(self, kind: Any, argument: Any, regions: list[Region], pointers: list[bytes]) -> bytes:
        """Packs one argument, and adds the region that it points into, once for each call."""
        if isinstance(argument, ctypes.Array) and issubclass(argument._type_, ctypes.Structure):
            return self._encode_structures(argument, regions, pointers)
        if kind is not ctypes.c_void_p:
            value = argument if isinstance(argument, int) else argument.value
            return struct.pack("<Iq", NO_MEMORY, _wrapped(value))
        address, known = self._pointer(argument)
        if not address:
            return struct.pack("<Iq", NO_MEMORY, 0)
        index, offset = self._place(address, known, regions)
        return struct.pack("<Iq", index, offset)

    def _encode_structures(
        self, structures: ctypes.Array[ctypes.Structure], regions: list[Region], pointers: list[bytes]
    ) -> bytes:
        """Packs an array of structures, and adds the regions that its pointers point into. It is read-only."""
        start = ctypes.addressof(structures)
        table = len(regions)
        regions.append(Region(start, ctypes.sizeof(structures), False))
        for number, structure in enumerate(structures):
            for name, kind, *_ in structure._fields_:
                address = getattr(structure, name)
                if kind is ctypes.c_void_p and address:
                    index, offset = self._place(address, held.get(threading.get_ident(), []), regions)
                    at = number * ctypes.sizeof(structure) + getattr(type(structure), name).offset
                    pointers.append(struct.pack("<IQIq", table, at, index, offset))
        return struct.pack("<Iq", table, 0)

    def _place(self, address: int, known: list[Region], regions: list[Region]) -> tuple[int, int]:
        """Returns the number of the region that an address is in, which it adds, and the offset in it."""
        holding = [region for region in known if region.holds(address)]
        assert holding, f"{self._name} gets a pointer that no open `zipmoe.buffer.Address` holds"
        # Of several views of the same bytes the largest one is placed, writable if one of them is.
        widest = max(holding, key=lambda region: region.nbytes)
        region = Region(widest.start, widest.nbytes, any(each.writable for each in holding))
        if region not in regions:
            regions.append(region)
        return regions.index(region), address - region.start

    @staticmethod
    def _pointer(argument: Any) -> tuple[int, list[Region]]:
        """The address that an argument stands for, and the regions it may lie in."""
        target = getattr(argument, "_obj", argument)  # what ctypes.byref points to
        if isinstance(target, (ctypes.Array, ctypes.Structure, ctypes._SimpleCData)) and not isinstance(
            target, ctypes.c_void_p
        ):
            start = ctypes.addressof(target)
            return start, [Region(start, ctypes.sizeof(target), True)]
        address = target.value if isinstance(target, ctypes.c_void_p) else target
        return address or 0, held.get(threading.get_ident(), [])


def _wrapped(value: int) -> int:
    """A 64-bit integer of either sign, as the signed one with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
