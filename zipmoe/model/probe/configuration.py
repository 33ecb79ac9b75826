"""Probes a configuration by a tiny model of the same kind with random weights."""

from __future__ import annotations

from pathlib import Path

from zipmoe.errors import UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint.skeleton import read_config
from zipmoe.model.families.twin import shrink, tiny_config, write_checkpoint
from zipmoe.model.probe.comparison import probe_checkpoint
from zipmoe.model.probe.result import ProbeResult
from zipmoe.model.stock.model_class import text_model_class
from zipmoe.system_error import install_step, one_line


def probe_configuration(path: Path, folder: Path) -> ProbeResult:
    """Compares our paths with stock on a random twin of a configuration.

    Where the sizes of a twin do not fit the configuration, a twin of the type's default configuration is compared.

    Args:
        path: a directory with config.json: a checkpoint or a store.
        folder: an empty directory for the twin.

    Raises:
        UnsupportedModel: the model cannot be served with stock's bits, or no twin can be built; the message says the
            reason.
    """
    config = read_config(path)
    text_model_class(config)
    try:
        write_checkpoint(shrink(config), folder, seed=0)
    except ZipMoeError:
        raise
    except Exception as error:  # any exception of transformers on sizes that it does not accept
        try:
            write_checkpoint(tiny_config(config.model_type), folder, seed=0)
        except Exception:
            raise UnsupportedModel(
                f"no small model of type {config.model_type!r} can be built, so nothing about it can be proven: "
                + one_line(error),
                next_step=install_step(error)
                or "serve this model with transformers itself, and report its config.json to us",
            ) from error
    return probe_checkpoint(folder)
