"""An engine in this process: a tiny model, experts in memory, no decoder."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from prometheus_client import CollectorRegistry

from tests.model.conftest import Twin
from tests.model.interposed import take_experts_from
from zipmoe.errors import CorruptData, DeadlineExceeded
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.passes.ragged import RaggedModel
from zipmoe.model.probe.result import ComputePath, ProbeResult
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.residency.pools import Phase
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.deadlines import NO_DEADLINES, Deadlines
from zipmoe.services.router.engine.engine import Engine
from zipmoe.services.router.engine.request import (
    Event,
    GenerationSpec,
    Request,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    RequestToken,
)
from zipmoe.services.router.engine.shared_passes import SharedPasses
from zipmoe.services.router.engine.step_setup import StepSetup
from zipmoe.services.router.engine.stepper import Stepper
from zipmoe.services.router.experts.read_account import ExpertUsage
from zipmoe.services.router.metrics import RouterMetrics

WAIT_S = 60.0


class Numbers(Tokenizer):
    """Every token is a letter."""

    special_ids = frozenset()

    def __init__(self) -> None:
        pass

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in token_ids)


class Experts(InProcessProvider):
    """Supplies a twin's experts, counts them, and fails where a test says so."""

    def __init__(self, twin: Twin) -> None:
        self.usage = ExpertUsage()
        self.deadlines: Deadlines = NO_DEADLINES
        self.passes: list[tuple[Phase, int]] = []
        self.broken: set[tuple[int, int]] = set()
        self.fails_in: int | None = None
        """Number of passes through a layer until one fails, once."""
        self.hangs_until_s = 0.0
        self.waited_in_vain = 0
        self._inner = twin.provider

    def step(self, phase: Phase, tokens: int, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.passes.append((phase, tokens))

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.usage.hits += len(rows)
        fails = self.fails_in == 0
        self.fails_in = None if self.fails_in is None or fails else self.fails_in - 1
        for item in self._inner.experts(layer, rows):
            if self.deadlines.first_s < self.hangs_until_s:
                self.waited_in_vain += 1
                threading.Event().wait(max(0.0, self.deadlines.first_s - time.monotonic()))
                raise DeadlineExceeded("nothing arrived")
            if fails or (layer, item[0]) in self.broken:
                raise CorruptData("checksum")
            yield item


def without_pages(twin: Twin) -> Twin:
    """The same model, for an engine that gives each request a cache of its own."""
    return replace(twin, linears=None)


class Link:
    """A decoder that is there until a test takes it away."""

    def __init__(self) -> None:
        self.connected = True
        self.attached = threading.Event()
        self.fills = False
        self.filling = threading.Event()
        self._interrupts: queue.SimpleQueue[None] = queue.SimpleQueue()

    def attach_once(self) -> None:
        self.connected = True
        self.attached.set()

    def fill(self, until_s: float) -> bool:
        if self.fills:
            self.filling.set()
            self._interrupts.get(timeout=WAIT_S)
        return self.fills

    def interrupt(self) -> None:
        self._interrupts.put(None)

    def close(self) -> None:
        pass


@dataclass
class Client:
    """What one client sees."""

    request: Request
    events: queue.SimpleQueue[Event]
    seen: list[Event] = field(default_factory=list)

    def next(self) -> Event:
        event = self.events.get(timeout=WAIT_S)
        self.seen.append(event)
        return event

    def token(self) -> RequestToken:
        while not isinstance(event := self.next(), RequestToken):
            assert isinstance(event, RequestStarted), event
        return event

    def answer(self) -> list[tuple[int, float | None]]:
        """Waits for the end: tokens and log-probabilities."""
        while not isinstance(event := self.next(), RequestFinished | RequestFailed):
            pass
        assert isinstance(event, RequestFinished), event
        return [(each.choice.token_id, each.choice.logprob) for each in self.seen if isinstance(each, RequestToken)]

    def error(self) -> Exception:
        while not isinstance(event := self.next(), RequestFinished | RequestFailed):
            pass
        assert isinstance(event, RequestFailed), event
        return event.error


class ServingEngine:
    """An engine over a twin, and clients of it."""

    def __init__(self, twin: Twin, path: ComputePath = ComputePath.SHARED, **settings: object) -> None:
        self.twin = twin
        self.registry = CollectorRegistry()
        self.experts = Experts(twin)
        self.link = Link()
        take_experts_from(self.experts, twin.built)
        given = {"store": "/nowhere", "kv_tokens": 1024, "max_prompt_tokens": 128, "prefill_rows": 64}
        given |= {"speculate": "off", **settings}  # with drafts, the number of passes depends on measured times
        config = RouterConfig(**given)  # type: ignore[arg-type]
        setup = StepSetup(config, RouterMetrics(self.registry), Numbers(), str(twin.path), ProbeResult(path))
        self.setup = setup
        self.stepper: Stepper = setup.make(twin.built, twin.linears, self.experts)
        check = partial(setup.check, twin.built, self.stepper, self.experts)
        self._checked = threading.Event()
        self.engine = Engine(self.stepper, self.link, check, checked=self._checked.set)

    def __enter__(self) -> Self:
        self.engine.start()
        assert not self.link.connected or self._checked.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.engine.stop(WAIT_S)
        take_experts_from(self.twin.provider, self.twin.built)

    def ask(self, prompt: Sequence[int], count: int = 8, **more: object) -> Client:
        """Sends a greedy request that nothing but its length ends."""
        own = {name: more.pop(name) for name in ("emit", "unread", "deadline_s", "wants_progress") if name in more}
        spec = GenerationSpec(
            "request",
            tuple(prompt),
            more.pop("sampling", SamplingParams(temperature=0.0)),  # type: ignore[arg-type]
            count,
            top_logprobs=0,
            **more,  # type: ignore[arg-type]
        )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        client = Client(Request(spec, **{"emit": events.put, **own}), events)  # type: ignore[arg-type]
        self.engine.submit(client.request)
        return client

    @property
    def ragged(self) -> RaggedModel:
        """The model of an engine over KV pages."""
        model = self.stepper._model
        assert isinstance(model, SharedPasses)
        return model._model

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0
