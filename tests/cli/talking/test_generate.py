"""`zipmoe generate` and `zipmoe chat`, against a router that follows a script."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.fake_router import FakeRouter, running_router
from tests.cli.run import command, zipmoe, zipmoe_process
from zipmoe.errors import CorruptData
from zipmoe.v1 import generation_pb2 as pb


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture(autouse=True)
def _target(router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with running_router(router) as target:
        monkeypatch.setenv("ZIPMOE_TARGET", target)
        yield


def test_text_goes_to_stdout_and_usage_to_stderr() -> None:
    ran = zipmoe("generate", "Hi")
    assert (ran.exit_code, ran.stdout) == (0, "Hello world!\n")
    assert ran.stderr == (
        "3 prompt + 2 generated tokens, first after 0.50 s, then 4.0 tokens/s; "
        "experts: 10 hits, 4 misses, 2.00 KiB read, 0.12 s waited\n"
    )


def test_json_is_one_object() -> None:
    assert zipmoe("generate", "Hi", "--json").json == {
        "request_id": "made-up",
        "token_ids": [0, 1],
        "text": "Hello world!",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 3,
            "generated_tokens": 2,
            "reused_tokens": 0,
            "approximate_tokens": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
        "timings": {"time_to_first_token_s": 0.5, "inter_token_s": 0.25, "duration_s": 0.75, "expert_stall_s": 0.125},
        "experts": {"hits": 10, "misses": 4, "bytes_read": 2048},
    }


def test_log_probabilities_are_in_the_json(router: FakeRouter) -> None:
    router.prompt_logprobs = [-1.0, -math.inf]
    answer = zipmoe("generate", "Hi", "--json", "--logprobs", "--top-logprobs", "1", "--prompt-logprobs").json
    assert answer["logprobs"] == [-0.5, -0.5]
    assert answer["top_logprobs"] == [[{"token_id": 7, "logprob": -0.25}]] * 2
    assert answer["prompt_logprobs"] == [-1.0, None]


def test_several_answers_and_the_likeliest_prompt_tokens_are_in_the_json() -> None:
    answer = zipmoe("generate", "Hi", "--choices", "2", "--prompt-top-logprobs", "1", "--json").json
    assert [each["text"] for each in answer["choices"]] == ["Hello world!"] * 2
    assert answer["choices"][0]["prompt_top_logprobs"] == [[{"token_id": 7, "logprob": -0.75}]] * 2
    refused = zipmoe("generate", "Hi", "--choices", "2")
    assert refused.exit_code == 2
    assert "add --json" in refused.stderr


def test_log_probabilities_without_json_are_refused() -> None:
    ran = zipmoe("generate", "Hi", "--logprobs")
    assert ran.exit_code == 2
    assert "add --json" in ran.stderr


def test_every_field_of_the_protocol_has_its_flag(router: FakeRouter) -> None:
    flags = "--temperature 0 --top-p 0.5 --top-k 0 --min-p 0.25 --repetition-penalty 1.5 --seed 7 --max-new-tokens 0"
    flags += " --presence-penalty 0.5 --frequency-penalty -1 --logit-bias 3=-2,9=1.5 --choices 2 --best-of 3"
    flags += " --prompt-top-logprobs 2 --special-tokens"
    more = "--stop a --stop b --stop-token-ids 1,2 --ignore-eos --logprobs --top-logprobs 3 --prompt-logprobs --json"
    assert zipmoe("generate", "Hi", "--forced-token-ids", "4, 5", *flags.split(), *more.split()).exit_code == 0
    assert router.requests == [
        pb.GenerateRequest(
            prompt=pb.Prompt(text="Hi"),
            sampling=pb.SamplingParameters(
                temperature=0,
                top_p=0.5,
                top_k=0,
                min_p=0.25,
                repetition_penalty=1.5,
                seed=7,
                presence_penalty=0.5,
                frequency_penalty=-1,
                logit_bias={3: -2, 9: 1.5},
                choices=2,
                best_of=3,
            ),
            stopping=pb.StoppingCriteria(
                max_new_tokens=0, stop_strings=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True
            ),
            output=pb.OutputOptions(
                logprobs=True, top_logprobs=3, prompt_logprobs=True, prompt_top_logprobs=2, skip_special_tokens=False
            ),
            forced_token_ids=[4, 5],
        )
    ]


def test_the_form_of_the_answer_has_its_flags(router: FakeRouter, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    for flags in (("--json-schema", tmp_path / "schema.json"), ("--regex", "a+"), ("--choice", "a", "--choice", "b c")):
        assert zipmoe("generate", "Hi", *flags).exit_code == 0
    schema, regex, choice = (request.constraint for request in router.requests)
    assert schema.json_schema == '{"type": "integer"}'
    assert regex.regex == "a+"
    assert list(choice.choice.texts) == ["a", "b c"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--regex", "a", "--choice", "b"), "--json-schema, --regex and --choice exclude each other"),
        (("--json-schema", "/no/where.json"), "no schema file /no/where.json"),
    ],
)
def test_a_form_that_cannot_be_asked_for_is_refused(flags: tuple[str, ...], message: str, router: FakeRouter) -> None:
    ran = zipmoe("generate", "Hi", *flags)
    assert ran.exit_code != 0
    assert message in ran.stderr
    assert not router.requests


def test_token_ids_are_sent_as_they_are(router: FakeRouter) -> None:
    assert zipmoe("generate", "--token-ids", "1,2 3").exit_code == 0
    assert list(router.requests[0].prompt.token_ids.ids) == [1, 2, 3]


def test_chat_sends_a_conversation(router: FakeRouter) -> None:
    assert zipmoe("generate", "Hi", "--chat").exit_code == 0
    assert zipmoe("generate", "Hi", "--system", "Be kind").exit_code == 0
    plain, with_system = (request.prompt.conversation.messages for request in router.requests)
    assert [(turn.role, turn.content) for turn in plain] == [("user", "Hi")]
    assert [(turn.role, turn.content) for turn in with_system] == [("system", "Be kind"), ("user", "Hi")]


def test_a_prompt_file_is_sent_byte_for_byte(router: FakeRouter, tmp_path: Path) -> None:
    text = "größer\r\n\tals 3\n"
    (tmp_path / "prompt").write_bytes(text.encode())
    assert zipmoe("generate", "--prompt-file", tmp_path / "prompt").exit_code == 0
    assert zipmoe("generate", "--prompt-file", "-", stdin=text.encode()).exit_code == 0
    assert [request.prompt.text for request in router.requests] == [text, text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one prompt is needed"),
        (("Hi", "--token-ids", "1"), "exactly one prompt is needed"),
        (("",), "the prompt is empty"),
        (("--token-ids", " , "), "the prompt is empty"),
        (("--token-ids", "1,x"), "'x' is not a token id"),
        (("--token-ids", "4294967296"), "'4294967296' is not a token id"),
        (("--token-ids", "1", "--chat"), "chat template"),
        (("Hi", "--temperature", "nan"), "temperature has to be a finite number, not nan"),
        (("Hi", "--logit-bias", "5"), "'5' is no token id with a number"),
        (("Hi", "--logit-bias", "x=1"), "'x=1' is no token id with a number"),
        (("Hi", "--top-p", "inf"), "top_p has to be a finite number, not inf"),
        (("Hi", "--max-new-tokens", "-1"), "a parameter cannot be sent"),
        (("--prompt-file", "/nonexistent/p"), "no prompt file /nonexistent/p"),
        (("--prompt-file", "/"), "is a directory"),
        (("Hi", "--token-file", "/nonexistent/t"), "cannot read the secret in /nonexistent/t: no such file"),
        (("Hi", "--tls-ca", "/nonexistent/ca"), "no certificate authority file /nonexistent/ca"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_sent(arguments: tuple[str, ...], message: str, router: FakeRouter) -> None:
    ran = zipmoe("generate", *arguments)
    assert ran.exit_code in (1, 2)
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    assert not router.requests


def test_a_prompt_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"abc\xff")
    ran = zipmoe("generate", "--prompt-file", tmp_path / "prompt")
    assert ran.exit_code == 2
    assert "is not valid UTF-8: byte 0xff at offset 3" in ran.stderr
    assert "byte 0x80 at offset 0" in zipmoe("generate", "--prompt-file", "-", stdin=b"\x80").stderr
    assert "not valid UTF-8 at character 1" in zipmoe("generate", "a\udcff").stderr


def test_a_failing_router_is_reported_after_what_it_said(router: FakeRouter) -> None:
    router.error = CorruptData("expert 3 of MoE layer 1 has a wrong checksum")
    ran = zipmoe("generate", "Hi")
    assert (ran.exit_code, ran.stdout) == (1, "Hello world\n")
    assert ran.stderr.startswith(
        "error: expert 3 of MoE layer 1 has a wrong checksum\n  what to do: run `zipmoe verify"
    )


def test_no_router_says_where_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZIPMOE_TARGET")
    monkeypatch.setenv("ZIPMOE_RUNTIME_DIR", str(tmp_path))
    ran = zipmoe("generate", "Hi", "--json")
    assert (ran.exit_code, ran.error["class"]) == (1, "Unavailable")


def test_a_score_is_a_perplexity(router: FakeRouter, tmp_path: Path) -> None:
    router.prompt_logprobs = [-1.0, -3.0]
    (tmp_path / "text").write_text("a b c")
    answer = zipmoe("generate", "--score", tmp_path / "text", "--json").json
    assert (answer["scored_tokens"], answer["mean_logprob"]) == (2, -2.0)
    assert answer["perplexity"] == math.exp(2.0)
    (request,) = router.requests
    assert request.stopping.HasField("max_new_tokens")
    assert (request.stopping.max_new_tokens, request.output.prompt_logprobs) == (0, True)
    assert "perplexity  7.3891" in zipmoe("generate", "--score", tmp_path / "text").stdout


def test_a_text_of_one_token_has_no_score(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a")
    ran = zipmoe("generate", "--score", tmp_path / "text")
    assert ran.exit_code == 2
    assert "2 are needed" in ran.stderr


def test_an_interrupt_cancels_the_request_and_exits_with_130(router: FakeRouter) -> None:
    router.hangs = True
    with subprocess.Popen(command("generate", "Hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(11) == b"Hello world"
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate()
    assert (process.returncode, rest, stderr) == (130, b"\n", b"")
    assert router.cancelled.wait(30)


def test_text_that_the_terminal_cannot_show_is_replaced(router: FakeRouter) -> None:
    router.words = ["caf\u00e9 \u2603"]
    ran = zipmoe_process("generate", "Hi", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (ran.exit_code, ran.stdout) == (0, "caf? ?!\n")


class TestChat:
    def test_every_turn_carries_the_ones_before(self, router: FakeRouter) -> None:
        ran = zipmoe("chat", "--system", "Be kind", stdin="Hi\n\nAnd you?\n")
        assert (ran.exit_code, ran.stdout) == (0, "Hello world!\nHello world!\n")
        turns = [(turn.role, turn.content) for turn in router.requests[1].prompt.conversation.messages]
        assert turns == [
            ("system", "Be kind"),
            ("user", "Hi"),
            ("assistant", "Hello world!"),
            ("user", "And you?"),
        ]

    def test_reset_forgets_everything_but_the_system_message(self, router: FakeRouter) -> None:
        zipmoe("chat", "--system", "Be kind", stdin="Hi\n/reset\nAgain\n")
        turns = [(turn.role, turn.content) for turn in router.requests[1].prompt.conversation.messages]
        assert turns == [("system", "Be kind"), ("user", "Again")]

    def test_a_model_without_a_template_is_refused(self, router: FakeRouter) -> None:
        router.has_chat_template = False
        ran = zipmoe("chat", stdin="Hi\n")
        assert ran.exit_code == 2
        assert "fake has no chat template" in ran.stderr

    def test_input_that_is_not_utf8_is_refused(self) -> None:
        ran = zipmoe("chat", stdin=b"a\xff\n")
        assert ran.exit_code == 2
        assert "not valid UTF-8" in ran.stderr

    def test_an_error_ends_a_conversation_that_nobody_types(self, router: FakeRouter) -> None:
        router.refusal = CorruptData("broken")
        assert zipmoe("chat", stdin="Hi\nAgain\n").exit_code == 1
        assert len(router.requests) == 1

    def test_the_status_line_tells_speed_hit_rate_and_context(self) -> None:
        stderr = zipmoe("chat", stdin="Hi\n").stderr
        assert stderr.splitlines()[-1] == (
            "4.0 tokens/s | first token after 0.50 s | 71% of 14 experts at hand | 2.00 KiB read | "
            "5 of 64 tokens of context"
        )

    def test_commands_are_not_sent(self, router: FakeRouter) -> None:
        ran = zipmoe("chat", stdin="/help\nHi\n/exit\nAgain\n")
        assert "/reset   forget what was said" in ran.stderr
        assert len(router.requests) == 1

    def test_an_answer_is_no_longer_than_the_context_has_room(self, router: FakeRouter) -> None:
        router.conversation_tokens = 60
        zipmoe("chat", stdin="Hi\n")
        assert router.requests[0].stopping.max_new_tokens == 4

    def test_sampling_is_as_for_generate(self, router: FakeRouter) -> None:
        flags = "--temperature 0.5 --top-p 0.5 --top-k 3 --min-p 0.25 --repetition-penalty 1.5 --seed 7"
        zipmoe("chat", *flags.split(), stdin="Hi\n")
        expected = pb.SamplingParameters(
            temperature=0.5, top_p=0.5, top_k=3, min_p=0.25, repetition_penalty=1.5, seed=7
        )
        assert router.requests[0].sampling == expected
