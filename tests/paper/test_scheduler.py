"""The schedule of a layer's fetches: what each residency state leaves to do, and how far from the optimum it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.residency.schedules import costs, lower_bound_s, optimum_s, requests_in
from zipmoe.residency.scheduler import BlockScheduler, FifoScheduler, Scheduler
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import Task, TensorCosts, WorkKind, tasks_of
from zipmoe.simulation.timeline import Timeline, simulate_schedule
from zipmoe.types import Part

ABSENT, E_ONLY, SM_ONLY, PACKED, FULL = Residency
#: Two tensors in two E-chunks each; a product straight from the chunks takes twice as long.
EXPERT = (TensorCosts(2, 6, 4, 2, 1, 2), TensorCosts(1, 3, 2, 2, 0.5, 1))


def name(task: Task) -> str:
    """A task in a word: `E0.1` reads E-chunk 1 of tensor 0, `R0.1` recovers it, `P0` is the product of tensor 0."""
    if task.work is WorkKind.PRODUCT:
        return f"P{task.tensor}"
    if task.part is Part.SM:
        return f"SM{task.tensor}"
    return f"{'E' if task.part is Part.E else 'R'}{task.tensor}.{task.chunk}"


def graph(state: Residency, form: Residency = FULL) -> dict[str, str]:
    """The tasks of a request in order, each with those that it waits for."""
    tasks = tasks_of(state, form, 1, EXPERT).tasks
    return {name(task): " ".join(name(tasks[index]) for index in task.after) for task in tasks}


def names_on(work: WorkKind, state: Residency, form: Residency = FULL) -> list[str]:
    return [name(task) for task in tasks_of(state, form, 1, EXPERT).tasks if task.work is work]


def run(scheduler: Scheduler, requests: list, expert: tuple[TensorCosts, ...], worker_count: int) -> Timeline:
    return simulate_schedule(scheduler.order(requests), expert, worker_count)


class TestTasks:
    def test_an_absent_expert_reads_both_parts_and_recovers_each_chunk(self) -> None:
        """Recovery k of K needs E-chunk k and the SM-chunk, nothing else. Source: tasks by compression state."""
        assert graph(ABSENT) == {
            **dict.fromkeys(["E0.0", "E0.1", "E1.0", "E1.1", "SM0", "SM1"], ""),
            "R0.0": "E0.0 SM0",
            "R0.1": "E0.1 SM0",
            "P0": "R0.0 R0.1",
            "R1.0": "E1.0 SM1",
            "R1.1": "E1.1 SM1",
            "P1": "R1.0 R1.1 P0",
        }

    def test_an_expert_with_its_exponents_reads_only_sm_chunks(self) -> None:
        """All recoveries of a tensor wait for its SM-chunk alone. Source: tasks by compression state."""
        assert names_on(WorkKind.READ, E_ONLY) == ["SM0", "SM1"]
        assert [graph(E_ONLY)[name] for name in ("R0.0", "R0.1", "R1.0", "R1.1")] == ["SM0", "SM0", "SM1", "SM1"]

    def test_an_expert_with_its_signs_and_mantissas_reads_only_e_chunks(self) -> None:
        """Each recovery waits for its own E-chunk, so they begin one by one. Source: tasks by compression state."""
        assert names_on(WorkKind.READ, SM_ONLY) == ["E0.0", "E0.1", "E1.0", "E1.1"]
        assert [graph(SM_ONLY)[name] for name in ("R0.0", "R0.1", "R1.0", "R1.1")] == ["E0.0", "E0.1", "E1.0", "E1.1"]

    def test_a_packed_expert_is_only_recovered(self) -> None:
        """It keeps the workers busy and the channel free. Source: tasks by compression state."""
        recoveries = dict.fromkeys(["R0.0", "R0.1", "R1.0", "R1.1"], "")
        assert graph(PACKED) == {**recoveries, "P0": "R0.0 R0.1", "P1": "R1.0 R1.1 P0"}

    def test_a_full_expert_is_only_computed(self) -> None:
        """A cache hit costs neither channel nor workers anything. Source: tasks by compression state."""
        assert graph(FULL) == {"P0": "", "P1": "P0"}

    @pytest.mark.parametrize("state", [ABSENT, E_ONLY, SM_ONLY, PACKED])
    def test_an_expert_that_is_computed_from_its_chunks_is_not_recovered(self, state: Residency) -> None:
        """Beyond the paper: the product itself needs the chunks, in any state. Source: tasks by compression state."""
        assert names_on(WorkKind.RECOVERY, state, PACKED) == []
        read = [each for each in names_on(WorkKind.READ, state, PACKED) if each.startswith(("E0", "SM0"))]
        assert graph(state, PACKED)["P0"] == " ".join(read)


class TestBound:
    @pytest.mark.parametrize("scheduler", ["block", "fifo"])
    @given(
        expert=costs(max_tensors=1, max_chunks=3) | costs(max_tensors=2, max_chunks=1),
        states=st.lists(st.sampled_from(list(Residency)), min_size=1, max_size=3),
        workers=st.integers(1, 3),
    )
    @settings(max_examples=150)
    def test_the_makespan_is_within_3_minus_1_over_l_of_the_optimum(
        self, scheduler: str, expert: tuple[TensorCosts, ...], states: list[Residency], workers: int
    ) -> None:
        """Small instances, against exhaustive search. Source: approximation ratio of block list-scheduling."""
        requests = requests_in(*states)
        chosen = BlockScheduler(expert, workers) if scheduler == "block" else FifoScheduler()
        fetched_s, optimum = run(chosen, requests, expert, workers).fetched_s, optimum_s(requests, expert, workers)
        assert lower_bound_s(requests, expert, workers) <= optimum <= fetched_s <= (3 - 1 / workers) * optimum

    @given(
        expert=costs(max_tensors=2, max_chunks=8),
        states=st.lists(st.sampled_from(list(Residency)), min_size=8, max_size=60),
        workers=st.integers(1, 16),
    )
    @settings(max_examples=60)
    def test_large_instances_stay_within_the_bound_of_what_no_schedule_can_beat(
        self, expert: tuple[TensorCosts, ...], states: list[Residency], workers: int
    ) -> None:
        """Against the channel's, the workers' and the longest chain's time. Source: approximation ratio."""
        requests = requests_in(*states)
        fetched_s = run(BlockScheduler(expert, workers), requests, expert, workers).fetched_s
        assert fetched_s <= (3 - 1 / workers) * lower_bound_s(requests, expert, workers)


