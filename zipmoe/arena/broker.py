"""Hands an arena's read-only descriptor to other processes of the same user over a UNIX socket.

The owner sends one message on each connection: a fixed header (epoch and geometry), and with it the descriptor
(SCM_RIGHTS). The owner reads nothing from a client and waits for none longer than 1 s, so a slow or hostile client
cannot block the others.
"""

from __future__ import annotations

import fcntl
import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.arena.unix_socket import check_socket_path, remove_own_socket, remove_stale_socket
from zipmoe.errors import InvalidRequest, StaleSlot, Unauthenticated, Unavailable
from zipmoe.system_error import reason_of

# Magic, epoch, slot_bytes, slot_count.
_HEADER = struct.Struct("<8sQQQ")
_MAGIC = b"ZMARENA1"
_REFUSAL = b"ZMREFUSE"
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_SOCKET_KIND = socket.SOCK_SEQPACKET
_SOCKET_MODE = 0o660
_BACKLOG = 16
_SEND_TIMEOUT_S = 1.0
# Pause before the next accept when this process is out of descriptors.
_ACCEPT_PAUSE_S = 0.1

_LOG = logging.getLogger(__name__)


class ArenaBroker:
    """Serves an arena on a socket from a named thread."""

    def __init__(self, path: str | Path, arena: Arena, *, allowed_uids: frozenset[int] | None = None) -> None:
        """Prepares the broker. The socket file exists only after `start`.

        Args:
            path: the path of the socket, at most 107 bytes.
            arena: the arena to hand out; it has to outlive the broker.
            allowed_uids: users that may map the arena; by default this process's user and root.
        """
        self._path = Path(path)
        self._arena = arena
        self._allowed_uids = frozenset({0, os.geteuid()}) if allowed_uids is None else allowed_uids
        self._sockets: tuple[socket.socket, ...] = ()
        self._inode = 0
        self._stopping = threading.Event()

    def start(self) -> None:
        """Binds the socket, replaces a socket file that a killed process left, and starts to serve.

        Raises:
            AlreadyRunning: another process serves this path.
            InvalidRequest: the path is too long, not a socket, or cannot be bound.
        """
        check_socket_path(self._path)
        listener = self._bind()
        waker, wake = socket.socketpair()
        self._sockets = (wake, waker, listener)
        name = f"arena-broker-{self._arena.owner_id}"
        self._thread = threading.Thread(target=self._serve, args=(listener, waker), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and removes the socket file. Mappings in other processes stay."""
        if not self._sockets:
            return
        self._stopping.set()
        self._sockets[0].send(b"\0")
        self._thread.join()
        remove_own_socket(self._path, self._inode)
        for each in self._sockets:
            each.close()
        self._sockets = ()

    def _bind(self) -> socket.socket:
        with socket.socket(socket.AF_UNIX, _SOCKET_KIND) as listener, _lock_directory(self._path):
            remove_stale_socket(self._path, _SOCKET_KIND)
            try:
                # On Linux the file gets the socket's own mode less the umask, so it is never too permissive.
                os.fchmod(listener.fileno(), _SOCKET_MODE)
                listener.bind(os.fspath(self._path))
                os.chmod(self._path, _SOCKET_MODE)
                listener.listen(_BACKLOG)
            except OSError as error:
                raise InvalidRequest(f"cannot bind {self._path}: {reason_of(error)}") from error
            self._inode = os.lstat(self._path).st_ino
            return listener.dup()

    def _serve(self, listener: socket.socket, waker: socket.socket) -> None:
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(waker, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set():
                    return
                try:
                    connection, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue  # the client has disconnected
                except OSError as error:
                    _LOG.warning("arena_broker_cannot_accept", extra={"reason": str(error)})
                    self._stopping.wait(_ACCEPT_PAUSE_S)
                    continue
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_TIMEOUT_S)
        try:
            pid, uid, _ = _peer(connection)
            if uid not in self._allowed_uids:
                _LOG.warning("arena_refused", extra={"peer_pid": pid, "peer_uid": uid})
                connection.send(_REFUSAL + f"user {uid} may not map {self._path}".encode())
                return
            fd = self._arena.read_only_fd()
            try:
                arena = self._arena
                header = _HEADER.pack(_MAGIC, arena.epoch, arena.slot_bytes, arena.slot_count)
                socket.send_fds(connection, [header], [fd])
            finally:
                os.close(fd)
        except (OSError, InvalidRequest) as error:  # the client disconnected, or the arena was closed first
            _LOG.warning("arena_not_handed_over", extra={"reason": str(error)})


def receive_arena(path: str, *, expected_epoch: int, timeout_s: float) -> ArenaView:
    """Maps, read-only, the arena that the broker at `path` serves.

    Args:
        path: the path of the broker's socket.
        expected_epoch: epoch of the arena, as the owner announced it to the caller.
        timeout_s: longest wait for the broker, in seconds.

    Raises:
        Unavailable: no broker serves the path, or its answer is late or malformed.
        StaleSlot: the arena has another epoch, because its owner has restarted.
        Unauthenticated: the broker refuses this user, or belongs to neither this user nor root.
    """
    check_socket_path(Path(path))
    try:
        with socket.socket(socket.AF_UNIX, _SOCKET_KIND) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            _, uid, _ = _peer(connection)
            if uid not in (0, os.geteuid()):
                raise Unauthenticated(f"arena broker {path} belongs to user {uid}, not to {os.geteuid()} or root")
            message, fds, _, _ = socket.recv_fds(connection, 512, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError as error:
        raise Unavailable(f"arena broker {path} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise Unavailable(f"no arena broker at {path}: {reason_of(error)}") from error
    try:
        return _map(path, message, fds, expected_epoch)
    finally:
        for fd in fds:
            with suppress(OSError):
                os.close(fd)


def _map(path: str, message: bytes, fds: list[int], expected_epoch: int) -> ArenaView:
    if message.startswith(_REFUSAL):
        raise Unauthenticated(
            f"arena broker refuses: {message[len(_REFUSAL) :].decode(errors='replace')}",
            next_step="run all services as one user",
        )
    if len(message) != _HEADER.size or not message.startswith(_MAGIC) or len(fds) != 1:
        raise Unavailable(f"arena broker {path} answered with {len(message)} bytes and {len(fds)} descriptors")
    _, epoch, slot_bytes, slot_count = _HEADER.unpack(message)
    if epoch != expected_epoch:
        raise StaleSlot(f"arena at {path} has epoch {epoch}, expected {expected_epoch}: its owner has restarted")
    return ArenaView.open(fds[0], slot_bytes, slot_count)


@contextmanager
def _lock_directory(path: Path) -> Iterator[None]:
    """Locks the directory, so that two starting processes do not remove each other's socket. Leaves no lock file."""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"cannot bind {path}: {reason_of(error)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Returns pid, uid and gid of the other end, as of the moment when it connected or began to listen."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(raw)
    return pid, uid, gid
