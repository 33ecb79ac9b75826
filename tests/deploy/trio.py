"""The three real services and the gateway on a small synthetic model, each with a metrics port of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_ZIPMOE = [sys.executable, "-m", "zipmoe"]
_FLAGS = {
    "expert-store": ["--cache-slots=8:8:6"],
    "decoder": ["--cache-slots=8:8:6", "--workers=1"],
    "router": ["--cache-slots=8:8:6", "--listen=", "--device=cpu", "--threads=1"],
    "gateway": ["--listen=127.0.0.1:0"],
}
_START_TIMEOUT_S = 200.0


def run_verb(*arguments: str | Path) -> str:
    """Runs a verb of the command line and returns what it prints."""
    done = subprocess.run([*_ZIPMOE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class ScrapedTrio:
    """Expert store, decoder and router over one store, and the gateway; to be used as a context manager."""

    def __init__(self, store: Path, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._runtime = ["--runtime-dir", str(folder / "run")]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name, flags in _FLAGS.items():
                store = [] if name == "gateway" else ["--store", str(self._store)]
                common = [*store, *self._runtime, "--log-format=json", "--metrics-port=0"]
                with self._log(name).open("wb") as log:
                    self._processes[name] = subprocess.Popen([*_ZIPMOE, name, *common, *flags], stdout=log, stderr=log)
            self._wait_until_healthy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            process.wait()

    def metrics_targets(self) -> dict[str, str]:
        """The address of each service's metrics."""
        return {name: f"127.0.0.1:{self._metrics_port(name)}" for name in self._processes}

    def generate(self, token_ids: Sequence[int], token_count: int) -> dict[str, Any]:
        """Generates greedily and returns what `zipmoe generate --json` says."""
        ids = ",".join(str(token_id) for token_id in token_ids)
        flags = ["--token-ids", ids, "--max-new-tokens", str(token_count), "--temperature=0", "--ignore-eos", "--json"]
        target = f"unix:{self._folder / 'run' / 'router.sock'}"
        answer: dict[str, Any] = json.loads(run_verb("generate", "--target", target, *flags))
        return answer

    def complete(self, token_ids: Sequence[int], token_count: int) -> dict[str, Any]:
        """Generates through the gateway; once as a stream and once as a whole, which is returned."""
        url = f"http://127.0.0.1:{self._logged('gateway', 'http_port')}/v1"
        with urllib.request.urlopen(f"{url}/models", timeout=60) as answered:
            model = json.load(answered)["data"][0]["id"]
        asked = {"model": model, "prompt": list(token_ids), "max_tokens": token_count, "ignore_eos": True}
        for stream in (True, False):
            body = json.dumps({**asked, "stream": stream}).encode()
            request = urllib.request.Request(f"{url}/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answered:
                read = answered.read()
        answer: dict[str, Any] = json.loads(read)
        return answer

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while subprocess.run([*_ZIPMOE, "health", *self._runtime], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"not healthy in time: {self._last_words()}"
            for process in self._processes.values():
                assert process.poll() is None, f"a service has ended: {self._last_words()}"

    def _metrics_port(self, name: str) -> int:
        return self._logged(name, "metrics_port")

    def _logged(self, name: str, key: str) -> int:
        # The port that was asked for, 0, is logged too.
        lines = [line for line in self._log(name).read_text().splitlines() if line.startswith("{")]
        ports = [json.loads(line).get(key) for line in lines]
        return next(int(port) for port in ports if port)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _last_words(self) -> str:
        return "\n".join(f"{name}: {self._log(name).read_text()[-1500:]}" for name in self._processes)
