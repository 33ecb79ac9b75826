"""Counts the Python files of this repository that one decode step passes, in the store, the decoder and the router.

`.venv/bin/python scripts/decode_path.py --list` traces the tree whose `zipmoe` that interpreter imports. The three
services run on the built-in model: with slots for every expert, after a first generation of the same prompt; then with
slots for few. In mid-generation, each notes the files of functions that are entered, resumed or call others for some
tokens. The threads that show metrics are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

# What the tree calls its parts. Of the packages that may hold the services, the first that exists does.
_PACKAGES: Final = ("zipmoe.services", "services")
_SERVICES: Final = {"store": "expert_store", "decoder": "decoder", "router": "router"}  # in starting order
_COMMANDS, _MODEL, _SOCKET = "zipmoe", "demo/model", "router.sock"  # the first one packs and calibrates
_FOLDERS: Final = ("zipmoe", "services")
_CONNECTED, _RUNNING = "zipmoe_decoder_connected", "zipmoe_requests_running"
_TOKENS, _, _MISSES = _COUNTED = ("zipmoe_generated_tokens", "zipmoe_expert_hits", "zipmoe_expert_misses")
_COUNTS: Final = {"tokens": 256, "window": 16}  # tokens to generate, and to trace at least
_ROUTER: Final = {"fill": "off", "prefetch": "0"}  # flags of the router
_SLOTS: Final = {"resident": "96:96:0", "missing": "32:32:12"}  # flag of all three, by case
_PROMPT: Final = "And it came to pass in those days, that"
_LEAD: Final = 8  # events of the stream before the window
_TIMEOUT_S: Final = 300.0
_SHOW_METRICS: Final = ("serve_forever", "process_request_thread")  # what those threads run, of socketserver


class _Recorder:
    """Notes the file of every Python function that is entered, resumed or calls another, from signal to signal."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._seen: set[str] = set()
        self._thread = threading.local()
        if sys.version_info >= (3, 12):
            watch, events = sys.monitoring, sys.monitoring.events
            watch.use_tool_id(watch.PROFILER_ID, "decode path")
            for event in (events.PY_START, events.PY_RESUME, events.CALL):
                watch.register_callback(watch.PROFILER_ID, event, self._note)
            watch.set_events(watch.PROFILER_ID, events.PY_START | events.PY_RESUME | events.CALL)
        else:
            threading.setprofile(self._profile)
            sys.setprofile(self._profile)
        signal.signal(signal.SIGUSR1, self._tell)
        signal.signal(signal.SIGUSR2, self._tell)

    def _tell(self, number: int, _: object) -> None:
        seen, self._seen = self._seen, set()
        self._report.write_text("\n".join(seen.copy()))
        self._report.rename(self._report.with_suffix(f".{number}"))

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        self._note(frame.f_code)
        if event == "call" and frame.f_back is not None:
            self._note(frame.f_back.f_code)

    def _note(self, code: CodeType, *_: object) -> None:
        if code.co_name in _SHOW_METRICS:
            self._thread.shows_metrics = True
        elif not hasattr(self._thread, "shows_metrics"):
            self._seen.add(code.co_filename)


