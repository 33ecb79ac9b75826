"""Chooses the device of a model and brings the matrices of an expert there from host memory.

On the CPU nothing has to move. With CUDA the kind of device decides:

    integrated (Jetson)   one memory: the arena is registered once and its pages are read in place
    discrete              a ring of device slots, filled on a copy stream; the next copy overlaps the last computation

Host memory may change as soon as `settle` has returned. So `settle` waits for the last reader of host memory: the
copy, or the computation where nothing is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.model.linear.matrices import Matrices

RING_SLOTS = 3
"""One slot to compute from, one slot to fill, one slot between them."""

# CUdevice_attribute and CU_MEMHOSTREGISTER_* of cuda.h.
ATTRIBUTE_INTEGRATED = 18
ATTRIBUTE_HOST_REGISTER_SUPPORTED = 99
ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED = 113
REGISTER_PORTABLE, REGISTER_DEVICE_MAP, REGISTER_READ_ONLY = 1, 2, 8


class ExpertPlacement(Protocol):
    """Brings matrices to the device that computes."""

    @property
    def device(self) -> torch.device:
        """Device that computes."""

    def load(self, matrices: Matrices) -> Matrices:
        """Returns recovered matrices on the device, usable by work that is enqueued before `settle`."""

    def settle(self) -> None:
        """Waits until nothing reads the host memory of loaded matrices; returns at once if none were loaded."""


class HostPlacement:
    """Placement on the CPU: experts are computed in host memory."""

    device = torch.device("cpu")

    def load(self, matrices: Matrices) -> Matrices:
        """Returns the matrices themselves."""
        return matrices

    def settle(self) -> None:
        """Returns at once: computation on the CPU is complete when a call returns."""


def resolve_device(name: str) -> torch.device:
    """Turns `cpu`, `cuda`, `cuda:N` or `auto` into a device.

    Raises:
        InvalidRequest: another name.
        Unavailable: CUDA is asked for and missing, or has no device of that number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise InvalidRequest(f"device is {name!r}, but has to be cpu, cuda, cuda:N or auto")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise Unavailable(
            f"device is {name!r}, but torch {torch.__version__} finds {count} CUDA devices",
            next_step="install a torch built for this machine's CUDA, or use --device cpu",
        )
    return torch.device("cuda", int(index or 0))


def create_placement(device: torch.device, slot_bytes: int, arena: RegisteredMemory | None = None) -> ExpertPlacement:
    """Makes the placement for a device.

    Args:
        device: from `resolve_device`.
        slot_bytes: bytes of the largest recovered expert.
        arena: host memory of the experts; None if not registered.
    """
    if device.type == "cpu":
        return HostPlacement()
    if arena is not None and arena.readable_in_place:
        return MappedPlacement(device, arena)
    return CopyPlacement(device, slot_bytes)


class RegisteredMemory:
    """A mapping of host memory that the device may read; registered once, since registration takes 0.1 s a GB.

    Thread: the constructor may run in the background; registration is serialised by the driver. The mapping has to
    stay until `close`.
    """

    def __init__(self, device: torch.device, address: int, nbytes: int, *, read_only: bool) -> None:
        """Registers the memory.

        Args:
            device: the CUDA device.
            address: address of the mapping, a multiple of the page size.
            nbytes: bytes of the mapping.
            read_only: whether the mapping forbids writing, as the mapping of another process's arena does.

        Raises:
            Unavailable: the device or the driver cannot register; the placement then copies from pageable memory.
        """
        self.address, self.nbytes = address, nbytes
        self._device = device
        self._driver = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device=device)  # makes the device's context current in this thread
        needed = ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED if read_only else ATTRIBUTE_HOST_REGISTER_SUPPORTED
        if not self._attribute(needed):
            kind = "read-only host memory" if read_only else "host memory"
            raise Unavailable(f"{torch.cuda.get_device_name(device)} cannot register {kind}")
        flags = REGISTER_PORTABLE | REGISTER_DEVICE_MAP | (REGISTER_READ_ONLY if read_only else 0)
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(flags))
        self.readable_in_place = bool(self._attribute(ATTRIBUTE_INTEGRATED))

    def device_view(self) -> torch.Tensor:
        """Returns the device's view of the memory: uint8, shape (nbytes,), not to be written."""
        pointer = ctypes.c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(pointer), ctypes.c_void_p(self.address), 0)
        interface = {"shape": (self.nbytes,), "typestr": "|u1", "data": (pointer.value, False), "version": 3}
        holder = type("DeviceMemory", (), {"__cuda_array_interface__": interface})()
        return torch.as_tensor(holder, device=self._device)

    def close(self) -> None:
        """Ends the registration; the device has to be idle."""
        self._call("cuMemHostUnregister", ctypes.c_void_p(self.address))

    def _attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device.index or 0)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        if (code := getattr(self._driver, function)(*arguments)) != 0:
            raise Unavailable(f"{function} failed with CUDA error {code} on {self.nbytes} bytes")


class MappedPlacement:
    """Placement on an integrated device: reads the registered arena in place."""

    def __init__(self, device: torch.device, arena: RegisteredMemory) -> None:
        self.device = device
        self._address = arena.address
        self._view = arena.device_view()
        self._reading = False

    def load(self, matrices: Matrices) -> Matrices:
        """Returns device views of matrices that lie in the arena."""
        self._reading = True
        return tuple(self._view_of(matrix) for matrix in matrices)

    def settle(self) -> None:
        """Waits for the computation."""
        if self._reading:
            torch.cuda.current_stream(self.device).synchronize()
            self._reading = False

    def _view_of(self, matrix: torch.Tensor) -> torch.Tensor:
        offset = matrix.data_ptr() - self._address
        return self._view[offset : offset + matrix.nbytes].view(matrix.dtype).view(matrix.shape)


class CopyPlacement:
    """Placement on a discrete device: copies into a ring of device slots, on a separate stream."""

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        self.device = device
        self._slots = [torch.empty(slot_bytes, dtype=torch.uint8, device=device) for _ in range(RING_SLOTS)]
        new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        self._read = [new_event() for _ in range(RING_SLOTS)]
        """Event of each slot, recorded after the last computation that read the slot."""
        self._copied = new_event()
        new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._stream = new_stream(device)
        self._turn = 0
        self._loaded = False

    def load(self, matrices: Matrices) -> Matrices:
        """Enqueues the copies and makes later computation wait for them."""
        self._turn = (self._turn + 1) % RING_SLOTS
        self._stream.wait_event(self._read[self._turn])
        with torch.cuda.stream(self._stream):
            copies = _copy_into(self._slots[self._turn], matrices)
            self._copied.record(self._stream)
        torch.cuda.current_stream(self.device).wait_event(self._copied)
        self._loaded = True
        return copies

    def settle(self) -> None:
        """Waits for the copies, not for the computation."""
        if self._loaded:
            self._read[self._turn].record(torch.cuda.current_stream(self.device))
            self._copied.synchronize()
            self._loaded = False


def _copy_into(slot: torch.Tensor, matrices: Sequence[torch.Tensor]) -> Matrices:
    copies = []
    offset = 0
    for matrix in matrices:
        target = slot[offset : offset + matrix.nbytes].view(matrix.dtype).view(matrix.shape)
        copies.append(target.copy_(matrix, non_blocking=True))
        offset += -(-matrix.nbytes // 64) * 64
    return tuple(copies)
