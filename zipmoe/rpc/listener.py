"""Listening addresses, claimed so that a second server cannot take an address over.

gRPC alone lets a second server bind the same TCP port (SO_REUSEPORT) and the same UNIX socket path (gRPC removes the
file). Both servers then receive connections that were meant for the other, without an error.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from zipmoe.arena.unix_socket import check_socket_path, remove_own_socket, remove_stale_socket
from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.system_error import reason_of

SOCKET_MODE = 0o660


class UnixListener:
    """The right to bind a UNIX socket path.

    The right is the lock on a file beside the socket, held until `release` or the end of the process.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock and removes the socket of a killed predecessor.

        Raises:
            AlreadyRunning: another process holds the lock or listens on the path.
            InvalidRequest: the path is too long, not a socket, or in a directory that cannot be written.
        """
        self.path = path.absolute()
        self._lock_path = Path(f"{self.path}.lock")
        self._inode = 0
        check_socket_path(self.path)
        self._lock_fd = self._lock()
        try:
            remove_stale_socket(self.path, socket.SOCK_STREAM)
        except BaseException:
            self.release()
            raise

    def bound(self) -> None:
        """Notes the inode of the bound socket, and gives the group access."""
        os.chmod(self.path, SOCKET_MODE)
        self._inode = self.path.lstat().st_ino

    def release(self) -> None:
        """Removes the socket and the lock file; a second call does nothing."""
        if self._lock_fd < 0:
            return
        if self._inode:
            remove_own_socket(self.path, self._inode)
        # Unlinked while the lock is still held: a process that opens the path from now on makes a new file.
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _lock(self) -> int:
        while True:
            try:
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, SOCKET_MODE)
            except OSError as error:
                reason = reason_of(error)
                raise InvalidRequest(f"cannot listen on {self.path}: {reason}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == self._lock_path.stat().st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise AlreadyRunning(f"another process serves {self.path}") from None
            except FileNotFoundError:
                pass
            os.close(fd)  # the previous holder has just removed this file: try the new file


@dataclass(frozen=True)
class TcpAddress:
    """A host and port to listen on, with all addresses that the host name resolves to."""

    host: str
    port: int
    resolved: tuple[tuple[socket.AddressFamily, str], ...]

    @classmethod
    def parse(cls, address: str) -> TcpAddress:
        """Reads `host:port` or `[v6]:port`.

        Raises:
            InvalidRequest: the address has another form, or the host is unknown.
        """
        host, separator, port_text = address.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not separator or not host or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
            raise InvalidRequest(f"address '{address}', want host:port with a port of at most 65535")
        try:
            found = socket.getaddrinfo(host, int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise InvalidRequest(f"address '{address}': unknown host") from error
        return cls(host, int(port_text), tuple({(family, str(sockaddr[0])): None for family, *_, sockaddr in found}))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return all(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for _, ip in self.resolved)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def probe(self) -> None:
        """Binds the port and frees it again, to find errors that gRPC would not report.

        Raises:
            AlreadyRunning: the port is in use on at least one of the host's addresses.
            InvalidRequest: the port cannot be bound for another reason.
        """
        for family, ip in self.resolved:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind((ip, self.port))
                    probe.listen(1)  # two sockets may share an address until one listens
                except OSError as error:
                    self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(f"port {self.port} on {self.host} is in use") from error
        if error.errno == errno.EAFNOSUPPORT:
            return
        reason = reason_of(error)
        raise InvalidRequest(f"cannot listen on {self}: {reason}", next_step="choose another --listen") from error


def check_certificate(certificate: Path, key: Path) -> None:
    """Loads a server's certificate chain and private key, both PEM, to find errors that gRPC would not report.

    Raises:
        InvalidRequest: a file is missing or malformed, or certificate and key do not belong together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequest(
            f"cannot use TLS certificate {certificate} with key {key}: {reason_of(error)}",
            next_step="correct --tls-certificate or --tls-key",
        ) from error


def tls_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """Reads a server's certificate chain and private key, both PEM; raises as `check_certificate` does."""
    check_certificate(certificate, key)
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
