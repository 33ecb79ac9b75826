from __future__ import annotations

from dataclasses import dataclass

import pytest

from zipmoe.planning.expert_costs import expert_costs
from zipmoe.residency.state import Residency
from zipmoe.store.format.layout import ExpertSpec, PackedTensorEntry, TensorSpec, lay_out


@dataclass(frozen=True)
class RoundMachine:
    """Reads 1000 bytes a second, recovers 500, copies 2000; one row takes 3 s, each further one 1 s."""

    packed_ffn: object | None = None

    def channel_s(self, nbytes: int) -> float:
        return nbytes / 1000

    def recover_s(self, nbytes: int) -> float:
        return nbytes / 500

    def copy_s(self, nbytes: int) -> float:
        return nbytes / 2000

    def ffn_s(self, form: Residency, rows: int) -> float:
        assert form is Residency.FULL or self.packed_ffn is not None
        return (1 if form is Residency.FULL else 2) * (2.0 + rows)


SPEC = ExpertSpec((TensorSpec("gate_up_proj", 64, 25), TensorSpec("down_proj", 32, 25)))
ENTRIES = [PackedTensorEntry((200, 300), (0, 0), 0, 0), PackedTensorEntry((100, 150), (0, 0), 0, 0)]
RECORD = lay_out(SPEC, ENTRIES, 2, 0, 0)


def test_a_tensor_costs_what_its_bytes_take_and_its_share_of_the_products() -> None:
    gate_up, down = expert_costs(RoundMachine(packed_ffn=object()), RECORD)
    assert (gate_up.e_read_s, gate_up.sm_read_s, gate_up.recover_s, gate_up.chunk_count) == (0.5, 1.6, 6.4, 2)
    assert (down.e_read_s, down.sm_read_s, down.recover_s, down.chunk_count) == (0.25, 0.8, 3.2, 2)
    assert gate_up.compute_s(Residency.FULL, 4) == pytest.approx(6.0 * 2 / 3 + 3200 / 2000)
    assert down.compute_s(Residency.PACKED, 4) == pytest.approx(12.0 / 3 + 1050 / 2000)


def test_without_a_kernel_for_chunks_they_are_recovered_by_the_models_own_thread() -> None:
    _, down = expert_costs(RoundMachine(), RECORD)
    assert down.compute_s(Residency.PACKED, 4) == pytest.approx(3.2 + 6.0 / 3 + 1050 / 2000)
