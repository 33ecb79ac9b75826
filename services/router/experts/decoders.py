"""All decoders of a router."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from zipmoe.arena.tensor_form import TensorForm
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.services.router.experts.decoder_link import INTERRUPT, DecoderLink
from zipmoe.store.format.manifest import Manifest

ATTACH_WAIT_S = 0.5
"""Seconds that `attach_once` waits for a decoder before the model thread checks again whether to stop."""


class Decoders:
    """The links of an expert provider to one or several decoders.

    Experts can be fetched while at least one decoder is attached.

    Thread: `attach_once`, `fill` and `close` on the model thread; the rest from any.
    """

    def __init__(
        self,
        targets: Sequence[str],
        manifest: Manifest,
        slots: PoolSizes | None,
        tensor_form: TensorForm,
        experts: ArenaExperts,
        changed: Callable[[int], None],
    ) -> None:
        """Prepares the links; nothing is connected yet.

        Args:
            targets: gRPC addresses of the decoders, distinct.
            manifest: manifest of the router's store; every decoder must serve the same store.
            slots: expected slots of each pool, compared with those of a single decoder; several decoders share no
                budget, so their slots are not compared.
            tensor_form: form of recovered experts.
            experts: the provider that receives the events of all links.
            changed: called from any thread with the number of connected decoders whenever the number changes, first
                after the first call of `attach_once`.
        """
        self.experts = experts
        self._changed = changed
        self._telling = threading.Lock()
        self._told = 0
        self._started = False
        only = slots if len(targets) == 1 else None
        self._links = [
            DecoderLink(each, manifest, only, tensor_form, experts.decoders.events, self._tell) for each in targets
        ]

    @property
    def connected(self) -> bool:
        """Whether experts can be fetched, as far as is known."""
        return any(link.connected for link in self._links)

    def attach_once(self) -> None:
        """Waits for at most `ATTACH_WAIT_S` until a decoder attaches; the first call starts the links.

        Raises:
            StoreMismatch: a decoder serves another store, or was started with another memory budget.
        """
        if not self._started:
            self._started = True
            for link in self._links:
                link.start()
        self.experts.await_decoder(ATTACH_WAIT_S)

    def fill(self, until_s: float) -> bool:
        """Fetches experts into free slots; see `ArenaExperts.fill`."""
        return self.experts.fill(until_s)

    def interrupt(self) -> None:
        """Ends a wait in `attach_once` or `fill`."""
        self.experts.decoders.events.put(INTERRUPT)

    def close(self) -> None:
        """Closes all sessions and mappings."""
        for link in self._links:
            link.close()
        self.experts.close()

    def _tell(self) -> None:
        with self._telling:
            count = sum(link.connected for link in self._links)
            if count != self._told:
                self._told = count
                self._changed(count)