class TestBlocks:
    """Which pairs are formed; `SLOW` takes one worker as long to recover as the channel to read."""

    SLOW = (TensorCosts(1, 3, 4, 4),)

    def test_pairing_hides_the_channels_work_behind_the_workers(self) -> None:
        """Fifo leaves the worker idle at the begin, blocks hardly ever. Source: block list-scheduling."""
        requests = requests_in(*[ABSENT] * 4, *[SM_ONLY] * 4)
        work_s = 8 * 4.0
        # The first E-chunk, or all that an absent expert misses, has to come before the first recovery.
        assert run(BlockScheduler(self.SLOW, 1), requests, self.SLOW, 1).fetched_s == work_s + 0.25
        assert run(FifoScheduler(), requests, self.SLOW, 1).fetched_s == work_s + 4

    def test_a_block_reads_heavy_requests_while_the_work_of_light_ones_lasts(self) -> None:
        """Two recoveries of 4 s give time for a read of 6 s, a third for another. Source: block list-scheduling."""
        requests = requests_in(ABSENT, ABSENT, SM_ONLY, ABSENT, SM_ONLY, SM_ONLY)
        ordered = BlockScheduler((TensorCosts(1, 5, 4, 4),), 1).order(requests)
        blocks = [SM_ONLY, SM_ONLY, ABSENT, SM_ONLY, ABSENT, ABSENT]
        assert [request.state for request in ordered] == blocks
        assert [request.key.expert for request in ordered] == [2, 4, 0, 5, 1, 3]

    def test_resident_experts_are_computed_while_others_load(self) -> None:
        """The model works on hits from the first moment on. Source: cache-affinity scheduling."""
        expert = (TensorCosts(1, 3, 1, 1, 2),)
        timeline = run(BlockScheduler(expert, 1), requests_in(ABSENT, FULL, ABSENT, FULL), expert, 1)
        computed_s = {span.key: span.end_s for span in timeline.spans if span.task.work is WorkKind.PRODUCT}
        assert sorted((computed_s[key], key.expert) for key in computed_s) == [(2, 1), (4, 3), (7, 0), (11, 2)]
        assert timeline.stall_s == 3  # 8 s of products, of which 4 hide reads

    def test_the_product_of_gate_and_up_begins_before_down_has_been_read(self) -> None:
        """Tensors of one expert are tasks of their own. Source: intra-layer pipeline."""
        timeline = run(BlockScheduler(EXPERT, 1), requests_in(ABSENT), EXPERT, 1)
        begin_s = {name(span.task): span.begin_s for span in timeline.spans}
        end_s = {name(span.task): span.end_s for span in timeline.spans}
        assert begin_s["R0.0"] < end_s["SM1"]
        assert begin_s["P0"] < end_s["R1.1"]
