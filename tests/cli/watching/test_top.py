"""`zipmoe top`: rates from two scrapes, a bar for each layer, and services that are found or named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from rich.console import Console

from tests.cli.run import zipmoe
from zipmoe.cli.serving.free_ports import free_ports
from zipmoe.cli.watching.metrics_endpoints import DEFAULT_ENDPOINTS, metrics_endpoints, noted_endpoints
from zipmoe.cli.watching.readings import STATES, Rates, Readings, Snapshot
from zipmoe.cli.watching.scrape import MetricSample, Samples
from zipmoe.cli.watching.top_view import cells, view
from zipmoe.process.metrics import start_metrics_server


def resident(layer: int, **counts: int) -> list[MetricSample]:
    name = "zipmoe_experts_resident"
    return [MetricSample(name, {"layer": str(layer), "state": state}, count) for state, count in counts.items()]


LATER = Samples(
    [
        MetricSample("zipmoe_expert_hits_total", {"residency": "full"}, 60.0),
        MetricSample("zipmoe_expert_hits_total", {"residency": "packed"}, 30.0),
        MetricSample("zipmoe_expert_misses_total", {}, 10.0),
        MetricSample("zipmoe_generated_tokens_total", {}, 20.0),
        MetricSample("zipmoe_store_read_bytes_total", {"part": "all"}, 4096.0),
        MetricSample("zipmoe_store_read_bytes_total", {"part": "e"}, 1024.0),
        MetricSample("zipmoe_decoder_workers", {}, 2.0),
        MetricSample("zipmoe_decoders_connected", {}, 1.0),
        MetricSample("zipmoe_prefetch_depth", {}, 2.0),
        *(
            MetricSample("zipmoe_prefetches_total", {"outcome": name}, n)
            for name, n in (("used", 12), ("late", 6), ("wasted", 2))
        ),
        *(MetricSample("zipmoe_free_slots", {"pool": pool}, n) for pool, n in (("e", 3), ("sm", 4), ("tensor", 0))),
        *resident(1, absent=2, e_only=0, sm_only=0, packed=0, full=6),
        *resident(0, absent=4, e_only=1, sm_only=1, packed=2, full=0),
    ]
)


class TestRates:
    def test_counters_become_rates_and_shares(self) -> None:
        rates = Rates.between(Samples(), LATER, 4.0)
        assert (rates.full_hit_share, rates.packed_hit_share, rates.miss_share) == (0.6, 0.3, 0.1)
        assert (rates.generated_tokens_per_s, rates.read_bytes_per_s, rates.read_bytes_per_token) == (5, 1280, 256)
        assert rates.guesses_per_s == {"used": 3, "late": 1.5, "wasted": 0.5}

    def test_where_nothing_happens_rates_are_0_and_shares_unknown(self) -> None:
        rates = Rates.between(LATER, LATER, 4.0)
        assert (rates.generated_tokens_per_s, rates.read_bytes_per_s) == (0, 0)
        assert (rates.full_hit_share, rates.read_bytes_per_token, rates.stall_share) == (None, None, None)

    def test_a_service_that_was_started_anew_shows_nothing_instead_of_less(self) -> None:
        assert Rates.between(LATER, Samples(), 4.0).read_bytes_per_s == 0


class TestView:
    @given(
        counts=st.lists(st.integers(0, 200), min_size=5, max_size=5).filter(any),
        width=st.integers(1, 80),
    )
    def test_a_bar_is_divided_in_proportion_and_filled(self, counts: list[int], width: int) -> None:
        layer = dict(zip(STATES, counts, strict=True))
        shown = cells(layer, width)
        assert sum(shown.values()) == width
        assert all(abs(shown[state] - layer[state] * width / sum(counts)) < 1 for state in STATES)

    def drawn(self, samples: Samples, width: int, height: int) -> list[str]:
        before, after = Snapshot(1.0, {}, Samples()), Snapshot(3.0, {"decoder": "no metrics"}, samples)
        console = Console(width=width)
        with console.capture() as capture:
            console.print(view(Readings.of(before, after), width, height))
        return capture.get().splitlines()

    def test_each_layer_has_a_bar_by_state(self) -> None:
        lines = self.drawn(LATER, 12, 40)
        assert lines[-2:] == ["0 ▓▓▒░····  ", "1 ██████··  "]

    def test_guesses_and_free_slots_are_shown(self) -> None:
        lines = self.drawn(LATER, 100, 40)
        (guesses,) = (line for line in lines if "guesses" in line)
        assert guesses.split()[-6:-3] == ["6.0", "3.0", "1.0"]  # of the last 2 s
        assert "decoders 1   guessing 2 layers ahead   free slots 3 e, 4 sm, 0 tensor" in [x.rstrip() for x in lines]

    def test_layers_that_do_not_fit_below_each_other_stand_side_by_side(self) -> None:
        samples = Samples(sample for layer in range(48) for sample in resident(layer, full=layer, absent=48 - layer))
        lines = [line for line in self.drawn(samples, 120, 34) if line.lstrip()[:1].isdigit()]
        assert len(lines) == 12
        assert [word for word in lines[0].split() if word.isdecimal()] == ["0", "12", "24", "36"]
        assert max(map(len, lines)) <= 120

    def test_it_says_who_is_down(self) -> None:
        assert "decoder is down: no metrics" in self.drawn(LATER, 80, 40)

    def test_an_empty_layer_has_an_empty_bar(self) -> None:
        assert sum(cells(dict.fromkeys(STATES, 0), 10).values()) == 0


class TestEndpoints:
    def test_they_are_noted_while_the_services_run(self, tmp_path: Path) -> None:
        with noted_endpoints(tmp_path, "0.0.0.0", {"router": 7}):
            assert metrics_endpoints(tmp_path) == {"router": "127.0.0.1:7"}
        assert not any(tmp_path.iterdir())
        assert metrics_endpoints(tmp_path) == DEFAULT_ENDPOINTS

    def test_a_damaged_note_is_no_note(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.json").write_text("{")
        assert metrics_endpoints(tmp_path) == DEFAULT_ENDPOINTS

    def test_an_address_of_version_6_keeps_its_colons_apart(self, tmp_path: Path) -> None:
        with noted_endpoints(tmp_path, "::", {"router": 7}):
            assert metrics_endpoints(tmp_path) == {"router": "[::1]:7"}


@contextmanager
def services() -> Iterator[list[str]]:
    """Two services with metrics, as HOST:PORT."""
    router, decoder = CollectorRegistry(), CollectorRegistry()
    Gauge("zipmoe_experts_resident", "", ["layer", "state"], registry=router).labels("0", "full").set(3)
    Gauge("zipmoe_requests_running", "", registry=router).set(2)
    Counter("zipmoe_decoder_recovered_bytes", "", registry=decoder).inc(8)
    with ExitStack() as stack:
        ports = []
        for registry in (router, decoder):
            server = start_metrics_server(0, registry)
            stack.callback(server.stop)
            ports.append(server.port)
        yield [f"127.0.0.1:{port}" for port in ports]


class TestVerb:
    def test_services_are_named_or_found_by_the_runtime_directory(self, tmp_path: Path) -> None:
        with services() as endpoints:
            named = zipmoe("top", *endpoints, "--interval", 0.05, "--json").json
            ports = {name: int(each.rpartition(":")[2]) for name, each in zip("ab", endpoints, strict=True)}
            with noted_endpoints(tmp_path, "127.0.0.1", ports):
                found = zipmoe("top", "--runtime-dir", tmp_path, "--interval", 0.05, "--json").json
        for shown in (named, found):
            assert shown["layers"] == [{"full": 3, "packed": 0, "sm_only": 0, "e_only": 0, "absent": 0}]
            assert shown["gauges"]["requests_running"] == 2
            assert shown["now"]["recovered_bytes_per_s"] == 0

    def test_one_picture_is_drawn_where_there_is_no_terminal(self) -> None:
        with services() as endpoints:
            ran = zipmoe("top", *endpoints, "--interval", 0.05)
        assert ran.exit_code == 0
        assert "requests 2 running, 0 waiting" in ran.stdout

    def test_a_service_that_does_not_answer_is_shown_as_down(self) -> None:
        nobody = f"127.0.0.1:{free_ports(1)[0]}"
        with services() as endpoints:
            ran = zipmoe("top", *endpoints, nobody, "--interval", 0.05, "--once")
        assert f"{nobody} is down" in ran.stdout

    def test_nobody_at_all_is_an_error(self) -> None:
        ran = zipmoe("top", f"127.0.0.1:{free_ports(1)[0]}", "--json")
        assert (ran.exit_code, ran.error["class"]) == (1, "Unavailable")
        assert "zipmoe up" in ran.error["next_step"]

    @pytest.mark.parametrize("arguments", [("nowhere",), ("127.0.0.1:x",), ("--interval", "0")])
    def test_what_can_never_work_is_a_usage_error(self, arguments: tuple[str, ...]) -> None:
        ran = zipmoe("top", *arguments, "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "InvalidRequest")
