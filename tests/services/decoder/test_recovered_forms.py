"""Recoveries to an in-memory form: the checkpoint's bits, the room that a slot has, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.decoder.decoder_bench import DecoderBench, bench
from tests.services.tiny_store import TinyStore, make_store, tensor_spans
from zipmoe.arena.tensor_form import TensorForm, tensor_rooms
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE
from zipmoe.planning.memory_split import slot_bytes
from zipmoe.residency.pools import Completed
from zipmoe.services.decoder.recovered_form import recovered_form
from zipmoe.types import ExpertKey

WIDE = ((64, 512), (512, 128))

each_form = pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(
            form.name, form, marks=pytest.mark.skipif(not form.is_supported(), reason=f"no {form} on this machine")
        )
        for form in (NIBBLE, TILE)
    ],
)


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    return make_store(tmp_path_factory.mktemp("wide"), shapes=WIDE, codec="cascade", layers=1)


def recovered(b: DecoderBench, key: ExpertKey, slot: int) -> Completed:
    """Reads and recovers an expert; returns the report on the recovery."""
    read, recovery = b.read(key, slot), b.recover(key, slot, b.tensor(slot))
    b.apply((read,), (recovery,))
    b.finish_read(read)
    b.pump()
    return b.report_of(recovery)


@each_form
def test_an_expert_in_a_form_has_the_bits_of_the_checkpoint(
    name: TensorForm, form: MemoryForm, wide_store: TinyStore
) -> None:
    with bench(wide_store, tensor_form=name, verify=True) as b:
        for slot, key in enumerate(wide_store.keys()):
            assert recovered(b, key, slot).error is None
            spans = tensor_spans(wide_store.manifest, key)
            rooms = tensor_rooms(wide_store.manifest.layers[0].spec, name)
            for (begin, end), room in zip(spans, rooms, strict=True):
                with b.tensors.slot(slot) as view:
                    weights = bytearray(end - begin)
                    form.to_bf16(view[room.begin : room.end], weights, room.rows, room.cols)
                assert weights == wide_store.experts[key][begin:end]


@each_form
def test_a_slot_is_smaller_than_one_for_bf16(name: TensorForm, form: MemoryForm) -> None:
    del form
    from zipmoe.store.format.layout import ExpertSpec, TensorSpec

    spec = ExpertSpec((TensorSpec("up", 2816, 2048), TensorSpec("down", 2048, 1408)))
    assert tensor_rooms(spec, name)[-1].end < 0.8 * spec.tensor_bytes
    begins = [room.begin for room in tensor_rooms(spec, name)]
    assert all(begin % 64 == 0 for begin in begins)


@each_form
def test_weights_that_need_more_room_stay_in_their_chunks_and_the_next_expert_is_recovered(
    name: TensorForm, form: MemoryForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del form
    monkeypatch.setattr("tests.services.tiny_store._HIGH_BYTES", bytes(range(256)))  # every exponent alike
    store = make_store(tmp_path, shapes=((512, 1024),), codec="cascade", layers=1, experts=1)
    with bench(store, tensor_form=name) as b:
        (key,) = store.keys()
        report = recovered(b, key, 0)
        assert isinstance(report.error, ResourceExhausted)
        assert b.slots.counts() == {"free": 4, "writing": 0, "held": 0}


@each_form
def test_a_damaged_chunk_is_an_error(name: TensorForm, form: MemoryForm, wide_store: TinyStore) -> None:
    del form
    key = wide_store.keys()[0]
    with bench(wide_store, tensor_form=name) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,))
        b.finish_read(read)
        b.damage(read, 0, 40)
        b.apply((), (recovery,))
        b.pump()
        assert isinstance(b.report_of(recovery).error, CorruptData)


@each_form
def test_a_flipped_bit_of_the_mantissas_is_found_by_verification(
    name: TensorForm, form: MemoryForm, wide_store: TinyStore
) -> None:
    del form
    key = wide_store.keys()[0]
    with bench(wide_store, tensor_form=name, verify=True) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,))
        b.finish_read(read)
        b.damage(read, wide_store.manifest.record(key).e_bytes + 5)
        b.apply((), (recovery,))
        b.pump()
        error = b.report_of(recovery).error
        assert isinstance(error, CorruptData) and "wrong checksum" in error.message


def test_a_store_of_another_codec_is_refused(tiny_store: TinyStore) -> None:
    manifest = tiny_store.manifest
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    with pytest.raises(InvalidRequest, match="made from chunks of the codec cascade; the store has zstd") as refusal:
        recovered_form("nibble", manifest, codec)
    assert "--tensor-form bf16" in refusal.value.next_step
    assert slot_bytes(manifest).tensor == manifest.max_tensor_bytes


def test_a_machine_without_the_form_is_refused(wide_store: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryForm, "is_supported", lambda self, using=None: False)
    manifest = wide_store.manifest
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    with pytest.raises(InvalidRequest, match="this machine has no tile form"):
        recovered_form("tile", manifest, codec)
