"""`zipmoe chat`: a conversation with a running router."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli import generation_options as options
from zipmoe.cli.answer import stream_text, usage_line
from zipmoe.cli.console import err
from zipmoe.cli.prompt_source import check_text
from zipmoe.cli.router_target import TargetOption, TlsCaOption, TokenFileOption, open_client
from zipmoe.errors import InvalidRequest, ZipMoeError

if TYPE_CHECKING:
    from zipmoe.client import GenerationClient, Message, Sampling, Stopping


def chat(
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="The most tokens of one answer.")] = 512,
    target: TargetOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
) -> None:
    """Talks with the model, turn by turn, with its chat template.

    Ctrl-C ends an answer, Ctrl-D the conversation, /reset forgets what was said.
    """
    from zipmoe.client import Message, Sampling, Stopping

    opening = [] if system is None else [Message("system", check_text(system))]
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    with open_client(target, token_file, tls_ca) as client:
        model = client.model()
        if not model.has_chat_template:
            raise InvalidRequest(
                f"{model.name} has no chat template", next_step="use `zipmoe generate` for plain continuation"
            )
        err().print(f"{model.name}, {model.context_tokens} tokens of context. Ctrl-D ends.", style="dim", markup=False)
        messages = list(opening)
        while (line := _read_line()) is not None:
            if line.strip() == "/reset":
                messages = list(opening)
            elif line.strip():
                messages = _turn(client, [*messages, Message("user", line)], sampling, Stopping(max_new_tokens))


def _read_line() -> str | None:
    """Reads the user's next turn; None at the end of the input."""
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


def _turn(client: GenerationClient, messages: list[Message], sampling: Sampling, stopping: Stopping) -> list[Message]:
    """Has one turn answered; the conversation afterwards, without this turn where it failed or was cut off."""
    from zipmoe.client import Message

    try:
        answer = stream_text(client.generate(messages, sampling=sampling, stopping=stopping))
    except KeyboardInterrupt:
        err().print("(cut off, and forgotten)", style="dim")
        return messages[:-1]
    except ZipMoeError as error:
        if not sys.stdin.isatty():
            raise
        err().print(f"error: {error.message}\n  what to do: {error.diagnostics()}", markup=False)
        return messages[:-1]
    err().print(usage_line(answer.usage), style="dim", soft_wrap=True)
    return [*messages, Message("assistant", answer.text)]
