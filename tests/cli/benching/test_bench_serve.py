"""`zipmoe bench serve`: what its results hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.fake_router import FakeRouter, running_router
from tests.cli.run import zipmoe
from zipmoe.errors import ResourceExhausted


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture(autouse=True)
def _target(router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with running_router(router) as target:
        monkeypatch.setenv("ZIPMOE_TARGET", target)
        yield


def test_a_closed_loop_tells_everything(router: FakeRouter) -> None:
    flags = ("-n", 5, "--concurrency", 2, "--prompt-tokens", "uniform:2:6", "--answer-tokens", 3, "--slo-ttft-ms", 1e9)
    told = zipmoe("bench", "serve", *flags, "--json").json
    assert (told["model"], told["requests"], told["completed"], told["errors"]) == ("fake", 5, 5, {})
    assert (told["prompt_tokens"], told["generated_tokens"]) == (15, 10)
    assert (told["good_share"], told["hit_share"], told["read_bytes_per_token"]) == (1.0, 10 / 14, 1024.0)
    assert {"mean", "p50", "p90", "p99", "maximum", "count"} == told["first_token_s"].keys()
    assert (told["first_token_s"]["count"], told["inter_token_s"]["count"], told["request_s"]["count"]) == (5, 5, 5)
    assert told["load"]["concurrency"] == 2 and told["machine"]["cores"] >= 1
    assert len(router.requests) == 6, "one of them to warm up"
    assert all(request.sampling.temperature == 0.0 for request in router.requests)


def test_poisson_arrivals_are_sent_at_their_times(router: FakeRouter) -> None:
    told = zipmoe("bench", "serve", "-n", 4, "--rate", 1000, "--warmup", 0, "--json").json
    assert (told["completed"], told["load"]["rate_per_s"], len(router.requests)) == (4, 1000, 4)


def test_the_same_seed_sends_the_same_requests(router: FakeRouter) -> None:
    for seed in (1, 1, 2):
        assert zipmoe("bench", "serve", "-n", 2, "--warmup", 0, "--seed", seed, "--json").exit_code == 0
    asked = [tuple(request.prompt.token_ids.ids) for request in router.requests]
    assert asked[:2] == asked[2:4] != asked[4:]
    assert {len(ids) for ids in asked} == {128}


def test_dialogues_give_prompts_and_lengths(router: FakeRouter, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi there"}]
    (tmp_path / "dialogues.json").write_text(json.dumps([{"conversations": said}]))
    flags = ("--sharegpt", tmp_path / "dialogues.json", "-n", 1, "--warmup", 0)
    assert zipmoe("bench", "serve", *flags, "--json").json["completed"] == 1
    assert (router.requests[0].prompt.text, router.requests[0].stopping.max_new_tokens) == ("Hello", 8)


def test_people_get_a_table_and_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "run.png"
    ran = zipmoe("bench", "serve", "-n", 3, "--plot", plot, "--slo-itl-ms", 1e9)
    assert ran.exit_code == 0
    assert "time to first token" in ran.stdout and "p99" in ran.stdout and "keep the SLO" in ran.stdout
    assert "71% at hand" in ran.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_errors_are_counted_by_their_class_and_nothing_answered_ends_in_1(router: FakeRouter) -> None:
    router.refusal = ResourceExhausted("full")
    ran = zipmoe("bench", "serve", "-n", 3, "--json")
    assert ran.exit_code == 1
    assert (ran.json["errors"], ran.json["completed"]) == ({"ResourceExhausted": 3}, 0)
    assert "3 ResourceExhausted" in zipmoe("bench", "serve", "-n", 3).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "0"), "give either --rate, more than 0, or --concurrency"),
        (("--rate", "1", "--concurrency", "2"), "give either"),
        (("--sharegpt", "/nonexistent", "--prompt-tokens", "5"), "give either"),
        (("--sharegpt", "/nonexistent"), "no ShareGPT file"),
        (("--prompt-tokens", "many"), "--prompt-tokens has to be"),
        (("--plot", "/nonexistent/x.png"), "no folder"),
        (("--url", "nowhere"), "is not http://HOST:PORT"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_sent(router: FakeRouter, arguments: tuple[str, ...], message: str) -> None:
    ran = zipmoe("bench", "serve", *arguments)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert not router.requests
