"""Refuses a form of recovered experts from which this router cannot compute with torch's bits."""

from __future__ import annotations

from zipmoe.arena.tensor_form import BF16, TensorForm
from zipmoe.errors import InvalidRequest
from zipmoe.model.linear.compressed import named_form
from zipmoe.model.linear.native_linear import Linears
from zipmoe.store.format.manifest import Manifest

_NEXT_STEP = "start decoder and router with --tensor-form bf16, or plan again on this machine"


def check_tensor_form(form: TensorForm, manifest: Manifest, device: str, linears: Linears) -> None:
    """Checks the form against the orders in which torch sums one row of each matrix of the experts.

    Raises:
        InvalidRequest: the device is no CPU, or torch sums in another order than the products of the form.
    """
    if form == BF16:
        return
    if device != "cpu":
        raise InvalidRequest(f"experts in {form} form are computed on the CPU, not on {device}", next_step=_NEXT_STEP)
    shapes = {(tensor.rows, tensor.cols) for layer in manifest.layers for tensor in layer.spec.tensors}
    for n, k in sorted(shapes):
        if 1 not in linears.rows_in_form(named_form(form), n, k, bias=False):
            raise InvalidRequest(
                f"torch sums {k} inputs of {n} outputs in another order than the products of the {form} form",
                next_step=_NEXT_STEP,
            )
