"""Where experts are computed, following the tensor arena over re-attachments."""

from __future__ import annotations

import structlog
import torch

from zipmoe.arena.arena import ArenaView
from zipmoe.errors import Unavailable
from zipmoe.model.device import HostPlacement, Matrices, Placement, RegisteredMemory, create_placement

_LOG = structlog.get_logger(__name__)


class ArenaPlacement:
    """The placement that the model is built with; what it does depends on the arena that is bound.

    With CUDA the arena's mapping is registered once, when it is bound: an integrated device then reads it in place, a
    discrete one copies from it asynchronously. Thread: the model thread.
    """

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        """Computes on `device`; `slot_bytes` is the size of the largest recovered expert."""
        self._device = device
        self._slot_bytes = slot_bytes
        self._registered: RegisteredMemory | None = None
        self._placement: Placement = HostPlacement()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._device

    def bind(self, view: ArenaView) -> None:
        """Takes experts from another arena from now on; the previous mapping is no longer used."""
        if self._device.type == "cpu":
            return
        self.release()
        try:
            nbytes = view.slot_bytes * view.slot_count
            self._registered = RegisteredMemory(self._device, view.address, nbytes, read_only=True)
        except Unavailable as error:
            _LOG.warning("arena_not_registered", reason=error.message, effect="experts are copied from pageable memory")
        self._placement = create_placement(self._device, self._slot_bytes, self._registered)

    def release(self) -> None:
        """Ends the registration of the arena, if there is one."""
        registered, self._registered = self._registered, None
        if registered is not None:
            torch.cuda.synchronize(self._device)
            self._placement = HostPlacement()
            registered.close()

    def load(self, matrices: Matrices) -> Matrices:
        """Brings matrices of the bound arena to the device; see `Placement.load`."""
        return self._placement.load(matrices)

    def settle(self) -> None:
        """Waits until nothing reads what was loaded; see `Placement.settle`."""
        self._placement.settle()
