"""Probes the model of a configuration and prints the outcome: `python -m zipmoe.model.probe DIRECTORY [THREADS]`.

The outcome is one JSON line, either the data of `ProbeResult` or `{"refused": text, "next_step": text}`. A caller
starts the module as a process of its own, so that a configuration that exhausts memory or time harms nothing else.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 8 << 30
"""Most memory of the process; a twin takes some hundred megabytes with everything that transformers imports."""


def main() -> None:
    """Probes a random twin of the configuration in a directory."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    from zipmoe.model.numerics import prepare_environment

    prepare_environment()
    import torch
    from transformers import logging

    from zipmoe.errors import ZipMoeError
    from zipmoe.model.probe.configuration import probe_configuration

    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="zipmoe-probe-") as folder:
        try:
            outcome = probe_configuration(Path(sys.argv[1]), Path(folder)).to_plain()
        except ZipMoeError as error:
            outcome = {"refused": error.message, "next_step": error.next_step}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
