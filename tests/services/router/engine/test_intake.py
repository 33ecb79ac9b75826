from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import GenerationConfig

from zipmoe.errors import ContextLengthExceeded, InvalidRequest, NotFound
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.text import grammar_source
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.model.text.token_ids_only import TokenIdsOnly
from zipmoe.services.router.engine.intake import Intake, TokenLimits
from zipmoe.v1 import generation_pb2 as pb

NAN = float("nan")


class FakeTokenizer:
    """One token a character."""

    def require_text(self) -> None:
        """Never refuses."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode()


def make(encoder_decoder: bool = False, **defaults: object) -> Intake:
    limits = TokenLimits(prompt=20, context=30, vocabulary=256, encoder_decoder=encoder_decoder)
    config = GenerationConfig(eos_token_id=[1, 2], **defaults)
    tokenizer: Any = FakeTokenizer()
    return Intake(tokenizer, limits, config, ConversationRenderer(tokenizer))


def text(prompt: str = "abc") -> pb.Prompt:
    return pb.Prompt(text=prompt)


def test_a_plain_request_takes_everything_else_from_the_model() -> None:
    spec = make(do_sample=True, temperature=0.7, top_k=5).spec(pb.GenerateRequest(prompt=text()))
    assert spec.prompt_ids == (97, 98, 99)
    assert spec.max_new_tokens == 27
    assert spec.stop_token_ids == {1, 2}
    assert spec.sampling == SamplingParams()
    assert spec.top_logprobs is None
    assert spec.request_id


def test_numbers_are_those_that_the_client_wrote_not_what_the_protocol_made_of_them() -> None:
    sampling = pb.SamplingParameters(
        temperature=0.7, top_p=0.8, top_k=5, min_p=0.05, repetition_penalty=1.1, seed=2**63
    )
    assert sampling.top_p != 0.8
    spec = make().spec(pb.GenerateRequest(prompt=text(), sampling=sampling))
    assert spec.sampling == SamplingParams(0.7, 0.8, 5, 0.05, 1.1, 2**63)


@pytest.mark.parametrize(("own", "stops"), [("END", ("b", "END")), (["X", "Y"], ("b", "X", "Y")), (None, ("b",))])
def test_the_models_own_stop_strings_hold_beside_the_clients(own: object, stops: tuple[str, ...]) -> None:
    stopping = pb.StoppingCriteria(stop_strings=["b"])
    assert make(stop_strings=own).spec(pb.GenerateRequest(prompt=text(), stopping=stopping)).stop_strings == stops


def test_ignore_eos_keeps_the_clients_own_stop_tokens() -> None:
    stopping = pb.StoppingCriteria(stop_token_ids=[9], ignore_eos=True)
    assert make().spec(pb.GenerateRequest(prompt=text(), stopping=stopping)).stop_token_ids == {9}


def test_zero_new_tokens_score_the_prompt_only() -> None:
    stopping = pb.StoppingCriteria(max_new_tokens=0)
    assert make().spec(pb.GenerateRequest(prompt=text(), stopping=stopping)).max_new_tokens == 0


def test_prompt_and_answer_of_an_encoder_decoder_have_a_context_each() -> None:
    stopping = pb.StoppingCriteria(max_new_tokens=30)
    assert make(encoder_decoder=True).spec(pb.GenerateRequest(prompt=text("x" * 20), stopping=stopping))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.GenerateRequest(), "no prompt"),
        (pb.GenerateRequest(prompt=text("")), "empty"),
        (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds())), "empty"),
        (
            pb.GenerateRequest(prompt=text("x" * 21)),
            "30 tokens, 20 of them for a prompt, but .* 21 tokens",
        ),
        (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[5, 256]))), "prompt id 256"),
        (pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(stop_strings=["a", ""])), "stop string"),
        (pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(stop_token_ids=[999])), "stop token id 999"),
        (pb.GenerateRequest(prompt=text(), forced_token_ids=[999]), "forced token id 999"),
        (pb.GenerateRequest(prompt=text(), output=pb.OutputOptions(top_logprobs=21)), "top_logprobs is 21"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(temperature=NAN)), "temperature is nan"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(top_p=0)), "top_p is 0"),
        (
            pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(presence_penalty=3)),
            "presence_penalty is 3",
        ),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(frequency_penalty=-3)), "frequency_penalty"),
        (
            pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(logit_bias={5: 101})),
            "logit_bias of token 5 is 101",
        ),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(logit_bias={256: 1})), "token id 256"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(choices=129)), "choices is 129"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(best_of=129)), "best_of is 129"),
        (
            pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(choices=3, best_of=2)),
            "at least choices, 3",
        ),
        (
            pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(min_new_tokens=5, max_new_tokens=4)),
            "min_new_tokens is 5, but has to be at most max_new_tokens, 4",
        ),
        (
            pb.GenerateRequest(prompt=text(), output=pb.OutputOptions(prompt_top_logprobs=21)),
            "prompt_top_logprobs is 21, but has to be at most 20",
        ),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_the_field(request_: pb.GenerateRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make().spec(request_)


@pytest.mark.parametrize(("wanted", "given"), [(None, 27), (27, 27), (28, 27), (2**32 - 1, 27), (3, 3)])
def test_the_most_tokens_are_a_ceiling_above_that_of_the_context(wanted: int | None, given: int) -> None:
    stopping = pb.StoppingCriteria(max_new_tokens=wanted)
    assert make().spec(pb.GenerateRequest(prompt=text(), stopping=stopping)).max_new_tokens == given


def test_a_prompt_that_leaves_no_room_is_refused_unless_it_is_only_scored() -> None:
    tokenizer: Any = FakeTokenizer()
    limits = TokenLimits(30, 30, 256, encoder_decoder=False)
    intake = Intake(tokenizer, limits, GenerationConfig(), ConversationRenderer(tokenizer))
    with pytest.raises(ContextLengthExceeded, match="length is 30 tokens, and the prompt of 30 leaves no room"):
        intake.spec(pb.GenerateRequest(prompt=text("x" * 30)))
    scoring = pb.StoppingCriteria(max_new_tokens=0)
    assert intake.spec(pb.GenerateRequest(prompt=text("x" * 30), stopping=scoring)).max_new_tokens == 0
    with pytest.raises(ContextLengthExceeded, match=r"^this model's maximum context length is 30 tokens, but .* 31"):
        intake.spec(pb.GenerateRequest(prompt=text("x" * 31), stopping=scoring))


def test_alternatives_to_prompt_tokens_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipmoe.services.router.engine.intake._MAX_PROMPT_ALTERNATIVES", 50)
    output = pb.OutputOptions(prompt_top_logprobs=5)
    assert make().spec(pb.GenerateRequest(prompt=text("x" * 10), output=output)).prompt_logprobs == 5
    with pytest.raises(InvalidRequest, match="5 alternatives to each of 11 prompt tokens are more than 50") as refusal:
        make().spec(pb.GenerateRequest(prompt=text("x" * 11), output=output))
    assert refusal.value.next_step == "set prompt_top_logprobs to at most 4"


def test_a_choice_has_the_seed_plus_its_number_and_no_scores_of_the_prompt() -> None:
    request = pb.GenerateRequest(
        prompt=text(),
        sampling=pb.SamplingParameters(choices=2, best_of=3, seed=2**64 - 1),
        output=pb.OutputOptions(prompt_logprobs=True, prompt_tokens=True),
    )
    spec = make().spec(request)
    assert (spec.choices, spec.best_of, spec.prompt_logprobs, spec.prompt_text) == (2, 3, 0, "abc")
    assert spec.top_logprobs == 0, "the likeliest cannot be chosen without log-probabilities"
    assert not spec.reports_logprobs
    assert [spec.of_choice(number).sampling.seed for number in range(3)] == [2**64 - 1, 0, 1]
    assert spec.of_choice(1).prompt_logprobs is None


def test_the_text_of_a_prompt_in_tokens_is_decoded() -> None:
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[104, 105]))
    spec = make().spec(pb.GenerateRequest(prompt=prompt, output=pb.OutputOptions(prompt_tokens=True)))
    assert spec.prompt_text == "hi"


def test_prompt_log_probabilities_of_an_encoder_decoder_do_not_exist() -> None:
    request = pb.GenerateRequest(prompt=text(), output=pb.OutputOptions(prompt_logprobs=True))
    with pytest.raises(InvalidRequest, match="encoder-decoder"):
        make(encoder_decoder=True).spec(request)


def constraint(**form: object) -> pb.AnswerConstraint:
    return pb.AnswerConstraint(**form)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "source"),
    [
        (None, None),
        (constraint(json_object=True), grammar_source.json_object()),
        (constraint(json_schema='{"type":"integer"}'), grammar_source.json_schema('{"type":"integer"}')),
        (constraint(regex="a+"), grammar_source.regex("a+")),
        (constraint(choice=pb.ChoiceOfTexts(texts=["a", "b"])), grammar_source.choice(["a", "b"])),
    ],
)
def test_a_constraint_becomes_a_grammar(given: object, source: object) -> None:
    assert make().grammar_source(pb.GenerateRequest(prompt=text(), constraint=given)) == source  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"constraint": constraint()}, "names no form"),
        ({"constraint": constraint(json_object=False)}, "names no form"),
        ({"constraint": constraint(regex="")}, "the regular expression is empty"),
        ({"constraint": constraint(json_schema="[")}, "the JSON schema cannot be read"),
        ({"constraint": constraint(choice=pb.ChoiceOfTexts())}, "nothing to choose from"),
        ({"constraint": constraint(json_object=True), "forced_token_ids": [5]}, "forced_token_ids and a constraint"),
        ({"constraint": constraint(json_object=True), "stopping": pb.StoppingCriteria(ignore_eos=True)}, "ignore_eos"),
    ],
)
def test_a_constraint_that_cannot_hold_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make().grammar_source(pb.GenerateRequest(prompt=text(), **fields))  # type: ignore[arg-type]


def test_a_constraint_needs_a_tokenizer() -> None:
    limits = TokenLimits(prompt=20, context=30, vocabulary=256, encoder_decoder=False)
    missing = TokenIdsOnly(NotFound("no file", next_step="put one there"))
    request = pb.GenerateRequest(constraint=constraint(json_object=True))
    with pytest.raises(InvalidRequest, match="served without a tokenizer, for token ids only: no file"):
        Intake(missing, limits, GenerationConfig(eos_token_id=1), ConversationRenderer(missing)).grammar_source(request)


def test_a_sequence_has_the_text_of_all_its_tokens() -> None:
    assert make().sequence_text([0xC3, 0xA9]) == "é", "which no token has alone"
    with pytest.raises(InvalidRequest, match="token id 256 is not in the vocabulary"):
        make().sequence_text([104, 256])


def test_tokens_are_named_one_by_one() -> None:
    assert make().token_texts([104, 105]) == [("h", b"h"), ("i", b"i")]
    with pytest.raises(InvalidRequest, match="token id 256 is not in the vocabulary"):
        make().token_texts([104, 256])
