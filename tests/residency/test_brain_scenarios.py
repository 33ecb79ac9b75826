"""Scenarios of the brain, as text: tests/scenarios/brain-*.txt.

brain e=2 sm=2 tensor=1 layers=2 experts=8 policy=lru packed_rows=99 transient=1
join a | lost a              a decoder with the slots named above
step prefill 512
need 0 1 2x34                experts 1 and 2 of layer 0, expert 2 for 34 tokens
usable | done 0.1 | abandon
ended 3 | failed 3           operation 3 has ended, well or not
unfit 3                      the recovery 3 has ended: the weights need more bytes than a tensor slot has
late 3                       operation 3 has ended without having begun: its deadline had passed
begun 3                      of what operation 3 fetches, the first tensor is there
complete 0.1                 whether all tensors are there of an expert that is being computed
prefetch 1 4 5
announce 1 4 5               the same of what the step is about to need
fill_with 0.1 1.1 0.2        whom free slots are for while nothing is computed
fill
pass 0 1 2                   need, and everything that follows until all are done
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

from tests.residency.pooled_executor import PooledExecutor, decoder_slots, make_brain, run_layer
from tests.scenarios.script import check_scenario, scenario_files
from zipmoe.errors import CorruptData, DeadlineExceeded, ResourceExhausted, ZipMoeError
from zipmoe.residency.brain import Brain
from zipmoe.residency.pools import Grid, Operations, Phase, Usable
from zipmoe.types import ExpertKey, SlotRef


class ScenarioStage:
    """A brain with decoders that obey it, and what they are told in words."""

    brain: Brain
    counts: tuple[int, int, int]

    def __init__(self) -> None:
        self.executor = PooledExecutor()
        self.epoch = 0
        self.usable: dict[ExpertKey, Usable] = {}

    def tell(self, words: list[str]) -> Iterator[str]:
        name, *rest = words
        yield from getattr(self, f"on_{name}")(*rest) or ()
        yield repr(self.brain)

    def on_brain(self, *settings: str) -> None:
        values = {"tensor": "0", "layers": "2", "experts": "8", "policy": "lru", "packed_rows": "99", "transient": "8"}
        values |= dict(setting.split("=") for setting in settings)
        self.counts = (int(values["e"]), int(values["sm"]), int(values["tensor"]))
        self.brain = make_brain(
            *self.counts,
            policy=values["policy"],
            grid=Grid(int(values["layers"]), int(values["experts"])),
            packed_rows=int(values["packed_rows"]),
            transient_slots=int(values["transient"]),
            decoders=(),
        )

    def on_join(self, name: str) -> None:
        self.epoch += 1
        self.brain.join(decoder_slots(name, *self.counts, epoch=self.epoch))

    def on_lost(self, name: str) -> Iterator[str]:
        self.executor.lose(name)
        return self.send(self.brain.lost(name))

    def on_step(self, phase: str, tokens: str) -> None:
        self.brain.step(Phase(phase), int(tokens))

    def on_need(self, layer: str, *experts: str) -> Iterator[str]:
        return self.send(self.brain.need(int(layer), rows_of(experts)))

    def on_prefetch(self, layer: str, *experts: str) -> Iterator[str]:
        return self.send(self.brain.prefetch(int(layer), map(int, experts)))

    def on_announce(self, layer: str, *experts: str) -> Iterator[str]:
        return self.send(self.brain.announce(int(layer), map(int, experts)))

    def on_fill_with(self, *experts: str) -> None:
        self.brain.fill_with([ExpertKey(*map(int, expert.split("."))) for expert in experts])

    def on_fill(self) -> Iterator[str]:
        return self.send(self.brain.fill())

    def on_usable(self) -> Iterator[str]:
        try:
            usable = self.brain.next_usable()
        except ZipMoeError as error:
            yield f"{type(error).__name__}: {error.message}"
            return
        if usable is None:
            yield "none"
            return
        self.executor.begin_use(usable)
        self.usable[usable.key] = usable
        yield f"{word(usable.key)} {usable.form.value}{'' if usable.complete else ', its first tensor'}"

    def on_done(self, expert: str) -> Iterator[str]:
        key = ExpertKey(*map(int, expert.split(".")))
        self.executor.end_use(self.usable.pop(key))
        return self.send(self.brain.done(key))

    def on_abandon(self) -> Iterator[str]:
        return self.send(self.brain.abandon())

    def on_ended(self, number: str) -> Iterator[str]:
        return self.send(self.brain.completed(int(number), self.executor.end(int(number))))

    def on_begun(self, number: str) -> None:
        self.brain.first_tensor(int(number))

    def on_complete(self, expert: str) -> Iterator[str]:
        try:
            yield str(self.brain.complete(ExpertKey(*map(int, expert.split("."))))).lower()
        except ZipMoeError as error:
            yield f"{type(error).__name__}: {error.message}"

    def on_failed(self, number: str) -> Iterator[str]:
        error = self.executor.end(int(number), CorruptData("bad checksum"))
        return self.send(self.brain.completed(int(number), error))

    def on_unfit(self, number: str) -> Iterator[str]:
        error = self.executor.end(int(number), ResourceExhausted("needs more bytes"))
        return self.send(self.brain.completed(int(number), error))

    def on_late(self, number: str) -> Iterator[str]:
        error = self.executor.end(int(number), DeadlineExceeded("too late"))
        return self.send(self.brain.completed(int(number), error))

    def on_pass(self, layer: str, *experts: str) -> Iterator[str]:
        order = run_layer(self.brain, self.executor, int(layer), rows_of(experts))
        yield "computed: " + " ".join(f"{expert} {form.value}" for expert, form in order)

    def on_counters(self) -> Iterator[str]:
        counters = self.brain.counters
        for name in ("hits", "misses", "evictions", "guesses"):
            counted = getattr(counters, name).items()
            yield " ".join([f"{name}:", *(f"{described(what)}={count}" for what, count in counted if count)])
        yield f"recoveries: {counters.recoveries}, of them promotions: {counters.promotions}"

    def send(self, operations: Operations) -> Iterator[str]:
        self.executor.send(operations)
        for operation_id in operations.cancels:
            yield f"cancel {operation_id}"
        for pool, slot in operations.releases:
            yield f"release {pool.value}{place(slot)}"
        for read in operations.reads:
            into = " ".join(f"{name}{place(ref)}" for name, ref in (("e", read.e_slot), ("sm", read.sm_slot)) if ref)
            yield f"{read.operation_id}: read {word(read.key)} into {into}, {read.urgency.name.lower()}"
        for each in operations.recoveries:
            into = f"tensor{place(each.tensor_slot)}"
            yield f"{each.operation_id}: recover {word(each.key)} into {into}, {each.urgency.name.lower()}"


def described(what: Enum | tuple[Enum, ...]) -> str:
    return "-".join(str(each.value) for each in (what if isinstance(what, tuple) else (what,)))


def rows_of(experts: tuple[str, ...]) -> dict[int, int]:
    pairs = (expert.partition("x") for expert in experts)
    return {int(expert): int(rows or 1) for expert, _, rows in pairs}


def word(key: ExpertKey) -> str:
    return f"{key.layer}.{key.expert}"


def place(ref: SlotRef) -> str:
    return f"[{ref.slot}]@{ref.owner_id}"


@pytest.mark.parametrize("path", scenario_files("brain"), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    stage = ScenarioStage()
    check_scenario(path, stage.tell)


def test_there_are_scenarios() -> None:
    assert len(scenario_files("brain")) >= 8
