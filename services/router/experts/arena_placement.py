"""Brings experts to the device, from the tensor arenas of the decoders that are attached at the time."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch

from zipmoe.errors import Unavailable
from zipmoe.model.experts.device import ExpertPlacement, HostPlacement, RegisteredMemory, create_placement
from zipmoe.model.linear.matrices import Matrices
from zipmoe.services.router.experts.views import ExpertViews

_LOG = structlog.get_logger(__name__)


class ArenaPlacement:
    """The expert placement of the model; delegates to a placement for the bound arenas.

    With CUDA, the arena of a single decoder is registered once, when it is bound. An integrated device then reads the
    arena in place; a discrete device copies from the arena asynchronously. The arenas of several decoders are not
    registered, and experts are copied from them.

    Thread: the model thread.
    """

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        """Computes on `device`; `slot_bytes` is the size of the largest recovered expert."""
        self._device = device
        self._slot_bytes = slot_bytes
        self._registered: RegisteredMemory | None = None
        self._placement: ExpertPlacement = HostPlacement()

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self._device

    def bind(self, decoders: Sequence[ExpertViews]) -> None:
        """Switches to the tensor arenas of these decoders; earlier mappings are no longer used."""
        if self._device.type == "cpu":
            return
        self.release()
        views = [each.tensor_view for each in decoders if each.tensor_view is not None]
        if len(views) == 1:
            try:
                nbytes = views[0].slot_bytes * views[0].slot_count
                self._registered = RegisteredMemory(self._device, views[0].address, nbytes, read_only=True)
            except Unavailable as error:
                _LOG.warning("arena_not_registered", reason=error.message, effect="experts are copied, not pinned")
        if views:
            self._placement = create_placement(self._device, self._slot_bytes, self._registered)

    def release(self) -> None:
        """Ends the registration of the arena, if there is one."""
        registered, self._registered = self._registered, None
        if registered is not None:
            torch.cuda.synchronize(self._device)
            self._placement = HostPlacement()
            registered.close()

    def load(self, matrices: Matrices) -> Matrices:
        """Brings matrices of the bound arenas to the device; see `ExpertPlacement.load`."""
        return self._placement.load(matrices)

    def settle(self) -> None:
        """Waits until the device no longer reads the host memory of loaded matrices; see `ExpertPlacement.settle`."""
        self._placement.settle()
