"""The table of clients: the program of each, and where the client has to be installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROGRAMS: Final = "scripts.try_clients.programs"
CHECKS: Final = ("chat", "stream", "tools", "JSON schema", "cancel")


@dataclass(frozen=True)
class Installed:
    """Places of the clients, as the command line names them.

    Attributes:
        python: interpreter of an environment with the Python clients.
        node_folder: folder with `node_modules`; None for no clients of Node.
        opencode: program of opencode; None for none.
    """

    python: Path | None
    node_folder: Path | None
    opencode: Path | None


@dataclass(frozen=True)
class Client:
    """A row of the table.

    Attributes:
        name: name of the client.
        command: command of its program; None where the command line names no place for the client.
        present: words of a command that succeeds where the client is installed.
        place: option of the command line that names the client's place.
    """

    name: str
    command: Sequence[str] | None
    present: Sequence[str]
    place: str


def clients(installed: Installed, own_python: str) -> list[Client]:
    """Returns the rows of the table.

    Args:
        installed: places of the clients.
        own_python: an interpreter without clients, for programs that drive a binary.
    """
    return [
        _python("openai-python", "openai", "openai_chat", installed.python),
        _python("anthropic", "anthropic", "anthropic_messages", installed.python),
        _python("litellm", "litellm", "litellm_chat", installed.python),
        _python("langchain-openai", "langchain_openai", "langchain_chat", installed.python),
        _python("llm", "llm", "llm_program", installed.python),
        _node(installed.node_folder),
        _opencode(installed.opencode, own_python),
    ]


def _python(name: str, package: str, program: str, python: Path | None) -> Client:
    if python is None:
        return Client(name, None, (), "--clients")
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return Client(name, (str(python), "-m", f"{_PROGRAMS}.{program}"), (str(python), "-c", found), "--clients")


def _node(folder: Path | None) -> Client:
    if folder is None:
        return Client("openai-node", None, (), "--node")
    package = folder.resolve() / "node_modules" / "openai"
    program = Path(__file__).parent / "programs" / "openai_node.mjs"
    found = f"require({str(package / 'package.json')!r})"
    return Client("openai-node", ("node", str(program), str(package)), ("node", "-e", found), "--node")


def _opencode(program: Path | None, own_python: str) -> Client:
    if program is None:
        return Client("opencode", None, (), "--opencode")
    binary = str(program.resolve())
    command = (own_python, "-m", f"{_PROGRAMS}.opencode_program", binary)
    return Client("opencode", command, (binary, "--version"), "--opencode")
