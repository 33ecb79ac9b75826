"""Three options that name the router of a command, shared by several verbs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zipmoe.client import GenerationClient

TargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET",
        envvar="ZIPMOE_TARGET",
        help="unix:PATH or HOST:PORT of the router.  [default: the router of the runtime directory]",
        show_default=False,
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="ZIPMOE_TOKEN_FILE", help="File with the token that the router asks for."),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="ZIPMOE_TLS_CA", help="PEM file of the authority of the router's certificate."),
]


def open_client(target: str | None, token_file: Path | None, tls_ca: Path | None) -> GenerationClient:
    """Creates a client of the router.

    Raises:
        NotFound: the token file cannot be read.
        InvalidRequest: the token file holds no token, or a token that cannot be sent.
    """
    from zipmoe.client import GenerationClient
    from zipmoe.process.secret_file import read_secret

    token = None if token_file is None else read_secret(token_file)
    return GenerationClient(target, token=token, tls_ca=tls_ca)
