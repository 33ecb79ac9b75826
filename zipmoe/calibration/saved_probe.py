"""Probes a model in a process of its own, and keeps the result for this machine and these versions."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path

from zipmoe.calibration.calibration_file import cache_folder, write_atomically
from zipmoe.calibration.identity import machine_and_versions
from zipmoe.errors import InternalError, NotFound, UnsupportedModel
from zipmoe.model.probe.result import ProbeResult
from zipmoe.process.python_command import python_command
from zipmoe.store.format.checksum import xxh3
from zipmoe.system_error import reason_of

TIMEOUT_S = 300.0
"""A probe takes ten seconds, most of them for the import of transformers; a busy small machine takes longer."""


def known_result(path: Path, threads: int | None = None) -> ProbeResult | None:
    """Returns the kept result of an earlier probe on this machine; None without one. Arguments as for `ProbeRun`."""
    try:
        return _load(_file(path, threads))
    except NotFound:  # a store without config.json
        return None


class ProbeRun:
    """A probe that runs beside the caller. `result` waits for it."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Starts the probe, unless its result is known.

        Args:
            path: a directory with config.json: a checkpoint or a store.
            threads: torch's number of threads; None for torch's own choice.

        Raises:
            NotFound: config.json cannot be read.
        """
        self._file = _file(path, threads)
        self._known = _load(self._file)
        self._process: subprocess.Popen[bytes] | None = None
        if self._known is None:
            arguments = [str(path)] if threads is None else [str(path), str(threads)]
            command = python_command("-m", "zipmoe.model.probe", *arguments)
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )

    def result(self, timeout_s: float = TIMEOUT_S) -> ProbeResult:
        """Waits for the result and keeps it.

        Raises:
            UnsupportedModel: the model cannot be served with stock's bits.
            InternalError: the process has ended without a result, or not within `timeout_s`.
        """
        if self._known is None:
            self._known = self._finished(timeout_s)
            with suppress(OSError):  # the next start probes again
                write_atomically(self._file, json.dumps(self._known.to_plain()).encode())
        return self._known

    def stop(self) -> None:
        """Kills the process, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _finished(self, timeout_s: float) -> ProbeResult:
        assert self._process is not None
        try:
            stdout, stderr = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise InternalError(f"the probe of the model has not ended within {timeout_s:g} s") from None
        try:
            outcome = json.loads((stdout.splitlines() or [b""])[-1])
            if "refused" in outcome:
                raise UnsupportedModel(outcome["refused"], next_step=outcome["next_step"])
            return ProbeResult.from_plain(outcome)
        except (ValueError, KeyError, TypeError):
            last = (stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            code = self._process.returncode
            raise InternalError(f"the probe of the model ended with exit code {code}: {last}") from None


def _file(path: Path, threads: int | None) -> Path:
    try:
        config = (path / "config.json").read_bytes()
    except OSError as error:
        raise NotFound(f"{path / 'config.json'} cannot be read: {reason_of(error)}") from error
    identity = json.dumps([*machine_and_versions(), threads])
    return cache_folder() / "probe" / f"{xxh3(config + identity.encode()):016x}.json"


def _load(file: Path) -> ProbeResult | None:
    try:
        return ProbeResult.from_plain(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
