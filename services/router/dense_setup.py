"""Decides whether the router keeps dense weights compressed in memory, and tells operators what came of it."""

from __future__ import annotations

import structlog

from zipmoe.calibration.calibration_file import load_calibration
from zipmoe.calibration.identity import machine_identity
from zipmoe.errors import BudgetInfeasible
from zipmoe.model.build.build import BuiltModel
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.store.format.manifest import Manifest

_LOG = structlog.get_logger(__name__)


def compresses_dense(config: RouterConfig, manifest: Manifest, device: str) -> bool:
    """Decides by the setting, or by the measured costs of the store on this machine. Without costs, weights stay bf16.

    Args:
        config: settings of the router.
        manifest: the store's manifest.
        device: `cpu` or `cuda`; only the CPU computes from compressed weights.
    """
    if device != "cpu" or config.linear != "auto":
        return False
    if config.dense != "auto":
        return config.dense == "compressed"
    calibration = load_calibration(machine_identity(config.store))
    speed = calibration.stores.get(manifest.digest) if calibration is not None else None
    model = speed.models.get(device) if speed is not None else None
    if model is None or model.dense is None or model.compressed is None:
        return False
    return bool(model.compressed.form) and model.compressed.dense.first_s <= model.dense.first_s


def tell_dense(config: RouterConfig, manifest: Manifest, model: BuiltModel, metrics: RouterMetrics) -> None:
    """Logs and exports the forms of the dense weights.

    Raises:
        BudgetInfeasible: they take more memory than the plan says.
    """
    forms = model.dense_forms
    for form in ("bf16", "tile", "nibble"):
        metrics.dense_matrices.labels(form).set(forms.counts[form])
    metrics.dense_bytes.set(model.dense.nbytes + forms.scratch_bytes)
    metrics.dense_saved_bytes.set(forms.saved_bytes)
    log = _LOG.warning if config.dense == "compressed" and not forms.compressed_count else _LOG.info
    log(
        "dense_weights",
        setting=config.dense,
        **{f"{form}_matrices": count for form, count in forms.counts.items()},
        saved_bytes=forms.saved_bytes,
        scratch_bytes=forms.scratch_bytes,
        left_bf16=forms.why_left,
    )
    held = manifest.dense_bytes - forms.saved_bytes
    planned = config.budget_request(0, None).dense(manifest)
    if config.memory_budget is not None and held > planned:
        raise BudgetInfeasible(
            f"the dense weights take {held} bytes in memory, the plan says {planned}; left bf16: "
            f"{forms.why_left or 'none for a reason of its own'}",
            smallest_bytes=int(config.memory_budget) + held - planned,
            next_step="run `zipmoe calibrate STORE` and plan again, or start with --dense bf16",
        )
