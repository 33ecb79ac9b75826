"""Replays a routing trace under a cache policy, through the serving brain and on a simulated machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from zipmoe.planning.costs import Costs
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.brain import Brain, BrainSettings
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.policies.belady import BeladyPolicy
from zipmoe.residency.policies.registry import create_policy, policy_names
from zipmoe.residency.pools import DecoderSlots, Grid, Phase, Pool, PoolSlots
from zipmoe.residency.scheduler import Scheduler, make_scheduler
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import TensorCosts
from zipmoe.simulation.simulated_machine import SimulatedMachine
from zipmoe.simulation.trace import RoutedPass, selections_per_token

E_CHUNKS = 4


@dataclass(frozen=True)
class ReplaySetup:
    """Conditions of a replay: model, slots, machine and scheduler.

    Attributes:
        grid: the experts of the model.
        slots: slots of each pool.
        costs: measured costs of the machine.
        expert: bytes of an expert.
        scheduler: `block` or `fifo`.
        transient_slots: as in `BrainSettings`.
        seed: seed of policies that draw at random.
    """

    grid: Grid
    slots: PoolSizes
    costs: Costs
    expert: ExpertBytes
    scheduler: str = "block"
    transient_slots: int = 8
    seed: int = 0


@dataclass(frozen=True)
class SimulationOutcome:
    """Result of a replay. All figures but `prefill_misses` count decode steps only.

    Attributes:
        policy: name of the policy.
        misses: needed experts that had to be read, in whole or in part.
        prefill_misses: the same for prefills.
        bytes_read: bytes read from disk.
        stall_s: seconds that the model's thread waited for experts.
        tpot_s: seconds per step.
        step_misses: misses of each step.
    """

    policy: str
    misses: int
    prefill_misses: int
    bytes_read: int
    stall_s: float
    tpot_s: float
    step_misses: tuple[int, ...]


def simulated_policy_names() -> tuple[str, ...]:
    """Returns the names of all policies that can be simulated. Belady's policy, the bound, comes last."""
    return (*policy_names(), BeladyPolicy.name)


def simulate(passes: Sequence[RoutedPass], policy_name: str, setup: ReplaySetup) -> SimulationOutcome:
    """Replays a trace under a policy.

    Args:
        passes: the trace, at least one pass.
        policy_name: one of `simulated_policy_names()`.
        setup: conditions of the replay.

    Raises:
        InvalidRequest: there is no such policy or scheduler, or no slot for chunks.

    Cost: 0.1 to 0.3 ms a pass.
    """
    policy = _policy(policy_name, passes, setup)
    settings = BrainSettings(1 << 30 if setup.costs.packed_ffn else 0, setup.transient_slots)
    brain = Brain(policy, _scheduler(setup), settings)
    brain.join(
        DecoderSlots(
            "simulated",
            setup.costs.worker_count,
            [PoolSlots(pool, "simulated", 1, count, 1) for pool, count in zip(Pool, setup.slots, strict=True)],
        )
    )
    machine = SimulatedMachine(setup.costs, setup.expert)
    replay = _Replay(brain, machine, setup.costs, setup.expert, selections_per_token(passes))
    nbytes, seconds, stall_s = 0, 0.0, 0.0
    step_misses: list[int] = []
    for _, step in groupby(passes, key=lambda routed: routed.step):
        before, begin_s, misses = machine.bytes_read, machine.now_s, brain.counters.missed(Phase.DECODE)
        phase, step_stall_s = replay.step(step)
        if phase is Phase.DECODE:
            nbytes += machine.bytes_read - before
            seconds += machine.now_s - begin_s
            stall_s += step_stall_s
            step_misses.append(brain.counters.missed(Phase.DECODE) - misses)
    return SimulationOutcome(
        policy=policy_name,
        misses=brain.counters.missed(Phase.DECODE),
        prefill_misses=brain.counters.missed(Phase.PREFILL),
        bytes_read=nbytes,
        stall_s=stall_s,
        tpot_s=seconds / max(len(step_misses), 1),
        step_misses=tuple(step_misses),
    )


class _Replay:
    """Drives the brain and the machine through the passes of a trace, as the model's thread of the router does."""

    def __init__(
        self, brain: Brain, machine: SimulatedMachine, costs: Costs, expert: ExpertBytes, selections: int
    ) -> None:
        self._brain = brain
        self._machine = machine
        self._costs = costs
        self._copy_s = costs.copy_s(expert.tensor)
        self._selections = selections

    def step(self, passes: Iterator[RoutedPass]) -> tuple[Phase, float]:
        """Runs a step; returns the phase and the seconds that the model's thread waited for experts."""
        phase, stall_s = None, 0.0
        for routed in passes:
            if phase is None:
                phase = routed.phase
                self._brain.step(phase, routed.tokens)
            stall_s += self._pass(routed)
        assert phase is not None
        return phase, stall_s

    def _pass(self, routed: RoutedPass) -> float:
        brain, machine, costs = self._brain, self._machine, self._costs
        machine.compute(costs.dense.seconds(routed.tokens))
        # A trace does not record the rows of each expert, so all experts get the average.
        rows = max(1, round(routed.tokens * self._selections / len(routed.experts)))
        machine.submit(brain.need(routed.layer, dict.fromkeys(routed.experts, rows)))
        left, stall_s = len(routed.experts), 0.0
        while left:
            for operation_id, error in machine.take_finished():
                machine.submit(brain.completed(operation_id, error))
            usable = brain.next_usable()
            if usable is None:
                asleep_s = machine.now_s
                machine.wait()
                stall_s += machine.now_s - asleep_s
                continue
            seconds = costs.ffn_s(usable.form, rows)
            machine.compute(max(seconds, self._copy_s) if usable.form is Residency.FULL else seconds)
            machine.submit(brain.done(usable.key))
            left -= 1
        return stall_s


def _policy(name: str, passes: Sequence[RoutedPass], setup: ReplaySetup) -> Policy:
    if name == BeladyPolicy.name:
        return BeladyPolicy(setup.grid, ((routed.layer, routed.experts, routed.phase) for routed in passes))
    return create_policy(name, setup.grid, seed=setup.seed)


def _scheduler(setup: ReplaySetup) -> Scheduler:
    costs, expert = setup.costs, setup.expert
    packed = costs.packed_ffn or costs.full_ffn
    tensor = TensorCosts(
        e_read_s=costs.channel_s(expert.e),
        sm_read_s=costs.channel_s(expert.sm),
        recover_s=costs.recover_s(expert.tensor),
        chunk_count=E_CHUNKS,
        full_s=costs.full_ffn.first_s,
        packed_s=packed.first_s,
        full_row_s=costs.full_ffn.per_row_s,
        packed_row_s=packed.per_row_s,
    )
    return make_scheduler(setup.scheduler, (tensor,), costs.worker_count, shares_cores=costs.shares_cores)
