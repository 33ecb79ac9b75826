"""`zipmoe up` as a user starts it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cli.run import command

END_S = 60.0


@dataclass(frozen=True)
class Up:
    """A running `zipmoe up --json`."""

    process: subprocess.Popen[str]
    runtime: Path
    ready: dict[str, object]

    @property
    def services(self) -> dict[str, dict[str, object]]:
        """What `up` says of each service, by its name."""
        services = self.ready["services"]
        assert isinstance(services, list)
        return {service["name"]: service for service in services}

    @property
    def pids(self) -> dict[str, int]:
        """The services' process ids by name."""
        return {name: int(str(service["pid"])) for name, service in self.services.items()}

    @property
    def environment(self) -> dict[str, str]:
        """That of a user who has set the runtime directory."""
        return {"ZIPMOE_RUNTIME_DIR": str(self.runtime)}

    @contextmanager
    def services_end(self) -> Iterator[None]:
        """Holds that no service is left after the block."""
        handles = [os.pidfd_open(pid) for pid in self.pids.values()]
        yield
        for handle in handles:
            assert select.select([handle], [], [], END_S)[0], "a service is still there"
            os.close(handle)

    def end(self) -> tuple[int, str]:
        """Waits for its end; exit code and stderr."""
        _, stderr = self.process.communicate(timeout=END_S)
        return self.process.returncode, stderr


@contextmanager
def running_up(store: Path, runtime: Path, *options: object, cwd: Path | None = None) -> Iterator[Up]:
    """Runs `zipmoe up` with these options, from when it is ready to the end of the block.

    Args:
        store: the store.
        runtime: the run directory.
        options: further options of `up`.
        cwd: the folder that it is started in, by the installed program; None for this one, by `python -m zipmoe`.
    """
    start = command() if cwd is None else [str(Path(sys.executable).with_name("zipmoe"))]
    fixed = ("--listen", "", "--device", "cpu", "--threads", 1, "--metrics-port", 0, "--json")
    with subprocess.Popen(
        [*start, *map(str, ("up", store, "--runtime-dir", runtime, *fixed, *options))],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield Up(process, runtime, json.loads(line))
        finally:
            process.terminate()
            process.communicate()
