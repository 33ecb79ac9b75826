"""Probes a configuration by a tiny model of the same kind with random weights."""

from __future__ import annotations

from pathlib import Path

from zipmoe.errors import ZipMoeError
from zipmoe.model.checkpoint.skeleton import read_config
from zipmoe.model.families.twin import shrink, write_checkpoint
from zipmoe.model.probe.comparison import probe_checkpoint
from zipmoe.model.probe.result import ComputePath, ProbeResult
from zipmoe.system_error import first_line


def probe_configuration(path: Path, folder: Path) -> ProbeResult:
    """Compares our paths with stock on a random twin of a configuration.

    Args:
        path: a directory with config.json: a checkpoint or a store.
        folder: an empty directory for the twin.

    Returns:
        The result. Where no twin of the configuration can be built, requests are computed in turn, and the result says
        that nothing was compared.

    Raises:
        UnsupportedModel: the model cannot be served with stock's bits; the message says the reason.
    """
    config = read_config(path)
    try:
        write_checkpoint(shrink(config), folder, seed=0)
    except ZipMoeError:
        raise
    except Exception as error:  # the sizes of a twin do not fit every configuration that transformers accepts
        reason = f"no small twin of this configuration can be built ({type(error).__name__}: {first_line(error)})"
        return ProbeResult(ComputePath.IN_TURN, reason, compared=False)
    return probe_checkpoint(folder)
