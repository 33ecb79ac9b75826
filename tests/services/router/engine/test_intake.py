from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from transformers import GenerationConfig

from zipmoe.errors import InvalidRequest, NotFound
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

    def encode_text(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def encode_conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.encode_text("".join(message["content"] for message in messages))


def make(encoder_decoder: bool = False, **defaults: object) -> Intake:
    limits = TokenLimits(prompt=20, context=30, vocabulary=256, encoder_decoder=encoder_decoder)
    config = GenerationConfig(eos_token_id=[1, 2], **defaults)
    return Intake(FakeTokenizer(), limits, config)  # type: ignore[arg-type]


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
        (pb.GenerateRequest(prompt=text("x" * 21)), "21 tokens, the longest that this router takes is 20"),
        (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[5, 256]))), "prompt id 256"),
        (pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(max_new_tokens=28)), "context of 30"),
        (pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(stop_strings=["a", ""])), "stop string"),
        (pb.GenerateRequest(prompt=text(), stopping=pb.StoppingCriteria(stop_token_ids=[999])), "stop token id 999"),
        (pb.GenerateRequest(prompt=text(), forced_token_ids=[999]), "forced token id 999"),
        (pb.GenerateRequest(prompt=text(), output=pb.OutputOptions(top_logprobs=21)), "top_logprobs is 21"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(temperature=NAN)), "temperature is nan"),
        (pb.GenerateRequest(prompt=text(), sampling=pb.SamplingParameters(top_p=0)), "top_p is 0"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_the_field(request_: pb.GenerateRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make().spec(request_)


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
        Intake(missing, limits, GenerationConfig(eos_token_id=1)).grammar_source(request)


def test_tokens_are_named_one_by_one() -> None:
    assert make().token_texts([104, 105]) == ["h", "i"]
    with pytest.raises(InvalidRequest, match="token id 256 is not in the vocabulary"):
        make().token_texts([104, 256])
