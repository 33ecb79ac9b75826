"""All decoders that a router works with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.services.router.experts.decoder_link import INTERRUPT, DecoderLink
from zipmoe.store.format.manifest import Manifest

ATTACH_WAIT_S = 0.5
"""How long the model's thread, with nothing to compute with, waits for a decoder before it looks around again."""


class Decoders:
    """Keeps `experts` supplied by one or several decoders; experts are served while at least one of them is there.

    Attributes:
        changed: called from any thread with how many decoders are connected, whenever that changes.

    Thread: `attach_once`, `fill` and `close` on the model's thread; the rest from any.
    """

    def __init__(
        self, targets: Sequence[str], manifest: Manifest, slots: PoolSizes | None, experts: ArenaExperts
    ) -> None:
        """Prepares the links; nothing is connected yet.

        Args:
            targets: the decoders' gRPC addresses, distinct.
            manifest: as in `DecoderLink`, like the next.
            slots: held against the decoder's where there is only one; several share no budget.
            experts: what is supplied.
        """
        self.experts = experts
        self.changed: Callable[[int], None] = lambda count: None
        self._telling = threading.Lock()
        self._told = 0
        self._started = False
        only = slots if len(targets) == 1 else None
        self._links = [DecoderLink(each, manifest, only, experts.events, self._tell) for each in targets]

    @property
    def connected(self) -> bool:
        """Whether experts can be fetched, as far as is known."""
        return any(link.connected for link in self._links)

    def attach_once(self) -> bool:
        """Waits a little until a decoder is there.

        Returns:
            Whether one is.

        Raises:
            StoreMismatch: a decoder serves another store, or was started with another memory budget.
        """
        if not self._started:
            self._started = True
            for link in self._links:
                link.start()
        self.experts.await_decoder(ATTACH_WAIT_S)
        return self.connected

    def fill(self, until_s: float) -> bool:
        """Lets experts be read into free slots; as `ArenaExperts.fill`."""
        return self.experts.fill(until_s)

    def interrupt(self) -> None:
        """Ends a wait in `attach_once` or `fill`."""
        self.experts.events.put(INTERRUPT)

    def close(self) -> None:
        """Gives the sessions and the mappings up."""
        for link in self._links:
            link.close()
        self.experts.close()

    def _tell(self) -> None:
        with self._telling:
            count = sum(link.connected for link in self._links)
            if count != self._told:
                self._told = count
                self.changed(count)
