"""Compiles the grammars of constrained answers on threads of their own, within limits, and keeps the latest."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

from zipmoe.errors import InternalError, ResourceExhausted
from zipmoe.model.text.grammar import Grammar, GrammarVocabulary, refusal
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.process.python_command import python_command

THREADS: Final = 2
"""Grammars that are compiled at once."""

MOST_WAITING: Final = 16
"""Grammars that are compiled or wait for it; one more is refused."""

KEPT: Final = 8
"""Compiled grammars that are kept, the latest used. One has up to 60 MB after many answers, most less than 1 MB."""

_TRIAL_SHARE: Final = 0.6
"""Share of the time limit that the trial may take. The compilation after it does the same work in less time."""


@dataclass
class _Job:
    """A grammar that is compiled, or was."""

    future: Future[Grammar]
    started: threading.Event


class Grammars:
    """The compiled grammars of a router. Thread: the event loop's."""

    def __init__(
        self,
        vocabulary: Callable[[], GrammarVocabulary],
        compiling: Executor,
        timeout_s: float,
        trial: Callable[[GrammarSource, float], None] | None = None,
    ) -> None:
        """Compiles nothing yet; the first grammar also reads the vocabulary, which no time limit counts.

        Args:
            vocabulary: reads the tokens of the model.
            compiling: runs compilations, `THREADS` at once.
            timeout_s: time limit for a grammar, from the start of its compilation.
            trial: compiles on trial within a time limit; a process of its own by default.
        """
        self._read_vocabulary = vocabulary
        self._compiling = compiling
        self._timeout_s = timeout_s
        self._trial = trial or try_grammar
        self._vocabulary: Future[GrammarVocabulary] | None = None
        self._jobs: OrderedDict[GrammarSource, _Job] = OrderedDict()

    async def grammar(self, source: GrammarSource) -> Grammar:
        """Compiles a grammar, or returns the one that was compiled before from an equal source.

        Raises:
            InvalidRequest: the grammar is invalid, or too large or too slow to compile; or the model takes none.
            ResourceExhausted: too many grammars are being compiled.
        """
        job = self._job(source, await self.vocabulary())
        waited = asyncio.shield(asyncio.wrap_future(job.future))
        # A job that waits behind others may take their time limits as well as its own.
        most_s = self._timeout_s * (1 + MOST_WAITING / THREADS)
        try:
            return await asyncio.wait_for(waited, self._timeout_s if job.started.is_set() else most_s)
        except TimeoutError as error:
            if not job.started.is_set():
                raise ResourceExhausted("the compilation of grammars is busy") from error
            raise refusal(source, f"it takes more than {self._timeout_s:g} s to compile") from error

    async def vocabulary(self) -> GrammarVocabulary:
        """Returns the tokens of the model, which are read once.

        Raises:
            InvalidRequest: the model cannot give constrained answers.
        """
        if self._vocabulary is None or (self._vocabulary.done() and self._vocabulary.exception()):
            self._vocabulary = self._compiling.submit(self._read_vocabulary)
        return await asyncio.shield(asyncio.wrap_future(self._vocabulary))

    def _job(self, source: GrammarSource, vocabulary: GrammarVocabulary) -> _Job:
        for key, job in list(self._jobs.items()):
            if job.future.done() and (job.future.exception() or job.future.result().failed):
                del self._jobs[key]
        if source not in self._jobs:
            if sum(not job.future.done() for job in self._jobs.values()) >= MOST_WAITING:
                raise ResourceExhausted(f"{MOST_WAITING} grammars are being compiled")
            started = threading.Event()
            self._jobs[source] = _Job(self._compiling.submit(self._compile, source, vocabulary, started), started)
        self._jobs.move_to_end(source)
        for key in [key for key, job in self._jobs.items() if job.future.done()][: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[key]
        return self._jobs[source]

    def _compile(self, source: GrammarSource, vocabulary: GrammarVocabulary, started: threading.Event) -> Grammar:
        started.set()
        begin_s = time.monotonic()
        self._trial(source, self._timeout_s * _TRIAL_SHARE)
        grammar = Grammar(source, vocabulary)
        if (took_s := time.monotonic() - begin_s) > self._timeout_s:
            raise refusal(source, f"it took {took_s:.1f} s to compile, the limit is {self._timeout_s:g} s")
        return grammar


def try_grammar(source: GrammarSource, timeout_s: float) -> None:
    """Compiles a grammar in a process of its own, which is killed if it takes too long or too much memory.

    Raises:
        InvalidRequest: the grammar is invalid, too large, or not compiled within `timeout_s` seconds.
        InternalError: the process cannot be started.
    """
    command = python_command("-m", "zipmoe.model.text.grammar_trial")
    try:
        ran = subprocess.run(command, input=source.text.encode(), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise refusal(source, f"it takes more than {timeout_s:g} s to compile") from error
    except OSError as error:
        raise InternalError(f"the process that compiles grammars cannot be started: {error.strerror}") from error
    if ran.returncode == 1 and ran.stdout:
        raise refusal(source, ran.stdout.decode(errors="replace").strip())
    if ran.returncode < 0:  # allocation fails by a signal
        raise refusal(source, "it takes too much memory to compile")
    if ran.returncode:
        last = (ran.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise InternalError(f"the process that compiles grammars has failed: {last}")
