"""Every refusal says a next step that works, or is listed with the reason why no test can perform it."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import PreTrainedModel
from typer.main import get_command

from tests.calibration.measurement_time import measuring_at_once
from tests.model.hub import HubCheckpoints
from tests.one_thread import one_thread
from tests.properties.next_steps.bench import CASES, FAMILY, SIZES, Bench, PerformedStep, Refused
from tests.properties.next_steps.sites import ROOT, Site, sites
from zipmoe.cli.__main__ import app
from zipmoe.model.probe.configuration import probe_configuration
from zipmoe.model.probe.result import ProbeResult
from zipmoe.model.stock.cache_sizes import measure_sizes

HERE = Path(__file__).parent
for _module in sorted(HERE.glob("cases_*.py")):
    importlib.import_module(f"tests.properties.next_steps.{_module.stem}")


class ProbeHere:
    """Probes in this process, each configuration once: the process of `ProbeRun` imports transformers for seconds."""

    known: ClassVar[dict[bytes, ProbeResult]] = {}

    def __init__(self, path: Path) -> None:
        self._path = path

    def result(self) -> ProbeResult:
        config = (self._path / "config.json").read_bytes()
        if config not in self.known:
            with tempfile.TemporaryDirectory() as folder:
                self.known[config] = probe_configuration(self._path, Path(folder))
        return self.known[config]


_COMMAND = get_command(app)


_SIZES: dict[str, Any] = {}


def _measured_once(model: PreTrainedModel) -> Any:
    """Measures the model of each configuration once, which is half of the time of a pack."""
    config = model.config.to_json_string()
    if config not in _SIZES:
        _SIZES[config] = measure_sizes(model)
    return _SIZES[config]


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("zipmoe.cli.stores.pack.tokenizer_warnings", lambda store: [])
    monkeypatch.setattr("zipmoe.calibration.saved_probe.ProbeRun", ProbeHere)
    monkeypatch.setattr("zipmoe.model.checkpoint.catalogue.measure_sizes", _measured_once)
    monkeypatch.setattr("typer.testing._get_command", lambda app: _COMMAND)  # made anew, it takes a tenth of a second
    with one_thread(), measuring_at_once(tmp_path / "cache"):
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubCheckpoints:
    return HubCheckpoints(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def packed(hub: HubCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zipmoe.model.checkpoint.catalogue import catalogue
    from zipmoe.store.pack.writer import PackOptions, pack_store

    path = tmp_path_factory.mktemp("packed") / "store"
    pack_store(catalogue(hub.get(FAMILY, **SIZES)), path, PackOptions(workers=1))
    return path


@pytest.mark.parametrize("case", CASES, ids=[case.steps.__name__ for case in CASES])
def test_the_next_step_works(case: PerformedStep, hub: HubCheckpoints, packed: Path, tmp_path: Path) -> None:
    steps = case.steps(Bench(tmp_path, hub, packed))
    ran = next(steps)
    assert ran.exit_code != 0
    error = ran.error
    refused = Refused(error["class"], error["message"], error["next_step"])
    assert refused.next_step
    for site in case.named_sites():
        assert site.made(refused.message), refused.message
    worked = 0
    try:
        ran = steps.send(refused)
        while True:
            assert ran.exit_code == 0, ran.stderr
            worked += 1
            ran = next(steps)
    except StopIteration:
        assert worked, "the case performs no next step"


def not_performed() -> dict[tuple[str, str], str]:
    """The reasons of not_performed.txt by file and message."""
    reasons: dict[tuple[str, str], str] = {}
    reason = file = ""
    for line in (HERE / "not_performed.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            reason = line[2:]
        elif line.startswith("  "):
            assert (file, line[2:]) not in reasons, f"{line} is listed twice"
            reasons[file, line[2:]] = reason
        elif line:
            file = line
    return reasons


def test_every_refusal_is_performed_or_listed_with_a_reason() -> None:
    performed: set[Site] = set().union(*(case.named_sites() for case in CASES))
    listed = {(site.file, json.dumps(site.message)[1:-1]): site for site in sites() - performed}
    reasons = not_performed()
    assert len(sites()) > 250, "the walk no longer sees the calls"
    assert {name for name in listed if name not in reasons} == set(), "a refusal without a case and without a reason"
    assert {name for name in reasons if name not in listed} == set(), "a reason for a refusal that is performed or gone"


def test_the_tests_that_perform_a_next_step_elsewhere_exist() -> None:
    named = [reason.partition("`")[2].partition("`")[0] for reason in not_performed().values() if "::" in reason]
    assert named
    for name in sorted(set(named)):
        path, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), name
