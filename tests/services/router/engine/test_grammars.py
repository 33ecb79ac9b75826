"""Grammars are compiled once, within limits, on threads of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.model.text.small_vocabulary import tokenizer_in
from zipmoe.errors import InvalidRequest, ResourceExhausted
from zipmoe.model.text import grammar_source
from zipmoe.model.text.grammar import Grammar, GrammarProgress, GrammarVocabulary
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.services.router.engine.grammars import KEPT, MOST_WAITING, THREADS, Grammars, try_grammar

WAIT_S = 60.0
HOURS = grammar_source.json_schema('{"type":"integer","multipleOf":1999983}')
"""Forty bytes that take hours to compile."""

HUGE = grammar_source.choice([f"{number:x}-{number * 7919:x}" for number in range(9000)])


class Held:
    """A trial that lasts until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.tried: list[GrammarSource] = []
        self.begun = threading.Semaphore(0)

    def __call__(self, source: GrammarSource, timeout_s: float) -> None:
        self.tried.append(source)
        self.begun.release()
        assert self.let_go.wait(WAIT_S)


@pytest.fixture
def compiling() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as executor:
        yield executor


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> GrammarVocabulary:
    tokenizer = tokenizer_in(tmp_path_factory.mktemp("tokenizer"))
    return GrammarVocabulary(tokenizer, 160, {int(tokenizer.backend.eos_token_id)})


def letters(count: int) -> GrammarSource:
    return grammar_source.regex(f"[a-z]{{{count}}}")


async def test_equal_grammars_are_compiled_once(compiling: ThreadPoolExecutor, vocabulary: GrammarVocabulary) -> None:
    held, read = Held(), []
    grammars = Grammars(lambda: read.append(1) or vocabulary, compiling, WAIT_S, held)  # type: ignore[func-returns-value]
    asked = [asyncio.ensure_future(grammars.grammar(letters(3))) for _ in range(5)]
    assert await asyncio.to_thread(held.begun.acquire, timeout=WAIT_S)
    held.let_go.set()
    found = await asyncio.gather(*asked)
    assert len({id(grammar) for grammar in [*found, await grammars.grammar(letters(3))]}) == 1
    assert await grammars.grammar(letters(4)) is not found[0]
    assert held.tried == [letters(3), letters(4)]
    assert read == [1]


async def test_a_grammar_that_takes_too_long_is_refused_and_keeps_no_other_waiting(
    compiling: ThreadPoolExecutor, vocabulary: GrammarVocabulary
) -> None:
    grammars = Grammars(lambda: vocabulary, compiling, 3.0)
    slow = asyncio.ensure_future(grammars.grammar(HOURS))
    assert isinstance(await grammars.grammar(letters(3)), Grammar)
    with pytest.raises(InvalidRequest, match=r"json_schema cannot be used: it takes more than 1\.8 s to compile"):
        await slow


async def test_the_limit_holds_where_the_compilation_cannot_be_stopped(
    compiling: ThreadPoolExecutor, vocabulary: GrammarVocabulary
) -> None:
    held = Held()
    grammars = Grammars(lambda: vocabulary, compiling, 0.2, held)
    first = asyncio.ensure_future(grammars.grammar(letters(3)))
    assert await asyncio.to_thread(held.begun.acquire, timeout=WAIT_S)
    with pytest.raises(InvalidRequest, match=r"it takes more than 0\.2 s to compile"):
        await asyncio.wait_for(grammars.grammar(letters(3)), WAIT_S)
    held.let_go.set()
    with pytest.raises(InvalidRequest, match=r"regex cannot be used: it t"):
        await first


async def test_more_grammars_than_may_wait_are_refused(
    compiling: ThreadPoolExecutor, vocabulary: GrammarVocabulary
) -> None:
    held = Held()
    grammars = Grammars(lambda: vocabulary, compiling, WAIT_S, held)
    waiting = [asyncio.ensure_future(grammars.grammar(letters(number))) for number in range(1, MOST_WAITING + 1)]
    for _ in range(THREADS):
        assert await asyncio.to_thread(held.begun.acquire, timeout=WAIT_S)
    with pytest.raises(ResourceExhausted, match=f"{MOST_WAITING} grammars are being compiled"):
        await grammars.grammar(letters(99))
    held.let_go.set()
    assert len(await asyncio.gather(*waiting)) == MOST_WAITING


async def test_the_latest_grammars_are_kept_and_spoilt_ones_are_not(
    compiling: ThreadPoolExecutor, vocabulary: GrammarVocabulary
) -> None:
    held = Held()
    held.let_go.set()
    grammars = Grammars(lambda: vocabulary, compiling, WAIT_S, held)
    for number in range(1, KEPT + 2):
        await grammars.grammar(letters(number))
        await grammars.grammar(letters(1))  # used again: the second is the one to leave
    assert len(held.tried) == KEPT + 1
    await grammars.grammar(letters(2))
    assert held.tried[-1] == letters(2)
    kept = await grammars.grammar(letters(1))
    with pytest.raises(InvalidRequest):
        GrammarProgress(kept).advance(0)
    assert await grammars.grammar(letters(1)) is not kept


async def test_a_model_that_takes_no_grammar_says_so_each_time(compiling: ThreadPoolExecutor) -> None:
    def refuse() -> GrammarVocabulary:
        raise InvalidRequest("no tokenizer")

    grammars = Grammars(refuse, compiling, WAIT_S, Held())
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            await grammars.grammar(letters(1))


@pytest.mark.own_process
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HOURS, r"it takes more than 2 s to compile"),
        (grammar_source.regex("(" * 300 + "a" + ")" * 300), "maximum number of nested parentheses"),
        (grammar_source.regex("((a{1,999}){1,999}){1,999}" * 50 + "("), "unclosed group"),
        (grammar_source.json_schema('{"allOf":[' + ",".join(
            f'{{"anyOf":[{{"properties":{{"a{i}":{{}}}}}},{{"properties":{{"b{i}":{{}}}}}}]}}' for i in range(20)
        ) + "]}"), "schema too large"),
    ],
    ids=["hours", "nested", "unclosed", "product"],
)  # fmt: skip
def test_a_hostile_grammar_ends_its_own_trial(source: GrammarSource, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        try_grammar(source, 2.0 if source is HOURS else WAIT_S)
    assert len(refused.value.message) < 400


@pytest.mark.own_process
@pytest.mark.parametrize("source", [letters(3), HUGE, grammar_source.json_object()], ids=["small", "huge", "object"])
def test_a_grammar_that_can_be_used_passes_its_trial(source: GrammarSource) -> None:
    try_grammar(source, WAIT_S)


def test_a_trial_that_dies_of_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies"
    script.write_text("#!/bin/sh\ncat > /dev/null\nkill -ABRT $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("zipmoe.services.router.engine.grammars.python_command", lambda *_: [str(script)])
    with pytest.raises(InvalidRequest, match="too much memory"):
        try_grammar(letters(1), WAIT_S)
