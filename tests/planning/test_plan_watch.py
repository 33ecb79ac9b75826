from __future__ import annotations

import numpy as np

from tests.planning.costs import MB, make_costs
from tests.planning.test_popularity import drawn, zipf
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.plan import PlanRequest
from zipmoe.planning.plan_watch import CHECK_STEPS, PlanWatch
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.popularity import Popularity

EXPERTS, CHOSEN = 40, 4
EXPERT = ExpertBytes(3 * MB, 9 * MB, 18 * MB)


class ServedSteps:
    """A watch over two layers, and the steps at which a plan was due."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(8)
        self.rates = [zipf(self.rng, EXPERTS), zipf(self.rng, EXPERTS)]
        self.popularity = Popularity([EXPERTS, EXPERTS])
        inclusion = [self.popularity.inclusion(layer, CHOSEN) for layer in (0, 1)]
        self.request: PlanRequest | None = PlanRequest(inclusion, make_costs(), EXPERT, PoolSizes(*EXPERT))
        self.watch = PlanWatch(self.popularity, self.request, [0, 1])
        self.due: list[int] = []
        self.steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.steps += 1
            for layer, rates in enumerate(self.rates):
                self.popularity.used(layer, drawn(self.rng, rates, CHOSEN))
            if (request := self.watch.step_ended()) is not None:
                self.due.append(self.steps)
                self.request = request


def test_a_first_plan_is_due_once_there_are_statistics_and_then_when_they_have_doubled() -> None:
    served = ServedSteps()
    served.run(2000)
    first, second, *more = served.due
    assert 64 <= first <= 64 + 2 * CHECK_STEPS
    assert 1.9 * first <= second <= 3 * first
    assert len(more) <= 1  # decayed statistics stop growing
    assert served.request is not None
    for inclusion, rates in zip(served.request.inclusion, served.rates, strict=True):
        assert inclusion.argmax() == rates.argmax()


def test_a_shift_of_one_layer_makes_a_plan_due_that_knows_the_new_favourites() -> None:
    served = ServedSteps()
    served.run(1000)
    planned = len(served.due)
    served.rates[1] = zipf(served.rng, EXPERTS)
    served.run(4 * CHECK_STEPS)
    assert len(served.due) > planned
    assert served.request is not None
    favourites = np.argsort(-served.rates[1])[:3]
    assert set(np.argsort(-served.request.inclusion[1])[:6]) >= {int(expert) for expert in favourites[:2]}
    assert served.request.inclusion[0].argmax() == served.rates[0].argmax()


def test_steps_that_use_more_experts_are_planned_for_as_such() -> None:
    served = ServedSteps()
    served.run(10)
    for _ in range(600):
        for layer in (0, 1):
            served.popularity.used(layer, range(9))
        served.request = served.watch.step_ended() or served.request
    assert served.request is not None
    assert [round(float(inclusion.sum())) for inclusion in served.request.inclusion] == [9, 9]
