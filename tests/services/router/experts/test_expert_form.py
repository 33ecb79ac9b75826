"""A form of recovered experts is refused where the router would not have torch's bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import InvalidRequest
from zipmoe.model.build.dense_forms import form_of_machine
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.model.linear.native_linear import Linears
from zipmoe.services.router.experts.expert_form import check_tensor_form


@pytest.fixture
def store(tmp_path: Path) -> TinyStore:
    return make_store(tmp_path, shapes=((64, 256), (256, 128)), codec="cascade", layers=1, experts=1)


def test_an_order_that_is_not_known_is_refused_by_shape(store: TinyStore) -> None:
    unknown = Linears(OrderTable(orders=()))
    with pytest.raises(InvalidRequest, match="256 inputs of 64 outputs in another order") as refusal:
        check_tensor_form("nibble", store.manifest, "cpu", unknown)
    assert "--tensor-form bf16" in refusal.value.next_step
    check_tensor_form("bf16", store.manifest, "cpu", unknown)


def test_a_gpu_is_refused(store: TinyStore) -> None:
    with pytest.raises(InvalidRequest, match="on the CPU, not on cuda"):
        check_tensor_form("nibble", store.manifest, "cuda", Linears())


def test_the_form_of_the_machine_is_taken(store: TinyStore) -> None:
    form = form_of_machine(Linears(), 64, 256)
    if form is None:
        pytest.skip("no in-memory form has the bits of this machine's torch")
    check_tensor_form(form.name, store.manifest, "cpu", Linears())  # type: ignore[arg-type]
