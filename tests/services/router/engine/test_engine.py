"""Requests that run at once: each answers as if it were alone, and none keeps another from it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.model.conftest import Twin, TwinOf
from tests.model.tiny import RECURRENT, VOCABULARY
from tests.services.router.serving import WAIT_S, ServingEngine, without_pages
from zipmoe.errors import CorruptData, DeadlineExceeded, InvalidRequest, ResourceExhausted, Unavailable
from zipmoe.model.probe.result import ComputePath
from zipmoe.process.config import parse_config
from zipmoe.residency.pools import Phase
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.engine.request import Event, RequestFinished, RequestStarted, RequestToken

PAPER_FAMILIES = ("qwen2_moe", "deepseek_v2", "switch_transformers")
Path = Callable[[Twin], Twin]


def with_pages(twin: Twin) -> Twin:
    """The model as it is, for an engine over KV pages."""
    return twin


on_both_paths = pytest.mark.parametrize("path", [with_pages, without_pages])


def prompt(length: int, seed: int = 1) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCABULARY) for _ in range(length)]


def stock_answer(model: PreTrainedModel, token_ids: list[int], count: int) -> list[tuple[int, float]]:
    ids = torch.tensor([token_ids])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=-1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, -count:].tolist()
    scores = [torch.log_softmax(logits[0].float(), -1) for logits in output.logits]
    return [(token, float(score[token])) for token, score in zip(tokens, scores, strict=True)]


@pytest.mark.parametrize("family", PAPER_FAMILIES)
def test_requests_that_run_at_once_answer_as_stock_does(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    prompts = [prompt(length, length) for length in (40, 7, 90, 1, 23, 64)]
    wanted = [stock_answer(twin.stock, ids, 12) for ids in prompts]
    with ServingEngine(twin, max_running=4, prefill_rows=32) as serving:
        clients = [serving.ask(ids, 12) for ids in prompts]
        assert [client.answer() for client in clients] == wanted
        decoding = [rows for phase, rows in serving.experts.passes if phase is Phase.DECODE]
        assert max(decoding) == 4
        hits = [client.seen[-1].experts.hits for client in clients]  # type: ignore[union-attr]
        assert sum(hits) == serving.experts.usage.hits
    assert serving.metric("zipmoe_kv_pages", state="used") == 0


@pytest.mark.parametrize("family", PAPER_FAMILIES)
def test_requests_that_run_out_of_pages_are_computed_again_and_answer_the_same(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    prompts = [prompt(30, seed) for seed in range(4)]
    with ServingEngine(twin) as serving:
        wanted = [serving.ask(ids, 40).answer() for ids in prompts]
    with ServingEngine(twin, kv_tokens=96 if family != "switch_transformers" else 64, max_prompt_tokens=64) as serving:
        clients = [serving.ask(ids, 40) for ids in prompts]
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0
        assert [type(event) for client in clients for event in client.seen].count(RequestStarted) == 4


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "gpt_oss", *RECURRENT])
def test_requests_without_pages_are_joined_and_answer_as_stock_does(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    prompts = [prompt(length, length) for length in (40, 7, 90, 1, 23, 64)]
    wanted = [stock_answer(twin.stock, ids, 12) for ids in prompts]
    with ServingEngine(without_pages(twin), max_running=4, prefill_rows=32) as serving:
        clients = [serving.ask(ids, 12) for ids in prompts]
        assert [client.answer() for client in clients] == wanted
        decoding = [rows for phase, rows in serving.experts.passes if phase is Phase.DECODE]
        assert max(decoding) == 4
        assert len(twin.provider.requests) < len(twin.layers) * sum(12 for _ in prompts) * 0.6
    assert serving.metric("zipmoe_kv_pages", state="used") == 0


def test_requests_that_may_not_meet_are_computed_in_turn(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    prompts = [prompt(length, length) for length in (40, 7, 23)]
    with ServingEngine(twin, ComputePath.IN_TURN) as serving:
        clients = [serving.ask(ids, 12) for ids in prompts]
        assert [client.answer() for client in clients] == [stock_answer(twin.stock, ids, 12) for ids in prompts]
        assert {rows for phase, rows in serving.experts.passes if phase is Phase.DECODE} == {1}
    assert serving.metric("zipmoe_router_compute_path", path="in turn") == 1
    assert serving.metric("zipmoe_router_compute_path", path="shared") == 0


def test_requests_without_pages_that_are_preempted_are_computed_again_and_answer_the_same(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    prompts = [prompt(30, seed) for seed in range(3)]
    with ServingEngine(twin) as serving:
        wanted = [serving.ask(ids, 40).answer() for ids in prompts]
    with ServingEngine(without_pages(twin), kv_tokens=96, max_prompt_tokens=64) as serving:
        clients = [serving.ask(ids, 40) for ids in prompts]
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0


@on_both_paths
@pytest.mark.parametrize("fails_in", [1, 4, 7, 13, 29])
def test_a_pass_that_fails_once_changes_no_answer(path: Path, fails_in: int, twin_of: TwinOf) -> None:
    twin = path(twin_of("qwen2_moe"))
    prompts = [prompt(length, length) for length in (30, 7, 18)]
    with ServingEngine(twin) as serving:
        wanted = [serving.ask(ids, 12).answer() for ids in prompts]
    serving = ServingEngine(twin)
    serving.experts.fails_in = fails_in
    clients = [serving.ask(ids, 12) for ids in prompts]  # all begin in the same step
    with serving:
        assert [client.answer() for client in clients] == wanted
        assert serving.experts.fails_in is None


@on_both_paths
def test_a_long_prompt_lets_others_get_their_tokens_meanwhile(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe")), prefill_rows=16) as serving:
        talking = serving.ask(prompt(5), 80)
        talking.token()
        serving.experts.passes.clear()
        serving.ask(prompt(120), 1).answer()
        passes = serving.experts.passes
        first, last = (passes.index((Phase.PREFILL, 120)), len(passes) - 1 - passes[::-1].index((Phase.PREFILL, 120)))
        assert passes[first : last + 1 : 2] == [(Phase.PREFILL, 120)] * 3  # a layer each
        assert passes[first + 1 : last : 2] == [(Phase.DECODE, 1)] * 2
        talking.answer()


@on_both_paths
def test_a_prompt_reads_each_expert_of_a_layer_once_however_long_it_is(path: Path, twin_of: TwinOf) -> None:
    twin = path(twin_of("deepseek_v2"))
    with ServingEngine(twin, prefill_rows=16) as serving:
        serving.ask(prompt(120), 0).events.get(timeout=60)
        assert [layer for layer, _ in twin.provider.requests] == [0, 1]


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2"])
def test_reused_answers_leave_only_what_is_new_to_compute(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    with ServingEngine(twin, reuse_answers=True) as serving:
        question = prompt(40)
        answer = [token for token, _ in serving.ask(question, 30).answer()]
        serving.experts.passes.clear()
        second = [*question, *answer, *prompt(9, 5)]
        got = serving.ask(second, 5).answer()
        assert serving.experts.passes[0] == (Phase.PREFILL, len(second) - 64)
        assert serving.metric("zipmoe_prefix_tokens_reused_total") == 64
    # Stock continuing its own cache of the first turn, cut where our pages end.
    with torch.inference_mode():
        cache = twin.stock(torch.tensor([question]), use_cache=True).past_key_values
        for token in answer[:24]:
            cache = twin.stock(torch.tensor([[token]]), past_key_values=cache).past_key_values
        logits = twin.stock(torch.tensor([second[64:]]), past_key_values=cache).logits[0, -1].float()
        for token, logprob in got:
            assert token == int(logits.argmax())
            assert logprob == float(torch.log_softmax(logits, -1)[token])
            logits = twin.stock(torch.tensor([[token]]), past_key_values=cache).logits[0, -1].float()


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "gpt_oss"])
def test_a_second_turn_has_the_bits_of_one_prompt(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    with ServingEngine(twin) as serving:
        question = prompt(40)
        second = [*question, *(token for token, _ in serving.ask(question, 60).answer()), *prompt(9, 5)]
        got = [serving.ask(second, 24).answer() for _ in range(2)]
    with ServingEngine(twin) as fresh:
        assert got == [fresh.ask(second, 24).answer()] * 2


@on_both_paths
def test_prompt_logprobs_are_the_same_beside_others_and_need_the_whole_prompt(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe")), prefill_rows=16) as serving:
        alone = serving.ask(prompt(60), 0, prompt_logprobs=0).next()
        others = [serving.ask(prompt(20, seed), 20) for seed in (2, 3)]
        beside = serving.ask(prompt(60), 0, prompt_logprobs=0).next()
        assert isinstance(alone, RequestStarted)
        assert isinstance(beside, RequestStarted)
        assert alone.scores is not None and beside.scores is not None
        assert alone.scores.logprobs == beside.scores.logprobs
        assert len(alone.scores.logprobs) == 59
        for other in others:
            other.answer()


@on_both_paths
def test_a_damaged_expert_ends_those_that_need_it_and_nobody_else(path: Path, twin_of: TwinOf) -> None:
    twin = path(twin_of("qwen2_moe"))
    with ServingEngine(twin) as serving:
        wanted = serving.ask(prompt(6, 1), 6).answer()
        clients = [serving.ask(prompt(6, seed), 100) for seed in (2, 3, 4)]
        for client in clients:
            client.token()
        serving.experts.broken = {(layer, expert) for layer in range(3) for expert in range(8)}
        assert all(isinstance(client.error(), CorruptData) for client in clients)
        serving.experts.broken.clear()
        assert serving.ask(prompt(6, 1), 6).answer() == wanted
    assert serving.metric("zipmoe_kv_pages", state="used") == 0


def test_what_a_client_is_told_has_been_counted(twin_of: TwinOf) -> None:
    told: list[tuple[type[Event], float, float]] = []
    ended = threading.Event()

    def emit(event: Event) -> None:
        counted = serving.metric("zipmoe_generated_tokens_total"), serving.metric("zipmoe_requests_running")
        told.append((type(event), *counted))
        if isinstance(event, RequestFinished):
            ended.set()

    with ServingEngine(twin_of("qwen2_moe")) as serving:
        serving.ask(prompt(9), 3, emit=emit)
        assert ended.wait(WAIT_S)
    assert told == [
        (RequestStarted, 1, 1),
        (RequestToken, 1, 1),
        (RequestToken, 2, 1),
        (RequestToken, 3, 0),
        (RequestFinished, 3, 0),
    ]


@on_both_paths
def test_a_cancelled_request_frees_its_pages_and_says_nothing_more(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe"))) as serving:
        gone, other = serving.ask(prompt(40), 80), serving.ask(prompt(9, 2), 20)
        gone.token()
        serving.engine.cancel(gone.request)
        other.answer()
        serving.ask(prompt(3), 1).answer()
    assert serving.metric("zipmoe_requests_total", outcome="cancelled") == 1
    assert serving.metric("zipmoe_kv_pages", state="used") == 0


@on_both_paths
def test_a_slow_reader_pauses_only_itself(path: Path, twin_of: TwinOf) -> None:
    reading = threading.Event()
    with ServingEngine(path(twin_of("qwen2_moe")), max_running=1) as serving:
        slow = serving.ask(prompt(9), 30, unread=lambda: not reading.is_set())
        wanted = serving.ask(prompt(9), 30).answer()
        assert slow.events.qsize() <= 2
        reading.set()
        serving.engine.wake()
        assert slow.answer() == wanted


def test_a_request_whose_deadline_has_passed_ends_before_its_next_step(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe"), max_running=1) as serving:
        late = serving.ask(prompt(9), 30, unread=lambda: True, deadline_s=time.monotonic() + 0.05)
        assert isinstance(late.error(), DeadlineExceeded)
        waiting = serving.ask(prompt(9), 30, deadline_s=time.monotonic())
        assert "after 0 of at most 30 tokens" in str(waiting.error())


@on_both_paths
def test_a_deadline_that_passes_within_a_pass_ends_its_request_alone(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe"))) as serving:
        wanted = serving.ask(prompt(9, 2), 30).answer()
        late = serving.ask(prompt(9), 100, deadline_s=time.monotonic() + 0.3)
        other, another = serving.ask(prompt(9, 2), 30), serving.ask(prompt(9, 3), 30, deadline_s=1e9)
        late.token()
        serving.experts.hangs_until_s = 1e9
        assert "the request's deadline has passed" in str(late.error())
        assert other.answer() == wanted
        assert len(another.answer()) == 30
        assert serving.experts.waited_in_vain <= 1
    assert serving.metric("zipmoe_kv_pages", state="used") == 0


def test_filling_gives_way_to_a_request_and_goes_on_after_it(twin_of: TwinOf) -> None:
    with ServingEngine(twin_of("qwen2_moe")) as serving:
        wanted = serving.ask(prompt(9), 5).answer()
        serving.link.fills = True
        for _ in range(3):
            serving.engine.wake()
            assert serving.link.filling.wait(WAIT_S)
            assert serving.ask(prompt(9), 5).answer() == wanted
            serving.link.filling.clear()


def test_an_engine_that_is_filling_ends_at_once(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"))
    serving.link.fills = True
    with serving:
        assert serving.link.filling.wait(WAIT_S)


def test_the_queue_is_bounded_by_count_and_prompt_tokens(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"), max_waiting=2, max_waiting_tokens=50)
    first = serving.ask(prompt(40), 2)
    with pytest.raises(ResourceExhausted, match="max-waiting-tokens") as refused:
        serving.ask(prompt(20), 2)
    assert refused.value.retry_after_s > 0
    second = serving.ask(prompt(9), 2)
    with pytest.raises(ResourceExhausted, match="--max-waiting allows"):
        serving.ask(prompt(1), 2)
    assert serving.metric("zipmoe_prompt_tokens_waiting") == 49
    with serving:
        first.answer(), second.answer()


@on_both_paths
def test_a_lost_decoder_ends_what_runs_and_the_next_request_is_served(path: Path, twin_of: TwinOf) -> None:
    with ServingEngine(path(twin_of("qwen2_moe"))) as serving:
        client = serving.ask(prompt(9), 100)
        client.token()
        serving.link.connected = False
        serving.engine.wake()
        assert isinstance(client.error(), Unavailable)
        assert serving.link.attached.wait(60)
        assert len(serving.ask(prompt(9), 3).answer()) == 3


def test_requests_that_were_accepted_end_before_the_engine_stops(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"))
    with serving:
        clients = [serving.ask(prompt(9, seed), 10) for seed in range(3)]
    assert all(len(client.answer()) == 10 for client in clients)
    with pytest.raises(Unavailable, match="shutting down"):
        serving.ask(prompt(3), 1)


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_a_request_alone_is_computed_by_the_recorded_pass_and_answers_as_stock_does(
    family: str, twin_of: TwinOf
) -> None:
    twin = twin_of(family)
    ids = prompt(40, 40)
    with ServingEngine(twin) as serving:
        program = serving.ragged.row_programs[1]
        assert program is not None
        before = program.passes
        assert serving.ask(ids, 12).answer() == stock_answer(twin.stock, ids, 12)
        assert program.passes - before == 11
    layers = twin.built.config.num_hidden_layers
    assert serving.metric("zipmoe_router_recorded_layers", state="recorded") == layers
    assert serving.metric("zipmoe_router_recorded_layers", state="eager") == 0
    assert serving.metric("zipmoe_router_torch_operations") >= 2


def test_the_setting_eager_records_nothing(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    ids = prompt(23, 23)
    with ServingEngine(twin, row_pass="eager") as serving:
        assert not serving.ragged.row_programs
        assert serving.ask(ids, 8).answer() == stock_answer(twin.stock, ids, 8)
    assert serving.metric("zipmoe_router_recorded_layers", state="recorded") == 0
    assert serving.metric("zipmoe_router_recorded_layers", state="eager") == twin.built.config.num_hidden_layers


def test_the_flag_and_the_variable_of_the_pass_are_called_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_config(RouterConfig, ["--store", "/s"]).row_pass == "auto"
    assert parse_config(RouterConfig, ["--store", "/s", "--pass", "eager"]).row_pass == "eager"
    monkeypatch.setenv("ZIPMOE_PASS", "eager")
    assert parse_config(RouterConfig, ["--store", "/s"]).row_pass == "eager"
    with pytest.raises(InvalidRequest, match="--pass: input should be 'auto' or 'eager'"):
        parse_config(RouterConfig, ["--store", "/s", "--pass", "never"])
