"""Target of a router, and the TLS credentials and token for calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.process.runtime import SocketPaths, runtime_directory
from zipmoe.rpc.auth import bearer_metadata
from zipmoe.rpc.client import aio_channel, channel
from zipmoe.system_error import reason_of

_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def default_target() -> str:
    """Returns the UNIX socket of the router in the run directory, as a gRPC target."""
    return f"unix:{SocketPaths(runtime_directory()).router}"


@dataclass(frozen=True)
class Connection:
    """Target, TLS credentials and token for calls to a router.

    Attributes:
        target: gRPC target, `unix:PATH` or `HOST:PORT`.
        credentials: TLS; None speaks plain text.
        metadata: metadata of every call. Carries the token of a plain-text connection, which has to stay on this
            machine.
        token: bearer token that the channel itself carries, over TLS only.
    """

    target: str
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]
    token: str | None

    def open(self) -> grpc.Channel:
        """Opens a channel for threads, which connects on the first call.

        Raises:
            InvalidRequest: the token would travel to another machine in plain text.
        """
        return channel(self.target, credentials=self.credentials, token=self.token)

    def open_async(self) -> grpc.aio.Channel:
        """Opens a channel for the running event loop; see `open`."""
        return aio_channel(self.target, credentials=self.credentials, token=self.token)


def connection_to(target: str | None, token: str | None, tls_ca: str | os.PathLike[str] | None) -> Connection:
    """Makes a connection from the arguments of a client, and fills in the default target.

    Args:
        target: gRPC target, a socket's path, or None for the router of the run directory.
        token: bearer token, or None.
        tls_ca: PEM file of a certificate authority, or None.

    Raises:
        InvalidRequest: the token cannot travel in a header, or the authority's file cannot be read.
        NotFound: the authority's file does not exist.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token):
        raise InvalidRequest("a token has to be printable ASCII and not empty")
    target = target or default_target()
    if target.startswith(("/", "./", "../")):
        target = f"unix:{Path(target).absolute()}"
    credentials = _credentials(tls_ca)
    is_here = target.startswith("unix:") or target.rpartition(":")[0] in _LOOPBACK_HOSTS
    if token is not None and credentials is None and is_here:
        return Connection(target, None, bearer_metadata(token), None)
    return Connection(target, credentials, (), token)


def _credentials(tls_ca: str | os.PathLike[str] | None) -> grpc.ChannelCredentials | None:
    if tls_ca is None:
        return None
    path = Path(tls_ca)
    try:
        return grpc.ssl_channel_credentials(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"no certificate authority file {path}") from error
    except OSError as error:
        reason = reason_of(error)
        raise InvalidRequest(f"cannot read the certificate authority file {path}: {reason}") from error
