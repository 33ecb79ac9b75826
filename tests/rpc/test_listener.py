"""An address belongs to one server at a time, and every way it can be wrong has its own text."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
import tempfile
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.rpc.echo import ECHO, SERVICE, add_echo, call
from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.rpc.client import aio_channel
from zipmoe.rpc.listener import TcpAddress, UnixListener, tls_credentials
from zipmoe.rpc.server import ServiceHost

TLS = Path(__file__).parent / "tls"


@pytest.fixture
def path():
    # Not tmp_path: pytest's own folders can be longer than a socket path may be.
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as directory:
        yield Path(directory) / "a.sock"


@pytest.fixture
async def host():
    async with ServiceHost("test", CollectorRegistry(), [SERVICE], grace_s=0.0) as made:
        add_echo(**ECHO)(made.server)
        yield made


@contextlib.asynccontextmanager
async def another_host(**options):
    async with ServiceHost("other", CollectorRegistry(), [], grace_s=0.0, **options) as made:
        yield made


class TestAUnixSocket:
    async def test_serves_and_is_gone_afterwards_with_its_lock(self, host, path):
        host.listen(path)
        await host.start()
        async with aio_channel(path) as channel:
            assert await call(channel, "unary_unary", b"x") == [b"x"]
        assert sorted(os.listdir(path.parent)) == ["a.sock", "a.sock.lock"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await host.stop()
        assert os.listdir(path.parent) == []

    async def test_can_be_written_as_an_address(self, host, path):
        assert host.listen(f"unix:{path}") == 0
        assert path.exists()

    async def test_of_another_server_is_already_taken_and_keeps_serving(self, host, path):
        host.listen(path)
        await host.start()
        async with another_host() as other:
            with pytest.raises(AlreadyRunning, match=f"another process serves {path}"):
                other.listen(path)
        async with aio_channel(path) as channel:
            assert await call(channel, "unary_unary", b"x") == [b"x"]

    async def test_of_something_without_a_lock_is_already_taken(self, host, path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as foreign:
            foreign.bind(str(path))
            foreign.listen(1)
            with pytest.raises(AlreadyRunning, match="another process listens"):
                host.listen(path)
        assert os.listdir(path.parent) == ["a.sock"]

    async def test_left_by_a_killed_server_is_replaced(self, host, path):
        program = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from zipmoe.rpc.server import ServiceHost
async def main():
    async with ServiceHost("victim", CollectorRegistry(), []) as host:
        host.listen(Path(sys.argv[1]))
        await host.start()
        print("ready", flush=True)
        await host.run_until_signal()
asyncio.run(main())
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(path), stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert await victim.stdout.readline() == b"ready\n"
        with pytest.raises(AlreadyRunning):
            host.listen(path)
        victim.kill()
        assert await victim.wait() == -signal.SIGKILL
        assert sorted(os.listdir(path.parent)) == ["a.sock", "a.sock.lock"]
        host.listen(path)
        await host.start()
        async with aio_channel(path) as channel:
            assert await call(channel, "unary_unary", b"x") == [b"x"]

    async def test_over_a_file_that_is_no_socket_is_refused_and_the_file_kept(self, host, path):
        path.write_text("precious")
        with pytest.raises(InvalidRequest, match="is not a socket"):
            host.listen(path)
        assert path.read_text() == "precious"
        assert os.listdir(path.parent) == ["a.sock"]

    async def test_with_a_path_that_is_too_long_is_refused(self, host):
        with pytest.raises(InvalidRequest, match="the kernel takes at most 107") as caught:
            host.listen(Path("/" + "x" * 107))
        assert "--runtime-dir" in caught.value.diagnostics()

    async def test_in_a_missing_directory_is_refused(self, host, path):
        with pytest.raises(InvalidRequest, match="no such file or directory"):
            host.listen(path.parent / "missing" / "a.sock")

    def test_can_be_claimed_again_after_release_and_release_can_be_repeated(self, path):
        for _ in range(2):
            claim = UnixListener(path)
            with pytest.raises(AlreadyRunning):
                UnixListener(path)
            claim.release()
            claim.release()
        assert os.listdir(path.parent) == []

    def test_is_claimed_anew_when_its_lock_file_has_just_been_removed(self, path, monkeypatch):
        """The race: we open the lock file, its holder removes it and lets go, we lock a file without a name."""
        first = UnixListener(path)
        original = os.open

        def open_then_lose(name, *arguments):
            fd = original(name, *arguments)
            monkeypatch.setattr(os, "open", original)
            first.release()
            return fd

        monkeypatch.setattr(os, "open", open_then_lose)
        second = UnixListener(path)
        with pytest.raises(AlreadyRunning):
            UnixListener(path)
        second.release()


class TestATcpAddress:
    async def test_with_port_0_gets_a_free_port_and_serves(self, host):
        port = host.listen("127.0.0.1:0")
        await host.start()
        async with aio_channel(f"127.0.0.1:{port}") as channel:
            assert await call(channel, "unary_unary", b"x") == [b"x"]

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "0.0.0.0"])
    async def test_in_use_by_another_server_is_already_running(self, host, name):
        port = host.listen("127.0.0.1:0")
        await host.start()
        async with another_host() as other:
            with pytest.raises(AlreadyRunning, match=f"port {port} on {name} is in use"):
                other.listen(f"{name}:{port}", insecure_listen=True)

    async def test_in_use_by_a_server_that_allows_sharing_is_already_running(self, host):
        with socket.socket() as foreign:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            foreign.bind(("127.0.0.1", 0))
            foreign.listen(1)
            with pytest.raises(AlreadyRunning):
                host.listen(f"127.0.0.1:{foreign.getsockname()[1]}")

    @pytest.mark.parametrize(
        "text", ["", "50051", ":50051", "localhost", "localhost:", "localhost:x", "localhost:-1", "h:65536", "h:\u0661"]
    )
    def test_that_is_malformed_is_refused(self, text):
        with pytest.raises(InvalidRequest, match="want host:port"):
            TcpAddress.parse(text)

    def test_of_an_unknown_host_is_refused(self):
        with pytest.raises(InvalidRequest, match="unknown host"):
            TcpAddress.parse("no.such.host.invalid:1")

    async def test_of_another_machine_is_refused(self, host):
        with pytest.raises(InvalidRequest, match="cannot assign requested address"):
            host.listen("192.0.2.1:50051", insecure_listen=True)

    @pytest.mark.parametrize(
        ("text", "is_loopback"),
        [
            ("127.0.0.1:1", True),
            ("127.8.9.1:1", True),
            ("[::1]:1", True),
            ("localhost:1", True),
            ("0.0.0.0:1", False),
            ("[::]:1", False),
            ("192.0.2.1:1", False),
        ],
    )
    def test_is_loopback_only_if_no_other_machine_can_reach_it(self, text, is_loopback):
        address = TcpAddress.parse(text)
        assert address.is_loopback == is_loopback
        assert str(address) == text


class TestAnAddressThatOthersCanReach:
    @pytest.fixture
    def credentials(self):
        return tls_credentials(TLS / "test-only.crt", TLS / "test-only.key")

    @pytest.mark.parametrize(
        ("with_tls", "with_token", "missing"),
        [(False, False, "TLS and a token"), (True, False, "a token"), (False, True, "TLS")],
    )
    async def test_needs_tls_and_a_token(self, credentials, with_tls, with_token, missing):
        async with another_host(token="t" if with_token else None) as host:
            with pytest.raises(InvalidRequest, match=f"but {missing} would be missing") as caught:
                host.listen("0.0.0.0:0", credentials if with_tls else None)
            assert "--insecure-listen" in caught.value.diagnostics()

    async def test_is_allowed_without_them_only_on_purpose(self, host):
        assert host.listen("0.0.0.0:0", insecure_listen=True) > 0

    async def test_serves_over_tls_with_the_token(self, credentials):
        trusted = grpc.ssl_channel_credentials((TLS / "test-only.crt").read_bytes())
        async with another_host(token="t") as host:
            add_echo(**ECHO)(host.server)
            port = host.listen("0.0.0.0:0", credentials)
            await host.start()
            async with aio_channel(f"localhost:{port}", credentials=trusted, token="t") as channel:
                assert await call(channel, "unary_unary", b"x") == [b"x"]
            async with aio_channel(f"localhost:{port}", credentials=trusted, token="u") as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="wrong token"):
                    await call(channel, "unary_unary", b"x")

    @pytest.mark.parametrize(
        ("certificate", "key", "text"),
        [
            ("missing.crt", "test-only.key", "no such file or directory"),
            ("test-only.crt", "missing.key", "no such file or directory"),
            ("test-only.key", "test-only.crt", "test-only.key"),
            ("test-only.crt", "test-only.crt", "test-only.crt"),
        ],
    )
    def test_refuses_a_certificate_that_cannot_work(self, certificate, key, text):
        with pytest.raises(InvalidRequest, match=text):
            tls_credentials(TLS / certificate, TLS / key)
