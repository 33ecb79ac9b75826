"""What every service shows to Prometheus, and the port on which it does."""

import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

import zipmoe
from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.process.metrics import service_registry, start_metrics_server


@pytest.fixture
def registry():
    return CollectorRegistry()


def read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_the_registry_of_a_service_says_what_runs_and_how_the_process_is():
    registry = service_registry("decoder")
    labels = {"service": "decoder", "version": zipmoe.__version__}
    (sample,) = [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "zipmoe_build_info" and labels.items() <= sample.labels.items()
    ]
    assert sample.value == 1
    assert registry.get_sample_value("process_resident_memory_bytes") > 0
    assert registry.get_sample_value("process_open_fds") > 0


def test_two_services_in_one_process_do_not_share_a_registry():
    assert service_registry("decoder") is not service_registry("router")


class TestThePort:
    def test_shows_the_registry_and_nothing_else(self, registry):
        Counter("zipmoe_things", "Things.", registry=registry).inc(3)
        server = start_metrics_server(0, registry)
        try:
            text = read(server.port)
        finally:
            server.stop()
        assert "zipmoe_things_total 3.0" in text
        assert "python_info" not in text

    def test_is_closed_by_stop_and_its_thread_ends(self, registry):
        before = threading.active_count()
        server = start_metrics_server(0, registry)
        port = server.port
        server.stop()
        assert threading.active_count() == before
        with pytest.raises(urllib.error.URLError):
            read(port)
        start_metrics_server(port, registry).stop()

    def test_in_use_is_already_running(self, registry):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen(1)
            port = other.getsockname()[1]
            with pytest.raises(AlreadyRunning, match=f"metrics port {port} on 127.0.0.1 is in use") as caught:
                start_metrics_server(port, registry)
        assert "--metrics-port" in caught.value.diagnostics()

    @pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid"])
    def test_on_an_address_that_is_not_ours_is_refused(self, registry, address):
        with pytest.raises(InvalidRequest, match=f"cannot show metrics on {address}"):
            start_metrics_server(0, registry, address=address)
