"""The command line as a user has it: real processes, real signals, nothing left behind."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.run import zipmoe_process
from tests.integration.stacks.stack import PackedModel, StockModel
from tests.integration.stacks.up import Up, running_up

GREEDY = ["--temperature", "0", "--top-p", "1", "--top-k", "0", "--min-p", "0", "--repetition-penalty", "1"]
TIGHT = ("--cache-slots", "7:6:5", "--workers", "2")


@pytest.fixture
def model(packed: Callable[[str], PackedModel]) -> PackedModel:
    return packed("qwen2_moe")


@pytest.fixture(scope="module")
def up(packed: Callable[[str], PackedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(packed("qwen2_moe").store, tmp_path_factory.mktemp("run"), *TIGHT) as running:
        yield running


class TestRunning:
    def test_generated_tokens_are_those_of_stock(
        self, up: Up, model: PackedModel, stock_of: Callable[[PackedModel], StockModel]
    ) -> None:
        prompt = [5, 17, 29, 41, 53]
        token_ids = ",".join(map(str, prompt))
        ran = zipmoe_process(
            "generate", "--token-ids", token_ids, "-n", 16, "--ignore-eos", *GREEDY, "--json", env=up.environment
        )
        assert ran.exit_code == 0, ran.stderr
        assert tuple(ran.json["token_ids"]) == stock_of(model).generate(prompt, 16).token_ids
        assert ran.json["finish_reason"] == "length"
        assert ran.json["experts"]["misses"] > 0

    def test_streamed_text_is_the_text_of_the_json(self, up: Up) -> None:
        arguments = ("generate", "Once upon a time", "-n", 8, *GREEDY)
        streamed, whole = (
            zipmoe_process(*arguments, env=up.environment),
            zipmoe_process(*arguments, "--json", env=up.environment),
        )
        assert streamed.stdout == whole.json["text"] + "\n"
        assert "generated tokens" in streamed.stderr

    def test_a_chat_takes_turns(self, up: Up) -> None:
        ran = zipmoe_process("chat", "-n", 4, "--temperature", 0, env=up.environment, stdin=b"Hello\nAgain\n")
        assert ran.exit_code == 0, ran.stderr
        assert ran.stderr.count("experts at hand") == 2

    def test_a_score_is_the_perplexity_of_stock(
        self, up: Up, model: PackedModel, stock_of: Callable[[PackedModel], StockModel], tmp_path: Path
    ) -> None:
        from transformers import AutoTokenizer

        text = "the quick brown fox jumps over the lazy dog"
        (tmp_path / "text").write_text(text)
        ran = zipmoe_process("generate", "--score", tmp_path / "text", "--json", env=up.environment)
        ids = AutoTokenizer.from_pretrained(model.checkpoint)(text)["input_ids"]
        expected = stock_of(model).prompt_logprobs(ids)
        assert ran.json["prompt_logprobs"] == pytest.approx(expected, abs=1e-5)
        assert ran.json["perplexity"] == pytest.approx(math.exp(-math.fsum(expected) / len(expected)), rel=1e-5)

    def test_all_services_are_healthy(self, up: Up) -> None:
        ran = zipmoe_process("health", env=up.environment)
        assert ran.exit_code == 0
        assert ran.stdout.split() == ["expert-store", "SERVING", "decoder", "SERVING", "router", "SERVING"]

    def test_top_shows_where_the_experts_of_each_layer_are(self, up: Up) -> None:
        zipmoe_process("generate", "Once upon a time", "-n", 2, *GREEDY, env=up.environment)
        ran = zipmoe_process("top", "--interval", 0.1, "--json", env=up.environment)
        assert ran.exit_code == 0, ran.stderr
        shown = ran.json
        assert shown["down"] == {}
        assert {sum(layer.values()) for layer in shown["layers"]} == {8}
        assert sum(layer["full"] + layer["packed"] for layer in shown["layers"]) > 0
        assert shown["since_start"]["generated_tokens_per_s"] > 0
        drawn = zipmoe_process("top", "--interval", 0.1, env=up.environment).stdout
        assert "generated tokens/s" in drawn and "█" in drawn

    def test_a_second_instance_is_refused_and_the_first_goes_on(self, up: Up, model: PackedModel) -> None:
        ran = zipmoe_process("up", model.store, "--json", env=up.environment)
        assert (ran.exit_code, ran.error["class"]) == (1, "AlreadyRunning")
        assert zipmoe_process("health", env=up.environment).exit_code == 0

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            (("x", "--temperature", "-1"), "InvalidRequest", "temperature is -1.0"),
            (("--token-ids", "4000000000"), "InvalidRequest", "not in the vocabulary"),
            (("x " * 30_000,), "ContextLengthExceeded", "this model's maximum context length is"),
        ],
    )
    def test_what_the_router_refuses_is_a_usage_error(
        self, up: Up, arguments: tuple[str, ...], kind: str, message: str
    ) -> None:
        ran = zipmoe_process("generate", *arguments, "--json", env=up.environment)
        assert (ran.exit_code, ran.error["class"]) == (2, kind)
        assert message in ran.error["message"]


@pytest.mark.slow
class TestEnding:
    def test_a_killed_service_takes_the_others_down_and_is_named(self, model: PackedModel, short_folder: Path) -> None:
        with running_up(model.store, short_folder, *TIGHT) as running:
            with running.services_end():
                os.kill(running.pids["decoder"], signal.SIGKILL)
                exit_code, stderr = running.end()
            assert exit_code == 1
            assert json.loads(stderr)["error"]["message"].startswith("decoder was killed by SIGKILL")
            assert (short_folder / "logs" / "decoder.log").exists()

    def test_a_killed_supervisor_leaves_no_process_and_a_drained_one_no_file_either(
        self, model: PackedModel, short_folder: Path
    ) -> None:
        with running_up(model.store, short_folder, *TIGHT) as running, running.services_end():
            running.process.kill()
            running.end()
        with running_up(model.store, short_folder, *TIGHT) as again:  # in the place that the first has left as it was
            with again.services_end():
                again.process.send_signal(signal.SIGTERM)
                assert again.end() == (0, "")
            assert not any(short_folder.iterdir())


@pytest.mark.slow
@pytest.mark.extra  # `make run` does the same
class TestDemo:
    def test_it_passes_and_cleans_up(self, short_folder: Path) -> None:
        ran = zipmoe_process("demo", "-n", 12, env={"TMPDIR": str(short_folder)})
        assert ran.exit_code == 0, ran.stderr
        assert "PASS: all 12 token ids are those of stock transformers" in ran.stdout
        assert "/demo/model" in ran.stderr
        assert "random weights" not in ran.stderr
        assert not any(short_folder.iterdir())
