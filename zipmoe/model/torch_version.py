"""Checks the installed torch before transformers imports it.

transformers 5.23 needs torch 2.6. With an older torch its import ends in `NameError: name 'nn' is not defined`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from packaging.version import Version

from zipmoe.errors import UnsupportedModel

OLDEST_TORCH: Final = "2.6"
"""Oldest final release. Builds of vendors before it, such as 2.6.0a0, are older."""


def check_torch() -> None:
    """Refuses a missing torch, and one that is too old for transformers, by metadata and without importing torch.

    Raises:
        UnsupportedModel: no model can be loaded with this installation.
    """
    try:
        found = version("torch")
    except PackageNotFoundError:
        raise UnsupportedModel("torch is not installed", next_step=f"install torch {OLDEST_TORCH} or newer") from None
    if Version(found) < Version(OLDEST_TORCH):
        raise UnsupportedModel(
            f"torch {found} is too old: transformers 5.23 needs {OLDEST_TORCH} or newer, as a final release",
            next_step=f"install torch {OLDEST_TORCH} or newer for this device, or a newer vendor image",
        )
