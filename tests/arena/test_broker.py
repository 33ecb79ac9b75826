"""The hand-over of an arena between processes: who gets it, who does not, and what is left after each kind of death."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing, suppress

import pytest

from zipmoe.arena import broker as broker_module
from zipmoe.arena.arena import Arena
from zipmoe.arena.broker import ArenaBroker, receive_arena
from zipmoe.errors import AlreadyRunning, InvalidRequest, StaleSlot, Unauthenticated, Unavailable

OWNER = """
import sys
from zipmoe.arena.arena import Arena
from zipmoe.arena.broker import ArenaBroker
arena = Arena.create("store", 1 << 20, 2, lock=True)
arena.slot(1)[:] = b"\\xa5" * (1 << 20)
ArenaBroker(sys.argv[1], arena).start()
print(arena.epoch, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    # Relative, because pytest's own folders can be longer than a socket path may be.
    monkeypatch.chdir(tmp_path)
    return "arena.sock"


@pytest.fixture
def arena():
    with closing(Arena.create("store", 4096, 3, lock=True)) as made:
        yield made


@pytest.fixture
def broker(path, arena):
    made = ArenaBroker(path, arena)
    made.start()
    yield made
    made.stop()


def receive(path, arena, **changes):
    return receive_arena(path, **{"expected_epoch": arena.epoch, "timeout_s": 10.0, **changes})


def arena_descriptors():
    """Descriptors of arenas in this process."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("memfd:zipmoe-" in os.readlink(link) for link in links if os.path.islink(link))


def start_owner(path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    return owner, int(owner.stdout.readline())


def end(owner):
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()


def test_a_received_arena_shows_what_the_owner_writes_later(broker, path, arena):
    with closing(receive(path, arena)) as view:
        assert (view.slot_bytes, view.slot_count) == (4096, 3)
        arena.slot(2)[:] = b"\x77" * 4096
        assert bytes(view.slot(2)) == b"\x77" * 4096


def test_receiving_leaves_no_descriptor(path, arena):
    before = arena_descriptors()
    broker = ArenaBroker(path, arena)
    broker.start()
    for _ in range(5):
        receive(path, arena).close()
    view = receive(path, arena)
    broker.stop()
    assert arena_descriptors() == before
    view.close()
    assert arena_descriptors() == before


def test_the_socket_is_closed_to_other_users_whatever_the_umask(path, arena):
    for umask in (0o000, 0o022, 0o077):
        previous = os.umask(umask)
        try:
            broker = ArenaBroker(path, arena)
            broker.start()
        finally:
            os.umask(previous)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        broker.stop()


def test_stopping_removes_the_socket_and_the_thread_and_can_be_repeated(path, arena):
    broker = ArenaBroker(path, arena)
    broker.start()
    assert "arena-broker-store" in {thread.name for thread in threading.enumerate()}
    broker.stop()
    broker.stop()
    assert not os.path.exists(path)
    assert "arena-broker-store" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(Unavailable, match="no such file"):
        receive(path, arena)


def test_stopping_one_that_never_started_does_nothing(path, arena):
    ArenaBroker(path, arena).stop()


class TestTheWrongClient:
    def test_of_another_user_is_refused_and_told(self, path, arena):
        broker = ArenaBroker(path, arena, allowed_uids=frozenset({54321}))
        broker.start()
        try:
            with pytest.raises(Unauthenticated, match=f"user {os.geteuid()} may not map") as caught:
                receive(path, arena)
            assert caught.value.diagnostics() == "run all services as one user"
        finally:
            broker.stop()

    def test_does_not_take_an_arena_from_another_users_broker(self, broker, path, arena, monkeypatch):
        monkeypatch.setattr(broker_module, "_peer", lambda _: (1, os.geteuid() + 1, 0))
        with pytest.raises(Unauthenticated, match="belongs to user"):
            receive(path, arena)

    def test_with_an_old_epoch_is_told_that_the_owner_has_restarted(self, broker, path, arena):
        with pytest.raises(StaleSlot, match="its owner has restarted"):
            receive(path, arena, expected_epoch=arena.epoch + 1)

    def test_that_never_reads_or_floods_does_not_hold_up_another(self, broker, path, arena):
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(12)]
        try:
            for number, client in enumerate(silent):
                client.connect(path)
                if number % 2:
                    with suppress(BrokenPipeError):  # the broker has answered and gone before we spoke
                        client.send(b"x" * 1000)
            receive(path, arena).close()
        finally:
            for client in silent:
                client.close()

    def test_that_hangs_up_at_once_does_not_stop_the_broker(self, broker, path, arena):
        for _ in range(5):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(path)
        receive(path, arena).close()


class TestTheWrongBroker:
    @pytest.fixture
    def answer(self, path):
        """Serves one connection with given bytes."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(1)
        threads = []

        def serve(message):
            def once():
                connection, _ = listener.accept()
                with connection:
                    if message:
                        connection.send(message)

            threads.append(threading.Thread(target=once))
            threads[-1].start()

        yield serve
        for thread in threads:
            thread.join()
        listener.close()

    @pytest.mark.parametrize("message", [b"", b"hello", bytes(32), b"ZMARENA1" + bytes(24)])
    def test_that_answers_nonsense_is_unavailable(self, answer, path, arena, message):
        answer(message)
        with pytest.raises(Unavailable, match=f"answered with {len(message)} bytes and 0 descriptors"):
            receive(path, arena)

    def test_that_does_not_answer_is_unavailable_after_the_timeout(self, path, arena):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(1)
            with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s"):
                receive(path, arena, timeout_s=0.05)

    def test_whose_arena_is_closed_is_unavailable(self, broker, path, arena):
        arena.close()
        with pytest.raises(Unavailable, match="0 descriptors"):
            receive(path, arena)


class TestThePath:
    def test_of_a_living_broker_is_already_taken(self, broker, path, arena):
        with pytest.raises(AlreadyRunning, match=r"another process listens on arena\.sock"):
            ArenaBroker(path, arena).start()
        receive(path, arena).close()

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_of_a_living_socket_of_another_type_is_already_taken(self, path, arena, kind):
        with socket.socket(socket.AF_UNIX, kind) as other:
            other.bind(path)
            if kind is socket.SOCK_STREAM:
                other.listen(1)
            with pytest.raises(AlreadyRunning):
                ArenaBroker(path, arena).start()
            assert os.path.exists(path)

    def test_of_a_file_that_is_no_socket_is_refused_and_the_file_kept(self, path, arena):
        with open(path, "w") as file:
            file.write("precious")
        with pytest.raises(InvalidRequest, match="is not a socket"):
            ArenaBroker(path, arena).start()
        with open(path) as file:
            assert file.read() == "precious"

    def test_that_is_too_long_is_refused_with_both_lengths(self, arena):
        with pytest.raises(InvalidRequest, match="socket path of 200 bytes, the kernel takes at most 107"):
            ArenaBroker("/" + "x" * 199, arena).start()

    def test_in_a_directory_that_does_not_exist_is_refused(self, path, arena):
        with pytest.raises(InvalidRequest, match="no such file or directory"):
            ArenaBroker("missing/arena.sock", arena).start()

    def test_left_by_a_stopped_socket_is_replaced(self, path, arena):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(path)
        broker = ArenaBroker(path, arena)
        broker.start()
        receive(path, arena).close()
        broker.stop()

    def test_taken_over_by_a_successor_is_not_removed_by_the_old_one(self, broker, path):
        os.rename(path, "elsewhere")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as successor:
            successor.bind(path)
            broker.stop()
            assert os.path.exists(path)


class TestAnOwnerKilledBySigkill:
    def test_leaves_readers_their_bytes_and_nothing_behind_but_the_socket_file(self, path):
        owner, epoch = start_owner(path)
        try:
            view = receive_arena(path, expected_epoch=epoch, timeout_s=10.0)
        finally:
            end(owner)
        assert owner.returncode == -signal.SIGKILL
        assert bytes(view.slot(1)) == b"\xa5" * (1 << 20)
        assert os.listdir() == ["arena.sock"]
        with pytest.raises(Unavailable, match="connection refused"):
            receive_arena(path, expected_epoch=epoch, timeout_s=10.0)
        view.close()

    def test_is_replaced_by_a_successor_with_another_epoch(self, path):
        first, first_epoch = start_owner(path)
        end(first)
        second, second_epoch = start_owner(path)
        try:
            with pytest.raises(StaleSlot):
                receive_arena(path, expected_epoch=first_epoch, timeout_s=10.0)
            receive_arena(path, expected_epoch=second_epoch, timeout_s=10.0).close()
        finally:
            end(second)
