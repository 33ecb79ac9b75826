"""`zipmoe chat`: holds a conversation with a running router."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from zipmoe.cli.console import err
from zipmoe.cli.size import format_size
from zipmoe.cli.talking import generation_options as options
from zipmoe.cli.talking.answer import stream_text
from zipmoe.cli.talking.conversation import Conversation
from zipmoe.cli.talking.prompt_source import check_text
from zipmoe.cli.talking.router_target import TargetOption, TlsCaOption, TokenFileOption, open_client
from zipmoe.errors import InvalidRequest, ZipMoeError

if TYPE_CHECKING:
    from zipmoe.client import Event, GenerationClient, Message, Model, Sampling, Usage

_HELP: Final = """/reset   forget what was said
/exit    end, as Ctrl-D does
/help    this list"""


def chat(
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="The most tokens of one answer.")] = 512,
    target: TargetOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
) -> None:
    """Talks with the model turn by turn, with the chat template of the model.

    Ctrl-C ends an answer, Ctrl-D the conversation; /help lists the commands. If the context is full, the oldest turns
    are forgotten. A status line follows each answer.
    """
    from zipmoe.client import Message, Sampling

    opening = None if system is None else Message("system", check_text(system))
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    with open_client(target, token_file, tls_ca) as client:
        model = client.model()
        if not model.has_chat_template:
            raise InvalidRequest(
                f"{model.name} has no chat template", next_step="use `zipmoe generate` for plain continuation"
            )
        _note(f"{model.name}, {model.context_tokens} tokens of context. /help lists commands, Ctrl-D ends.")
        chat = _Chat(client, model, Conversation(opening), sampling, max_new_tokens)
        while (line := _read_line()) is not None and line.strip() != "/exit":
            if line.strip() == "/reset":
                chat.conversation.reset()
            elif line.strip() == "/help":
                _note(_HELP)
            elif line.strip():
                chat.turn(Message("user", line))


@dataclass
class _Chat:
    """A conversation with a router, with the settings of its answers."""

    client: GenerationClient
    model: Model
    conversation: Conversation
    sampling: Sampling
    max_new_tokens: int

    def turn(self, question: Message) -> None:
        """Asks a question and prints the answer. A turn that fails or is interrupted is forgotten."""
        from zipmoe.client import Message

        try:
            answer = stream_text(self._events(question))
        except KeyboardInterrupt:
            _note("(cut off, and forgotten)")
        except ZipMoeError as error:
            if not sys.stdin.isatty():
                raise
            err().print(f"error: {error.message}\n  what to do: {error.diagnostics()}", markup=False)
        else:
            self.conversation.answered(question, Message("assistant", answer.text))
            _note(status_line(answer.usage, self.model.context_tokens))

    def _events(self, question: Message) -> Iterator[Event]:
        from zipmoe.client import Stopping

        longest = self.max_new_tokens
        if not self.model.encoder_decoder:  # the prompt of an encoder takes no room from the answer
            room, forgotten = self.conversation.make_room(
                question, self.model.context_tokens, lambda messages: len(self.client.tokenize(messages))
            )
            longest = min(longest, room)
            if forgotten:
                _note(f"(the context is full: the oldest {forgotten} of the turns are forgotten)")
        asked = self.conversation.asking(question)
        return self.client.generate(asked, sampling=self.sampling, stopping=Stopping(longest))


def status_line(usage: Usage, context_tokens: int) -> str:
    """Describes an answer on one line: speed, expert hits and use of the context."""
    parts = []
    if usage.inter_token_s:
        parts.append(f"{1 / usage.inter_token_s:.1f} tokens/s")
    if usage.generated_tokens:
        parts.append(f"first token after {usage.time_to_first_token_s:.2f} s")
    uses = usage.expert_hits + usage.expert_misses
    if uses:
        parts.append(f"{usage.expert_hits / uses:.0%} of {uses} experts at hand")
        parts.append(f"{format_size(usage.expert_bytes_read)} read")
    parts.append(f"{usage.prompt_tokens + usage.generated_tokens} of {context_tokens} tokens of context")
    return " | ".join(parts)


def _note(text: str) -> None:
    err().print(text, style="dim", markup=False, soft_wrap=True)


def _read_line() -> str | None:
    """Reads the next turn of the user; None at the end of the input."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() its line editing
    try:
        return input("> " if interactive else "")
    except (EOFError, KeyboardInterrupt):
        if interactive:
            err().print()
        return None
    except UnicodeDecodeError as error:
        raise InvalidRequest("standard input is not valid UTF-8", next_step="convert it to UTF-8") from error
