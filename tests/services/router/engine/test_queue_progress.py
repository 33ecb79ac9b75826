"""A request that asks for it is told its place in the queue and how much of its prompt is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.model.conftest import Twin, TwinOf
from tests.model.tiny import VOCABULARY
from tests.services.router.serving import Client, ServingEngine, without_pages
from zipmoe.services.router.engine.request import RequestProgress, RequestStarted

on_both_paths = pytest.mark.parametrize("path", [lambda twin: twin, without_pages], ids=["pages", "joined"])
Path = Callable[[Twin], Twin]


def prompt(length: int, seed: int = 1) -> list[int]:
    return [3 + (seed * 31 + place * 7) % (VOCABULARY - 3) for place in range(length)]


def told(client: Client) -> Sequence[RequestProgress]:
    """All progress of a request that has ended; it comes before the start."""
    kinds = [type(event) for event in client.seen]
    begin = kinds.index(RequestStarted)
    assert set(kinds[:begin]) <= {RequestProgress} and RequestProgress not in kinds[begin:]
    return [event for event in client.seen if isinstance(event, RequestProgress)]


def test_a_request_is_told_its_place_as_soon_as_it_is_queued(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"), max_running=16)
    clients = [serving.ask(prompt(5, seed), 4, wants_progress=True) for seed in range(17)]
    # No step has been computed and none is: the model thread has not begun.
    assert [client.next() for client in clients] == [RequestProgress(place, 0, 5) for place in range(1, 18)]
    with serving:
        for client in clients:
            client.answer()
    places = [progress.queue_position for progress in told(clients[16])]
    assert places == sorted(places, reverse=True)
    assert {places[0], places[-1]} == {17, 0} and 1 in places, "it waits for the end of one of sixteen"


@on_both_paths
def test_a_request_is_told_how_much_of_its_prompt_is_computed(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe")), prefill_rows=16) as serving:
        client = serving.ask(prompt(64), 1, wants_progress=True)
        client.answer()
    done = [progress.prompt_tokens_done for progress in told(client)]
    assert done[0] == 0 and done == sorted(done)
    assert any(0 < each < 64 for each in done)
    assert {progress.prompt_tokens for progress in told(client)} == {64}


def test_adopted_tokens_count_as_done(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe"), reuse_answers=True) as serving:
        serving.ask(prompt(64), 1).answer()
        client = serving.ask(prompt(64), 1, wants_progress=True)
        client.answer()
    assert max(progress.prompt_tokens_done for progress in told(client)) >= 32


@on_both_paths
def test_a_preempted_answer_gets_no_progress_after_its_start(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe")), kv_tokens=96, max_prompt_tokens=64) as serving:
        clients = [serving.ask(prompt(30, seed), 40, wants_progress=True) for seed in range(3)]
        for client in clients:
            client.answer()
        assert serving.metric("zipmoe_preemptions_total") > 0
    assert all(told(client) for client in clients)


def test_a_request_that_does_not_ask_is_told_nothing(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe")) as serving:
        client = serving.ask(prompt(20), 2)
        client.answer()
    assert not told(client)
