"""Several answers to one prompt: the prompt is computed once, and each answer is that of a request of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial

import pytest

from tests.model.conftest import Twin, TwinOf
from tests.model.tiny import RECURRENT
from tests.services.router.engine.test_engine import prompt, with_pages
from tests.services.router.serving import WAIT_S, ServingEngine, without_pages
from zipmoe.model.probe.result import ComputePath
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.residency.pools import Phase
from zipmoe.services.router.choices import Choices
from zipmoe.services.router.engine.request import (
    EndReason,
    Event,
    GenerationSpec,
    Request,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    RequestToken,
)
from zipmoe.services.router.experts.read_account import ExpertUsage

SAMPLED = SamplingParams(temperature=1.0, seed=2**64 - 2)
Answer = list[tuple[int, float | None]]


def ask_for(serving: ServingEngine, spec: GenerationSpec, count: int) -> tuple[list[Answer], list[Event]]:
    """The answers to one request for several, and its last events."""
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def emit(event: Event, choice: int) -> None:
        events.put((choice, event))

    requests = [Request(spec.of_choice(number), partial(emit, choice=number)) for number in range(count)]
    requests[0].followers = requests[1:]
    serving.engine.submit(requests[0])
    answers: list[Answer] = [[] for _ in range(count)]
    ends: list[Event] = []
    first = True
    while len(ends) < count:
        number, event = events.get(timeout=WAIT_S)
        assert not first or (number, type(event)) == (0, RequestStarted)
        first = False
        if isinstance(event, RequestToken):
            answers[number].append((event.choice.token_id, event.choice.logprob))
        elif isinstance(event, RequestFinished | RequestFailed):
            ends.append(event)
    return answers, ends


def spec_of(length: int, answer: int, sampling: SamplingParams = SAMPLED) -> GenerationSpec:
    return GenerationSpec("request", tuple(prompt(length)), sampling, answer, top_logprobs=0)


def alone(serving: ServingEngine, spec: GenerationSpec, number: int) -> Answer:
    sampling = spec.of_choice(number).sampling
    return serving.ask(spec.prompt_ids, spec.max_new_tokens, sampling=sampling).answer()


@pytest.mark.parametrize(
    ("family", "path", "compute"),
    [
        ("qwen2_moe", with_pages, ComputePath.SHARED),
        ("qwen2_moe", without_pages, ComputePath.JOINED),
        ("deepseek_v2", without_pages, ComputePath.IN_TURN),
        (next(iter(RECURRENT)), without_pages, ComputePath.JOINED),
        ("switch_transformers", with_pages, ComputePath.SHARED),
    ],
)
@pytest.mark.parametrize("length", [41, 64])
def test_each_answer_is_that_of_a_request_alone_and_the_prompt_is_computed_once(
    family: str, path: Callable[[Twin], Twin], compute: ComputePath, length: int, twin_of: TwinOf
) -> None:
    twin, spec = path(twin_of(family)), spec_of(length, 10)
    with ServingEngine(twin, compute) as serving:
        wanted = [alone(serving, spec, number) for number in range(3)]
        before = serving.metric("zipmoe_prompt_tokens_total")
        assert before > 0
        answers, ends = ask_for(serving, spec, 3)
        computed = serving.metric("zipmoe_prompt_tokens_total") - before
        assert serving.metric("zipmoe_kv_pages", state="used") == 0
    assert answers == wanted
    assert len({tuple(answer) for answer in answers}) == 3, "each draws with a seed of its own"
    assert computed <= length
    assert [end.reused_tokens for end in ends if isinstance(end, RequestFinished)].count(length) == 2


@pytest.mark.parametrize("path", [with_pages, without_pages])
def test_answers_without_room_wait_and_are_the_same(path: Callable[[Twin], Twin], twin_of: TwinOf) -> None:
    twin, spec = path(twin_of("qwen2_moe")), spec_of(40, 30)
    with ServingEngine(twin) as serving:
        wanted = [alone(serving, spec, number) for number in range(5)]
    compute = ComputePath.SHARED if path is with_pages else ComputePath.JOINED
    with ServingEngine(twin, compute, max_running=2) as serving:
        assert ask_for(serving, spec, 5)[0] == wanted
    with ServingEngine(twin, compute, kv_tokens=160, max_prompt_tokens=64) as serving:  # 5 pages for 5 x 3
        assert ask_for(serving, spec, 5)[0] == wanted
        assert serving.metric("zipmoe_kv_pages", state="used") == 0


def test_answers_that_only_score_end_at_once(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe")) as serving:
        answers, ends = ask_for(serving, spec_of(20, 0), 3)
        assert answers == [[], [], []]
        assert all(isinstance(end, RequestFinished) for end in ends)
        assert Phase.DECODE not in [phase for phase, _ in serving.experts.passes]


def test_a_prompt_that_fails_ends_all_its_answers(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe")) as serving:
        serving.experts.broken = {(layer, expert) for layer in range(8) for expert in range(64)}
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        spec = spec_of(20, 4)
        request = Request(spec, events.put, followers=[Request(spec.of_choice(1), events.put)])
        serving.engine.submit(request)
        assert isinstance(events.get(timeout=WAIT_S), RequestFailed)
        serving.experts.broken = set()
        serving.ask(prompt(20), 3).answer()
        assert events.empty()


def finished(tokens: int) -> RequestFinished:
    return RequestFinished(EndReason.STOP, "", 3, tokens, 0.0, 0.0, ExpertUsage(), 0, 0)


def token(logprob: float) -> RequestToken:
    from zipmoe.model.text.sampling import Choice

    return RequestToken(Choice(5, logprob), "x")


def test_the_likeliest_answers_come_best_first_when_all_are_complete() -> None:
    spec = GenerationSpec("request", (1,), SAMPLED, 9, choices=2, best_of=3)
    choices = Choices(spec)
    given: list[tuple[int, RequestStarted | RequestToken | RequestFinished]] = [
        (0, RequestStarted(1, None)),
        (0, token(-3.0)),
        (1, RequestStarted(1, None)),
        (1, token(-2.0)),
        (2, token(-1.0)),
        (1, finished(1)),
        (2, token(-2.0)),
        (0, finished(1)),
    ]
    seen = [event for number, each in given for event in choices.take(number, each)]
    assert [(each.choice, type(each.event)) for each in seen] == [(0, RequestStarted)]
    assert not choices.complete
    best = list(choices.take(2, finished(2)))
    assert choices.complete
    logprobs = [(each.choice, each.event.choice.logprob) for each in best if isinstance(each.event, RequestToken)]
    assert logprobs == [(0, -1.0), (0, -2.0), (1, -2.0)]
    assert [each.discarded_tokens for each in best if isinstance(each.event, RequestFinished)] == [1, 0]
