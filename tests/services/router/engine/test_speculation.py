"""Drafted tokens change the number of passes, and nothing else."""

from __future__ import annotations

import pytest

from tests.model.conftest import TwinOf
from tests.services.router.engine.test_engine import prompt, stock_answer
from tests.services.router.serving import ServingEngine
from zipmoe.model.passes import ragged
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.services.router.engine.request import EndReason, RequestFinished, RequestToken

PAGED = ("qwen2_moe", "gpt_oss", "deepseek_v2", "glm4_moe")
REPEATING = [7, 8, 9, 10, 11] * 8
"""A prompt that repeats itself: there is something to draft from the first row on."""


def finished(client: object) -> RequestFinished:
    last = client.seen[-1]  # type: ignore[attr-defined]
    assert isinstance(last, RequestFinished)
    return last


@pytest.mark.parametrize("drafts", ["auto", 1, 3, 15])
@pytest.mark.parametrize("family", PAGED)
def test_greedy_answers_are_those_of_stock(family: str, drafts: object, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    prompts = [prompt(40, 40), REPEATING, prompt(5, 3)]
    with ServingEngine(twin, speculate=drafts) as serving:
        clients = [serving.ask(each, 40) for each in prompts]
        for client, ids in zip(clients, prompts, strict=True):
            assert client.answer() == stock_answer(twin.stock, ids, 40)
        if drafts != "auto":
            assert serving.metric("zipmoe_drafted_tokens_total", source="match") > 0
            assert serving.metric("zipmoe_drafted_tokens_accepted_total", source="match") > 0  # they repeat themselves


@pytest.mark.parametrize("seed", range(4))
def test_seeded_answers_are_those_without_drafts(seed: int, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    sampling = SamplingParams(temperature=0.05 + 0.3 * seed, top_k=3, repetition_penalty=1.05, seed=seed)
    answers = []
    for drafts in ("off", 4, 15):
        with ServingEngine(twin, speculate=drafts) as serving:
            client = serving.ask(REPEATING, 48, sampling=sampling)
            answers.append(client.answer())
            drafted = finished(client).drafted_tokens
            assert bool(drafted) == (drafts != "off")
            assert drafted == serving.metric("zipmoe_drafted_tokens_total", source="match")
    assert answers[1:] == answers[:1] * 2


def test_accepted_drafts_save_passes_and_are_told_in_usage(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    with ServingEngine(twin, speculate=7) as serving:
        client = serving.ask(prompt(40, 40), 64)
        client.answer()
        usage = finished(client)
        passes = sum(1 for phase, _ in serving.experts.passes if phase.value == "decode")
        assert usage.generated_tokens == 64
        assert 0 < usage.accepted_tokens < usage.drafted_tokens
        assert passes == 63 - usage.accepted_tokens
        assert serving.metric("zipmoe_generated_tokens_total") == 64


def test_an_answer_ends_at_its_end_among_accepted_drafts(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    with ServingEngine(twin, speculate=15) as serving:
        whole = [token for token, _ in serving.ask(prompt(40, 40), 64).answer()]
        for stop in sorted({whole.index(token) for token in whole} - {0}):
            client = serving.ask(prompt(40, 40), 64, stop_token_ids=frozenset({whole[stop]}))
            assert [token for token, _ in client.answer()] == whole[: stop + 1]
            assert finished(client).reason is EndReason.STOP
        for length in range(1, 20):
            client = serving.ask(prompt(40, 40), length)
            assert [token for token, _ in client.answer()] == whole[:length]
            assert finished(client).reason is EndReason.LENGTH


def test_forced_tokens_are_verified_as_chosen_ones(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    forced = tuple(REPEATING[:30])
    answers = []
    for drafts in ("off", 9):
        with ServingEngine(twin, speculate=drafts) as serving:
            client = serving.ask(REPEATING, 30, forced_token_ids=forced)
            answers.append(client.answer())
    assert answers[0] == answers[1]
    assert [token for token, _ in answers[1]] == list(forced)
    assert finished(client).accepted_tokens >= 20


def test_requests_are_preempted_and_cancelled_amid_drafts(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    prompts = [prompt(20, seed) for seed in (1, 2, 3)]
    with ServingEngine(twin, speculate="off") as serving:
        wanted = [serving.ask(each, 60).answer() for each in prompts]
    with ServingEngine(twin, speculate=15, kv_tokens=128, max_prompt_tokens=64) as serving:
        gone = serving.ask(REPEATING, 60)
        clients = [serving.ask(each, 60) for each in prompts]
        gone.token()
        serving.engine.cancel(gone.request)
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0


def test_a_later_request_adopts_no_rejected_row(twin_of: TwinOf) -> None:
    """Pages of an answer with rejected drafts serve the next turn with the bits of an answer without drafts."""
    twin = twin_of("qwen2_moe")
    second = []
    for drafts in ("off", 15):
        with ServingEngine(twin, speculate=drafts, reuse_answers=True) as serving:
            first = serving.ask(REPEATING, 60)
            told = [
                event.choice.token_id for event in (first.answer() and first.seen) if isinstance(event, RequestToken)
            ]
            client = serving.ask([*REPEATING, *told, 5, 6, 7, 5, 6], 20)
            second.append(client.answer())
            assert finished(client).reused_tokens > len(REPEATING)
    assert second[0] == second[1]


def test_families_without_pages_do_not_speculate(twin_of: TwinOf) -> None:
    twin = twin_of("granitemoehybrid")
    with ServingEngine(twin, speculate=4) as serving:
        assert not serving.stepper.drafts
        client = serving.ask(REPEATING, 30)
        client.answer()
        assert finished(client).drafted_tokens == 0


def test_passes_with_a_frequent_number_of_rows_are_recorded_while_requests_run(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "WORTH_RECORDING", 5)
    twin = twin_of("qwen2_moe")
    prompts = [prompt(20, seed) for seed in (1, 2, 3)]
    with ServingEngine(twin) as serving:
        clients = [serving.ask(each, 40) for each in prompts]
        for client, ids in zip(clients, prompts, strict=True):
            assert client.answer() == stock_answer(twin.stock, ids, 40)
        program = serving.ragged.row_programs[3]
        assert program is not None
        assert program.passes > 20
    with ServingEngine(twin, kv_tokens=128, max_prompt_tokens=64) as serving:  # too few free pages for a proof
        clients = [serving.ask(each, 40) for each in prompts]
        assert all(len(client.answer()) == 40 for client in clients)
        assert 3 not in serving.ragged.row_programs
