"""A real Prometheus on a port of its own, with the configuration that deploy/ ships."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from tests.deploy.compose import DEPLOY

_CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
_T = TypeVar("_T")

INTERVAL_S = 0.25
"""Time from one scrape to the next."""


class QueryRefused(AssertionError):
    """Prometheus does not accept an expression."""


class Prometheus:
    """Scrapes `targets` (job -> host:port); to be used as a context manager.

    Only the addresses and the intervals differ from what is shipped.
    """

    def __init__(self, programs: Path, folder: Path, targets: Mapping[str, str]) -> None:
        config = yaml.safe_load(_CONFIG.read_text())
        interval = f"{INTERVAL_S * 1000:.0f}ms"
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), interval)
        config["rule_files"] = [str(_CONFIG.parent / pattern) for pattern in config["rule_files"]]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self._command = [
            str(programs / "prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            self._url = "http://" + self.wait_for(self._address, "Prometheus to listen")
            self.wait_for(self._is_ready, "Prometheus to be ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluates an expression now.

        Returns:
            The samples, each with `metric` and `value`; [] for a scalar.

        Raises:
            QueryRefused: the expression is not accepted.
        """
        try:
            data = self._get("query", query=expression)
        except urllib.error.HTTPError as error:
            raise QueryRefused(f"{expression}: {json.load(error)['error']}") from error
        return list(data["result"]) if data["resultType"] == "vector" else []

    def metric_names(self) -> set[str]:
        """Names of all series that Prometheus has seen."""
        return set(self._get("label/__name__/values"))

    def labels(self, metric: str) -> set[str]:
        """Labels of all series of one name."""
        return set(self._get("labels", **{"match[]": metric}))

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_for(self, condition: Callable[[], _T], what: str, timeout_s: float = 60.0) -> _T:
        """Asks again and again until `condition` is true, and returns its result; gives up when Prometheus exits."""
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
            try:
                self._process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"prometheus has exited: {self._log.read_text()[-2000:]}")
        return result

    def _address(self) -> str:
        line = next((line for line in self._log.read_text().splitlines() if 'msg="Listening on"' in line), "")
        return line.rpartition("address=")[2]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._url + "/-/ready", timeout=5):
                return True
        except urllib.error.URLError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
