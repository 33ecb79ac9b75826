"""Computes requests of a small checkpoint by each path, and compares every logit with those of stock's `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from zipmoe.errors import UnsupportedModel, ZipMoeError
from zipmoe.model.build.build import BuiltModel, build_from_checkpoint
from zipmoe.model.checkpoint.catalogue import Catalogue, catalogue
from zipmoe.model.checkpoint.skeleton import read_config
from zipmoe.model.experts.lazy_experts import LazyExperts
from zipmoe.model.experts.provider import CheckpointProvider
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.joined import JoinedModel
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.model.passes.sequence import Sequence as ModelSequence
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.model.probe.result import ComputePath, ProbeResult
from zipmoe.model.stock.model_class import computes_eagerly, text_model_class
from zipmoe.serving.pages import pages_of
from zipmoe.system_error import first_line

PROMPT_TOKENS = (150, 5, 70)
"""Tokens of the prompts: more than two chunks of 64 and several windows of 16, few, and a length between."""

ANSWER_TOKENS = 12


@dataclass(frozen=True)
class _Answer:
    """Stock's answer to a prompt: tokens, and the logits before each token, fp32, shape (tokens, vocabulary)."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: torch.Tensor


def probe_checkpoint(path: Path) -> ProbeResult:
    """Compares our paths with stock on a small checkpoint, with torch's current number of threads.

    Args:
        path: a checkpoint of a few megabytes in the hub's format.

    Raises:
        UnsupportedModel: the model cannot be served with stock's bits; the message says the reason.

    Cost: seconds, and a few times the checkpoint's bytes.
    """
    with torch.inference_mode():
        answers = _stock_answers(path)
        found = catalogue(path)
        built, linears = _built(path, found)
        _require_equal(answers, lambda: _alone(built, answers))
        lazy = next((each.reason for each in built.experts if isinstance(each, LazyExperts)), "")
        if built.encoder_decoder:
            difference = _difference(answers, lambda: _side_by_side(built, linears, answers))
        else:
            difference = _difference(answers, lambda: _shared(built, linears, answers))
        if not difference:
            return ProbeResult(ComputePath.SHARED, "", lazy)
        if joined := _difference(answers, lambda: _joined(built, answers)):
            return ProbeResult(ComputePath.IN_TURN, f"{difference}; joined, {joined}", lazy)
        return ProbeResult(ComputePath.JOINED, difference, lazy)


def _stock_answers(path: Path) -> list[_Answer]:
    config = computes_eagerly(read_config(path))
    model_class, config = text_model_class(config)
    stock: PreTrainedModel = model_class.from_pretrained(path, config=config, dtype=torch.bfloat16)
    stock.eval()  # type: ignore[no-untyped-call]
    # Without an end of sequence every answer has all its tokens.
    stock.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    draw = torch.Generator().manual_seed(0)
    answers = []
    for count in PROMPT_TOKENS:
        prompt = torch.randint(vocabulary, (1, count), generator=draw)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=ANSWER_TOKENS, return_dict_in_generate=True, output_logits=True,
            pad_token_id=0, decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
        )  # fmt: skip
        mask = torch.ones_like(prompt)
        answer: Any = stock.generate(  # type: ignore[operator]
            prompt, attention_mask=mask, generation_config=settings
        )
        tokens = answer.sequences[0, -len(answer.logits) :].tolist()
        logits = torch.cat(answer.logits)
        if not bool(logits.isfinite().all()):
            raise UnsupportedModel(f"stock's logits of {type(stock).__name__} are not finite")
        answers.append(_Answer(tuple(prompt[0].tolist()), tuple(tokens), logits))
    return answers


def _built(path: Path, found: Catalogue) -> tuple[BuiltModel, Linears]:
    linears = Linears()
    return build_from_checkpoint(path, found, CheckpointProvider(found.layers), linears), linears


Logits = list[list[torch.Tensor]]
"""The logits of each request, in order."""


def _require_equal(answers: Sequence[_Answer], compute: Callable[[], Logits]) -> None:
    if difference := _difference(answers, compute):
        raise UnsupportedModel(f"one request alone has other bits than stock's: {difference}")


def _difference(answers: Sequence[_Answer], compute: Callable[[], Logits]) -> str:
    """Returns the first difference of our logits from stock's, or the reason why there are none; empty if equal."""
    try:
        found = compute()
    except ZipMoeError as reason:
        return reason.message
    except Exception as error:  # stock's code may raise anything on a path that is not its own
        return f"{type(error).__name__}: {first_line(error)}"
    for index, (answer, logits) in enumerate(zip(answers, found, strict=True)):
        ours = torch.stack([each.float() for each in logits])
        if unequal := int((ours.view(torch.int32) != answer.logits.view(torch.int32)).any(dim=1).sum()):
            return f"{unequal} of {len(ours)} logits of request {index + 1} differ"
    return ""


def _alone(built: BuiltModel, answers: Sequence[_Answer]) -> Logits:
    found = []
    for answer in answers:
        sequence = ModelSequence(built)
        logits = [sequence.prefill(answer.prompt).logits]
        logits += [sequence.step(token) for token in answer.tokens[:-1]]
        found.append(logits)
    return found


def _side_by_side(built: BuiltModel, linears: Linears, answers: Sequence[_Answer]) -> Logits:
    model = SideBySide(built, linears)
    sequences = [ModelSequence(built) for _ in answers]
    found = [[sequence.prefill(answer.prompt).logits] for sequence, answer in zip(sequences, answers, strict=True)]
    for step in range(ANSWER_TOKENS - 1):
        tokens = [answer.tokens[step] for answer in answers]
        for logits, each in zip(found, model.step(sequences, tokens), strict=True):
            logits.append(each)
    return found


def _shared(built: BuiltModel, linears: Linears, answers: Sequence[_Answer]) -> Logits:
    tables = list(_page_tables([len(answer.prompt) + ANSWER_TOKENS for answer in answers]))
    model = RaggedModel(built, linears, sum(map(len, tables)))
    prompts = [model.prompt(answer.prompt, 0, pages) for answer, pages in zip(answers, tables, strict=True)]
    while any(prompt.layers_left for prompt in prompts):
        model.advance(prompts, 1)
    found = [[prompt.finish().logits] for prompt in prompts]
    for step in range(ANSWER_TOKENS - 1):
        rows = [
            BatchRow(answer.tokens[step], len(answer.prompt) + step, pages)
            for answer, pages in zip(answers, tables, strict=True)
        ]
        for logits, each in zip(found, model.compute(rows), strict=True):
            assert each is not None
            logits.append(each)
    return found


def _joined(built: BuiltModel, answers: Sequence[_Answer]) -> Logits:
    model = JoinedModel(built)
    requests = [model.begin(answer.prompt) for answer in answers]
    while waiting := [each for each in requests if each.prompt is None]:
        model.advance(waiting, 1)
    found = [[each.prompt.logits] for each in requests if each.prompt is not None]
    for step in range(ANSWER_TOKENS - 1):
        for logits, each in zip(found, model.step(requests, [a.tokens[step] for a in answers]), strict=True):
            logits.append(each)
    return found


def _page_tables(lengths: Sequence[int]) -> Iterator[list[int]]:
    first = 0
    for length in lengths:
        count = pages_of(length)
        yield list(range(first, first + count))
        first += count
