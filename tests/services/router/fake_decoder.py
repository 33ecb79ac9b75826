"""A decoder inside the test: it obeys, and ends every operation as soon as it is asked for, unless told otherwise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from tests.residency.pooled_executor import PooledExecutor, decoder_slots, make_brain
from zipmoe.errors import CorruptData, ZipMoeError
from zipmoe.planning.popularity import Popularity
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.pools import Completed, Grid, Operations, Read, SessionLost
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.services.router.experts.arena_placement import ArenaPlacement
from zipmoe.services.router.experts.decoder_link import Attached, LinkEvent
from zipmoe.services.router.experts.decoder_sessions import DecoderSessions
from zipmoe.services.router.experts.live_forecast import LiveForecast
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.types import ExpertKey

LAYERS, EXPERTS = 6, 12


class FakeDecoder:
    """Session and arenas of a decoder; `views` name the expert and the slots instead of showing weights."""

    def __init__(self, name: str, experts: ArenaExperts, counts: tuple[int, int, int], epoch: int = 1) -> None:
        self.name = name
        self.executor = PooledExecutor()
        self.messages: list[Operations] = []
        self.broken: set[ExpertKey] = set()
        self.stuck = False
        self.closed = False
        self._experts = experts
        self._slots = decoder_slots(name, *counts, epoch=epoch)
        self._cancelled: list[int] = []
        views: Any = SimpleNamespace(
            full=lambda layer, slot: (torch.tensor([layer, slot]), torch.tensor([slot])),
            packed=lambda key, e_slot, sm_slot: (torch.tensor([key.layer, key.expert]), torch.tensor([e_slot])),
            close=self._close,
            tensor_view=None,
        )
        session: Any = self
        self._report(Attached(session, self._slots, views))

    def send(self, operations: Operations) -> None:
        self.messages.append(operations)
        known = [number for number in operations.cancels if number in self.executor.running]
        self.executor.send(Operations(known, operations.releases, operations.reads, operations.recoveries))
        self.work()

    def work(self) -> None:
        """Ends whatever can end."""
        while not self.stuck and (ready := self.executor.ready()):
            self.end(ready[0])

    def end(self, number: int) -> None:
        operation = self.executor.running[number]
        broken = isinstance(operation, Read) and operation.key in self.broken
        error = self.executor.end(number, CorruptData("bad checksum") if broken else None)
        self._report(Completed(number, error, 100 if isinstance(operation, Read) and not error else 0, 0.0))  # type: ignore[arg-type]

    def fail(self, number: int, error: ZipMoeError) -> None:
        self.executor.end(number, error)
        self._report(Completed(number, error))

    def begin(self, number: int) -> None:
        """Reports the first tensor of an operation."""
        self._report(Completed(number, None, first_tensor_only=True))

    def lose(self, error: ZipMoeError) -> None:
        self._report(SessionLost(error))

    def _close(self) -> None:
        self.closed = True

    def _report(self, event: Any) -> None:
        self._experts.decoders.events.put(LinkEvent(self.name, event))


def make_experts(
    registry: CollectorRegistry,
    *,
    policy: str = "lru",
    packed_rows: int = 1 << 30,
    prefetch: str = "0",
    trace: TraceFile | None = None,
    fills: bool = False,
) -> ArenaExperts:
    """A provider over a brain of its own, with no decoder yet."""
    metrics = RouterMetrics(registry)
    manifest: Any = SimpleNamespace(digest="0" * 16)
    popularity = Popularity([EXPERTS] * LAYERS)
    forecast = LiveForecast(manifest, popularity, None, 0, metrics, ThreadPoolExecutor(1))
    brain = make_brain(0, 0, policy=policy, grid=Grid(LAYERS, EXPERTS), packed_rows=packed_rows, decoders=())
    pass_log = PassLog(metrics, LAYERS, forecast, trace)
    decoders = DecoderSessions(
        brain,
        ArenaPlacement(torch.device("cpu"), 0),
        pass_log,
        fetch_timeout_s=0.05,
        fill_order=popularity.ranked if fills else list,
    )
    return ArenaExperts(brain, GuessControl(prefetch), decoders, pass_log)
