from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping, Sequence

import pytest
import torch
from transformers.modeling_outputs import ModelOutput

from tests.model.conftest import Twin, TwinOf
from tests.model.interposed import take_experts_from
from tests.model.tiny import FAMILIES, VOCABULARY
from zipmoe.errors import CorruptData, InternalError, InvalidRequest
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.passes.sequence import Sequence as ModelSequence

ANSWER_TOKENS = 32


def prompt(length: int, seed: int = 1) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCABULARY) for _ in range(length)]


def stock_answer(twin: Twin, token_ids: list[int], count: int = ANSWER_TOKENS) -> tuple[list[int], list[torch.Tensor]]:
    ids = torch.tensor([token_ids])
    output = twin.stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert isinstance(output, ModelOutput)
    return output.sequences[0, -count:].tolist(), [logits[0] for logits in output.logits]


def our_logits(twin: Twin, token_ids: list[int], answer: Sequence[int]) -> Iterator[torch.Tensor]:
    sequence = ModelSequence(twin.built)
    yield sequence.prefill(token_ids).logits.float()
    for token_id in answer:
        yield sequence.step(token_id).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_equal_stock_generate_bit_for_bit(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    token_ids = prompt(23)
    expected_tokens, expected_logits = stock_answer(twin, token_ids)
    tokens = []
    for step, logits in enumerate(our_logits(twin, token_ids, expected_tokens[:-1])):
        assert torch.equal(logits, expected_logits[step]), f"step {step}"
        tokens.append(int(logits.argmax()))
    # Stock keeps end-of-sequence out with min_new_tokens, so a step may differ from the plain argmax only there.
    eos = twin.built.generation_config.eos_token_id
    assert [token for token in tokens if token != eos] == [
        expected for token, expected in zip(tokens, expected_tokens, strict=True) if token != eos
    ]


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "switch_transformers", "gpt_oss"])
@pytest.mark.parametrize("arrangement", ["descending", "shuffled"])
def test_the_arrival_order_of_experts_does_not_change_a_bit(family: str, arrangement: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    token_ids, answer = prompt(19, seed=2), prompt(6, seed=3)
    in_order = list(our_logits(twin, token_ids, answer))
    chance = random.Random(0)
    twin.provider.arrange = (
        (lambda ids: sorted(ids, reverse=True))
        if arrangement == "descending"
        else (lambda ids: chance.sample(ids, len(ids)))
    )
    for first, second in zip(in_order, our_logits(twin, token_ids, answer), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("family", ["qwen2_moe", "granitemoe", "phimoe", "gpt_oss"])
def test_prompt_logprobs_are_those_of_stocks_single_pass(
    family: str, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of(family)
    token_ids = prompt(21)
    with torch.inference_mode():
        logits = twin.stock(torch.tensor([token_ids])).logits[0].float()
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(20), torch.tensor(token_ids[1:])]
    whole = ModelSequence(twin.built).prefill(token_ids, prompt_logprobs=2)
    assert whole.scores is not None
    assert whole.scores.logprobs == tuple(expected.tolist())
    likeliest = torch.log_softmax(logits, dim=-1)[:20].topk(2)
    assert torch.equal(whole.scores.top_ids, likeliest.indices)
    assert torch.equal(whole.scores.top_logprobs, likeliest.values)
    plain = ModelSequence(twin.built).prefill(token_ids)
    assert torch.equal(whole.logits, plain.logits)
    assert plain.scores is None

    monkeypatch.setattr("zipmoe.model.passes.head.MAX_CHUNK_BYTES", 4 * VOCABULARY * 5)
    in_chunks = ModelSequence(twin.built).prefill(token_ids, prompt_logprobs=0)
    assert in_chunks.scores is not None
    assert torch.allclose(torch.tensor(in_chunks.scores.logprobs), expected, atol=0.05)
    assert len(in_chunks.scores.logprobs) == 20
    assert not in_chunks.scores.top


def test_a_prompt_of_one_token_has_no_prompt_logprobs(twin_of: TwinOf) -> None:
    scores = ModelSequence(twin_of("olmoe").built).prefill([5], prompt_logprobs=3).scores
    assert scores is not None
    assert (scores.logprobs, scores.top) == ((), [])


def test_a_model_that_has_scored_a_prompt_still_generates(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    sequence = ModelSequence(twin.built)
    logits = sequence.prefill(prompt(9), prompt_logprobs=0).logits
    expected = list(our_logits(twin, prompt(9), [7]))
    assert torch.equal(logits.float(), expected[0])
    assert torch.equal(sequence.step(7).float(), expected[1])


def test_two_interleaved_sequences_do_not_see_each_other(twin_of: TwinOf) -> None:
    twin = twin_of("deepseek_v2")
    alone = [list(our_logits(twin, prompt(11, seed), prompt(4, seed))) for seed in (5, 6)]
    sequences = [ModelSequence(twin.built) for _ in alone]
    together = [[sequence.prefill(prompt(11, seed)).logits] for sequence, seed in zip(sequences, (5, 6), strict=True)]
    for step in range(4):
        for sequence, logits, seed in zip(sequences, together, (5, 6), strict=True):
            logits.append(sequence.step(prompt(4, seed)[step]))
    for expected, got in zip(alone, together, strict=True):
        assert all(torch.equal(a, b.float()) for a, b in zip(expected, got, strict=True))


class _FailsOnce(InProcessProvider):
    """Gives one expert and then fails, the first time that `layer` is asked for."""

    def __init__(self, twin: Twin, layer: int) -> None:
        self._inner = twin.provider
        self._layer: int | None = layer

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for item in self._inner.experts(layer, rows):
            yield item
            if layer == self._layer:
                self._layer = None
                raise CorruptData("checksum")


@pytest.mark.parametrize("family", ["qwen2_moe", "switch_transformers"])
@pytest.mark.parametrize("in_prefill", [True, False])
def test_a_failed_expert_ends_its_sequence_and_no_other(
    family: str, in_prefill: bool, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of(family)
    expected = list(our_logits(twin, prompt(8), [4, 5]))
    healthy, failing = ModelSequence(twin.built), ModelSequence(twin.built)
    healthy.prefill(prompt(8))
    if not in_prefill:
        failing.prefill(prompt(8))
    provider = _FailsOnce(twin, layer=len(twin.layers) - 1)
    take_experts_from(provider, twin.built, monkeypatch.setattr)
    with pytest.raises(CorruptData, match="checksum"):
        failing.prefill(prompt(8)) if in_prefill else failing.step(4)
    with pytest.raises(InternalError, match="has failed"):
        failing.step(4)
    assert twin.provider.closed == len(twin.provider.requests)
    assert torch.equal(healthy.step(4).float(), expected[1])
    assert torch.equal(healthy.step(5).float(), expected[2])
    assert all(torch.equal(a, b) for a, b in zip(expected, our_logits(twin, prompt(8), [4, 5]), strict=True))


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "the prompt is empty"),
        ([3, VOCABULARY], f"token id {VOCABULARY} is not in the vocabulary of {VOCABULARY}"),
        ([-1], "token id -1 is not in the vocabulary"),
        ([3] * 129, "the prompt has 129 tokens, the context holds 128"),
    ],
)
def test_a_bad_prompt_is_refused_with_its_numbers(token_ids: list[int], message: str, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    with pytest.raises(InvalidRequest, match=message):
        ModelSequence(twin.built).prefill(token_ids)
    assert twin.provider.requests == []


def test_the_context_ends_where_the_model_says(twin_of: TwinOf) -> None:
    sequence = ModelSequence(twin_of("mixtral").built)
    sequence.prefill(prompt(127))
    assert (sequence.length, sequence.room) == (127, 1)
    sequence.step(3)
    assert sequence.room == 0
    with pytest.raises(InvalidRequest, match="context of 128 tokens is full"):
        sequence.step(3)


def test_an_encoder_decoder_counts_the_answer_alone(twin_of: TwinOf) -> None:
    twin = twin_of("switch_transformers")
    sequence = ModelSequence(twin.built)
    sequence.prefill(prompt(40))
    assert (twin.built.context_tokens, sequence.length, sequence.room) == (512, 1, 511)
    with pytest.raises(InvalidRequest, match="prompt_logprobs do not exist for an encoder-decoder"):
        ModelSequence(twin.built).prefill(prompt(4), prompt_logprobs=0)


def test_a_sequence_is_stepped_only_between_prefill_and_close(twin_of: TwinOf) -> None:
    sequence = ModelSequence(twin_of("olmoe").built)
    with pytest.raises(InternalError, match="has not been prefilled"):
        sequence.step(3)
    sequence.prefill([4])
    with pytest.raises(InternalError, match="prefilled once"):
        sequence.prefill([4])
    sequence.close()
    with pytest.raises(InternalError):
        sequence.step(3)