class _Trio:
    """The three services in one runtime directory."""

    def __init__(self, work: Path, store: Path, slots: str, router: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._work, self.target = work, f"unix:{work / _SOCKET}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        package = next(name for name in _PACKAGES if find_spec(name))
        for name, module in _SERVICES.items():
            own = [f"--metrics-port={self._port}", "--listen=", *router] if name == "router" else ["--metrics-port=0"]
            flags = [f"--store={store}", f"--runtime-dir={work}", "--device=cpu", f"--cache-slots={slots}", *own]
            command = [sys.executable, __file__, "record", str(work / name), f"{package}.{module}", *flags]
            with (work / f"{name}.log").open("wb") as log:
                self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def close(self) -> None:
        """Ends the services, the router first."""
        for name, process in reversed(self._processes.items()):
            process.terminate()
            if code := process.wait(_TIMEOUT_S):
                print(f"{name} ended with {code}: {(self._work / f'{name}.log').read_text()}", file=sys.stderr)

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Waits until something is so, and ends this program if it is not in time or a service ends."""
        end_s = time.monotonic() + _TIMEOUT_S
        while not what():
            if time.monotonic() > end_s or any(process.poll() is not None for process in self._processes.values()):
                raise SystemExit("a service has ended, or does not answer")
            time.sleep(0.002)

    def tell(self, number: signal.Signals) -> dict[str, set[Path]]:
        """Sends all of them a signal; returns the files that each has passed since the last one."""
        reports = {name: self._work / f"{name}.{number:d}" for name in self._processes}
        for process in self._processes.values():
            process.send_signal(number)
        self.wait_for(lambda: all(report.exists() for report in reports.values()))
        return {name: set(map(Path, report.read_text().splitlines())) for name, report in reports.items()}

    def counts(self) -> dict[str, int]:
        """Reads some metrics of the router, each summed over its labels; zeros as long as nobody answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        totals = dict.fromkeys((_CONNECTED, _RUNNING, *_COUNTED), 0)
        sample = re.compile(rf"^({'|'.join(totals)})(?:_total)?(?:{{.*}})? (\S+)$", re.MULTILINE)
        with suppress(OSError), opener.open(f"http://127.0.0.1:{self._port}/metrics", timeout=_TIMEOUT_S) as response:
            for name, value in sample.findall(response.read().decode()):
                totals[name] += int(float(value))
        return totals


def _trace(trio: _Trio, tokens: int, window: int, *, warm: bool) -> tuple[dict[str, set[Path]], dict[str, int]]:
    """Returns the files that each service has passed in mid-generation, and what the router counted meanwhile."""
    from zipmoe.client import GenerationClient, Sampling, Stopping

    greedy, stopping = Sampling(temperature=0.0), Stopping(max_new_tokens=tokens, ignore_eos=True)
    trio.wait_for(lambda: trio.counts()[_CONNECTED] == 1)
    with GenerationClient(trio.target) as client:
        if warm:
            list(client.generate(_PROMPT, sampling=greedy, stopping=stopping))
        stream = client.generate(_PROMPT, sampling=greedy, stopping=stopping)
        for _ in range(_LEAD):
            next(stream)
        trio.tell(signal.SIGUSR1)
        first = last = trio.counts()
        while last[_TOKENS] - first[_TOKENS] < window and next(stream, None):
            last = trio.counts()
        passed = trio.tell(signal.SIGUSR2)
        if not trio.counts()[_RUNNING]:
            raise SystemExit("the generation ended in the window: take more --tokens or a smaller --window")
    return passed, {name: last[name] - first[name] for name in _COUNTED}


def _print(tree: Path, passed: Mapping[str, set[Path]], *, listed: bool) -> None:
    for name, paths in {**passed, "all": set[Path]().union(*passed.values())}.items():
        own = sorted(path for path in paths if any(path.is_relative_to(tree / folder) for folder in _FOLDERS))
        lines = {path: path.read_text().count("\n") for path in own if "_pb2" not in path.stem}
        print(
            f"  {name:<8}{len(lines):>4} files{sum(lines.values()):>7} lines, {len(own) - len(lines)} generated files"
        )
        for path, count in lines.items() if listed else ():
            print(f"    {count:>5}  {path.relative_to(tree)}")


def main() -> None:
    """Traces both cases and prints what came of it."""
    import zipmoe

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the files")
    parser.add_argument("--calibrate", action="store_true", help="measure the machine first")
    for name, default in {**_COUNTS, **_ROUTER, **_SLOTS}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="[default: %(default)s]")
    options = parser.parse_args()
    tree = Path(zipmoe.__file__).parents[1]
    router = [f"--{name}={getattr(options, name)}" for name in _ROUTER]
    with tempfile.TemporaryDirectory(prefix="zm-") as folder:
        store = Path(folder, "store")
        os.environ["ZIPMOE_CACHE_DIR"] = folder  # neither figures nor popularity of other runs
        for command in (("pack", tree / _MODEL, store), ("calibrate", store, "--quick"))[: 1 + options.calibrate]:
            subprocess.run([sys.executable, "-m", _COMMANDS, *command], check=True, stdout=subprocess.DEVNULL)
        print(f"{tree}, Python {sys.version.split()[0]}, {'' if options.calibrate else 'not '}calibrated")
        for case in _SLOTS:
            work, slots = Path(tempfile.mkdtemp(dir=folder)), getattr(options, case)
            with closing(_Trio(work, store, slots, router)) as trio:
                passed, counted = _trace(trio, options.tokens, options.window, warm=case == "resident")
            print(f"\n{case}: --cache-slots={slots} {' '.join(router)}, in the window {counted}")
            _print(tree, passed, listed=options.list)
            if (case == "missing") != (counted[_MISSES] > 0):
                raise SystemExit("so many misses in the window are not what was to be traced")


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        _Recorder(Path(sys.argv[2]))
        _, _, _, module, *sys.argv[1:] = sys.argv
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        main()
