"""The check at the start compares the passes that serve with stock's, and a difference costs speed, not bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.model.conftest import TwinOf
from tests.services.router.serving import ServingEngine
from zipmoe.errors import CorruptData, DeadlineExceeded, ZipMoeError
from zipmoe.model.probe.result import ComputePath
from zipmoe.services.router.engine import start_check, step_setup
from zipmoe.services.router.engine.joined_passes import JoinedPasses
from zipmoe.services.router.engine.start_check import StartCheck, check_start
from zipmoe.serving.planner import TicketWork

PATHS = [
    ("qwen2_moe", ComputePath.SHARED),
    ("deepseek_v2", ComputePath.SHARED),
    ("gpt_oss", ComputePath.SHARED),
    ("switch_transformers", ComputePath.SHARED),
    ("granitemoehybrid", ComputePath.JOINED),
]


@pytest.fixture
def differing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a shared pass of two answers change the last bit of one logit of the second answer."""
    stock = step_setup.SharedPasses.rows

    def rows(self: step_setup.SharedPasses, works: Sequence[TicketWork]) -> list[list[torch.Tensor]]:
        logits = stock(self, works)
        if len(logits) == 2:
            bits = logits[1][-1].clone().view(torch.int16)
            bits[7] ^= 1
            logits[1][-1] = bits.view(torch.bfloat16)
        return logits

    monkeypatch.setattr(step_setup.SharedPasses, "rows", rows)


@pytest.mark.parametrize(("family", "path"), PATHS)
def test_each_path_gives_the_bits_of_requests_alone(family: str, path: ComputePath, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    serving = ServingEngine(twin, path)
    drafted = isinstance(serving.stepper.model, step_setup.SharedPasses)
    assert check_start(twin.built, serving.stepper.model, serving.experts, drafted=drafted) == StartCheck()
    with serving:
        assert len(serving.ask([5, 6, 7], 4).answer()) == 4


def test_one_differing_bit_is_found_and_named(differing: None, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    serving = ServingEngine(twin)
    result = check_start(twin.built, serving.stepper.model, serving.experts, drafted=False)
    assert result == StartCheck("logits after step 1 of request 1 are not those of stock")


def test_a_differing_bit_after_a_drafted_token_is_found_and_named(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = step_setup.SharedPasses.rows

    def rows(self: step_setup.SharedPasses, works: Sequence[TicketWork]) -> list[list[torch.Tensor]]:
        logits = stock(self, works)
        if len(logits[0]) > 1:
            logits[0][2] = -logits[0][2]
        return logits

    monkeypatch.setattr(step_setup.SharedPasses, "rows", rows)
    twin = twin_of("qwen2_moe")
    serving = ServingEngine(twin)
    result = check_start(twin.built, serving.stepper.model, serving.experts, drafted=True)
    assert result == StartCheck(
        "logits after step 3, computed with drafted tokens, of request 0 are not those of stock"
    )


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (DeadlineExceeded("late"), StartCheck(unfinished="0.5 s were not enough", late=True)),
        (CorruptData("expert 3 is damaged"), StartCheck(unfinished="expert 3 is damaged")),
    ],
)
def test_a_check_that_cannot_end_says_why(
    error: ZipMoeError, result: StartCheck, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of("qwen2_moe")
    serving = ServingEngine(twin)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(start_check, "_together", fail)
    assert check_start(twin.built, serving.stepper.model, serving.experts, drafted=False, limit_s=0.5) == result


def test_where_bits_differ_requests_run_in_turn(
    differing: None, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    twin = twin_of("qwen2_moe")
    with ServingEngine(twin, ComputePath.IN_TURN) as serving:
        wanted = serving.ask([5, 6, 7], 8).answer()
    with ServingEngine(twin, start_check="auto") as serving:
        clients = [serving.ask([5, 6, 7], 8) for _ in range(2)]
        assert [client.answer() for client in clients] == [wanted] * 2
        assert isinstance(serving.stepper.model, JoinedPasses)
        assert serving.metric("zipmoe_router_compute_path", path="in turn") == 1
        assert "in the check at the start" in serving.setup.reason
        assert serving.setup.recorded.recorded_layers == 0
        assert serving.metric("zipmoe_router_recorded_layers", state="recorded") == 0


def test_requests_that_run_in_turn_after_a_difference_may_be_preempted(
    differing: None, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    twin = twin_of("qwen2_moe")
    prompts = [list(range(begin, begin + 20)) for begin in (5, 30)]
    with ServingEngine(twin, ComputePath.IN_TURN) as serving:
        wanted = [serving.ask(prompt, 40).answer() for prompt in prompts]
    with ServingEngine(twin, start_check="auto", kv_tokens=96, max_prompt_tokens=64) as serving:
        clients = [serving.ask(prompt, 40) for prompt in prompts]
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0


@pytest.mark.parametrize("setting", [{"trace": "trace.jsonl"}, {"start_check": "off"}])
def test_a_trace_or_the_setting_leaves_the_check_out(
    setting: dict[str, str], twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step_setup, "check_start", lambda *_, **__: pytest.fail("checked"))
    with ServingEngine(twin_of("qwen2_moe"), **{"start_check": "auto", **setting}) as serving:
        serving.ask([5, 6, 7], 1).answer()


def test_another_way_of_passes_is_checked_anew(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    calls = []
    monkeypatch.setattr(step_setup, "check_start", lambda *_, **__: calls.append(1) or StartCheck())
    for row_pass in ("eager", "auto", "auto"):
        with ServingEngine(twin_of("qwen2_moe"), start_check="auto", row_pass=row_pass) as serving:
            serving.ask([5, 6, 7], 1).answer()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("first", "checks"),
    [
        (StartCheck(), 1),
        (StartCheck(unfinished="10 s were not enough", late=True), 1),
        (StartCheck(unfinished="the decoder is gone"), 2),
    ],
)
def test_a_store_is_checked_once(
    first: StartCheck, checks: int, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    twin = twin_of("qwen2_moe")
    calls = []
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step_setup, "check_start", lambda *_, **__: calls.append(1) or first)
    for _ in range(2):
        with ServingEngine(twin, start_check="auto") as serving:
            serving.ask([5, 6, 7], 1).answer()
    assert len(calls) == checks


def test_requests_that_come_before_the_check_wait_for_it(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"))
    client = serving.ask([5, 6, 7], 4)
    assert not serving.engine.ready
    with serving:
        assert len(client.answer()) == 4
        assert serving.engine.ready
