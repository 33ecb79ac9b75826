import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.conftest import Packed
from tests.store.format.test_manifest import document
from tests.store.sources import BytesPiece, change_expert, make_source
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest, NotFound
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.fields import xxh3_text
from zipmoe.store.format.manifest import read_manifest, seal_manifest
from zipmoe.store.pack.progress import Progress
from zipmoe.store.pack.source import DenseTensor
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.verify.verify import verify_against, verify_store
from zipmoe.types import ExpertKey


def flip(path: Path, place: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def found(packed: Packed) -> list[str]:
    return [str(damage) for damage in verify_store(packed.store).damages]


def test_an_intact_store_has_no_damage_and_every_byte_was_looked_at(packed: Packed) -> None:
    seen: list[Progress] = []
    report = verify_store(packed.store, seen.append, workers=1)
    assert report.intact
    assert report.damages == ()
    assert not report.compared
    assert report.checked_experts == 6
    assert report.digest == read_manifest(packed.store).digest
    assert seen[-1].done_bytes == seen[-1].total_bytes == report.checked_bytes


def test_every_damage_is_listed_not_only_the_first(copied: Packed) -> None:
    manifest = read_manifest(copied.store)
    first, last = manifest.record(ExpertKey(0, 0)), manifest.record(ExpertKey(1, 2))
    e_chunk, sm_chunk = first.tensors[0].e_chunks[1], last.tensors[1].sm_chunk
    flip(copied.store / "experts-00000.bin", first.offset + e_chunk.offset)
    flip(copied.store / "experts-00001.bin", last.offset + sm_chunk.end - 1, 0x80)
    flip(copied.store / "experts-00001.bin", last.offset + last.nbytes - 1)
    flip(copied.store / "dense-00001.safetensors", 500)
    flip(copied.store / "tokenizer.json", 0)
    e_name = f"E-chunk 1 of gate_up_proj ({e_chunk.nbytes} bytes at {first.offset + e_chunk.offset})"
    sm_name = f"SM-chunk of down_proj (480 bytes at {last.offset + sm_chunk.offset})"
    assert found(copied) == [
        "tokenizer.json: has a wrong checksum",
        "dense-00001.safetensors: has a wrong checksum",
        f"experts-00000.bin: expert 0 of MoE layer 0: {e_name} has a wrong checksum",
        f"experts-00001.bin: expert 2 of MoE layer 1: {sm_name} has a wrong checksum",
        f"experts-00001.bin: expert 2 of MoE layer 1: padding at {last.offset + sm_chunk.end} is not zero",
    ]


def test_a_truncated_expert_file_costs_only_the_experts_beyond_its_end(copied: Packed) -> None:
    path = copied.store / "experts-00000.bin"
    os.truncate(path, 2 * 16384 + 4096)
    damages = found(copied)
    assert damages[0] == f"experts-00000.bin: store file {path} has 36864 bytes, the manifest says 49152"
    assert damages[1].startswith("experts-00000.bin: expert 2 of MoE layer 0: ")
    assert len(damages) == 2


def test_files_that_are_missing_are_listed_and_the_rest_is_checked(copied: Packed) -> None:
    (copied.store / "experts-00000.bin").unlink()
    (copied.store / "config.json").unlink()
    report = verify_store(copied.store)
    assert sorted(damage.file for damage in report.damages) == ["config.json", "experts-00000.bin"]
    assert report.checked_experts == 3


def test_a_file_that_has_grown_is_damage(copied: Packed) -> None:
    with (copied.store / "experts-00000.bin").open("ab") as file:
        file.write(bytes(4096))
    assert found(copied) == [
        f"experts-00000.bin: store file {copied.store}/experts-00000.bin has 53248 bytes, the manifest says 49152"
    ]


def test_a_store_without_a_usable_manifest_cannot_be_verified(copied: Packed) -> None:
    flip(copied.store / "manifest.json", 100)
    with pytest.raises(CorruptData):
        verify_store(copied.store)
    (copied.store / "manifest.json").unlink()
    with pytest.raises(NotFound):
        verify_store(copied.store)


def test_chunks_that_check_out_but_recover_something_else_are_damage(packed: Packed, tmp_path: Path) -> None:
    # As a packer with a bug would write: the chunk's checksum is right, the chunk is not.
    store = tmp_path / "store"
    pack_store(packed.source, store, PackOptions(codec=create_codec("raw")))
    record = read_manifest(store).record(ExpertKey(0, 0))
    chunk = record.tensors[0].e_chunks[0]
    flip(store / "experts-00000.bin", chunk.offset + chunk.nbytes - 1)
    content = (store / "experts-00000.bin").read_bytes()[chunk.offset : chunk.end]
    experts = document(store)["experts"]
    experts[0][0]["e_xxh3"][0][0] = xxh3_text(xxh3(content))  # type: ignore[index]
    (store / "manifest.json").write_bytes(seal_manifest({**document(store), "experts": experts}))
    assert [damage.problem for damage in verify_store(store).damages] == [
        "expert 0 of MoE layer 0: gate_up_proj has a wrong checksum when recovered"
    ]


def test_chunks_of_another_codec_are_damage_and_not_a_crash(copied: Packed) -> None:
    changed = {**document(copied.store), "codec": {"name": "raw", "parameters": {}}}
    (copied.store / "manifest.json").write_bytes(seal_manifest(changed))
    damages = found(copied)
    assert len(damages) == 12
    assert all("cannot be recovered" in damage for damage in damages)


def test_a_store_equals_the_checkpoint_it_was_packed_from(packed: Packed) -> None:
    report = verify_against(packed.store, packed.source)
    assert report.intact
    assert report.compared


def test_one_different_bit_in_the_checkpoint_is_found_and_named(packed: Packed, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    piece = source.layers[1].experts[1][1].pieces[0]
    row, col = 3, 7
    flip(piece.path, piece.offset + 2 * (row * 20 + col) + 1, 0x80)
    assert [str(damage) for damage in verify_against(packed.store, source).damages] == [
        "experts-00001.bin: expert 1 of MoE layer 1: down_proj differs from the checkpoint, first in row 3, column 7"
    ]


def test_a_different_dense_tensor_is_found_and_named(packed: Packed, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    piece = next(tensor for tensor in source.dense_tensors if tensor.name == "model.embed_tokens.weight").pieces[0]
    flip(piece.path, piece.offset + 1234)
    tensors = [
        DenseTensor("model.flag", "BOOL", (3,), (BytesPiece(b"\1\1\1"),)) if tensor.name == "model.flag" else tensor
        for tensor in source.dense_tensors
    ]
    assert [str(damage) for damage in verify_against(packed.store, replace(source, dense_tensors=tensors)).damages] == [
        "dense-00001.safetensors: model.embed_tokens.weight differs from the checkpoint, first at byte 1234",
        "dense-00001.safetensors: model.flag differs from the checkpoint, first at byte 1",
    ]


def test_dense_tensors_that_only_one_side_has_are_found(packed: Packed) -> None:
    tensors = [tensor for tensor in packed.source.dense_tensors if tensor.name != "model.flag"]
    tensors[0] = replace(tensors[0], name="model.other")
    tensors[1] = replace(tensors[1], shape=(25, 48))
    source = replace(packed.source, dense_tensors=tensors)
    assert [str(damage) for damage in verify_against(packed.store, source).damages] == [
        "manifest.json: no dense file holds model.other of the checkpoint",
        "dense-00001.safetensors: model.embed_tokens.weight is BF16 [50, 24], in the checkpoint BF16 [25, 48]",
        "dense-00001.safetensors: model.flag is not in the checkpoint",
        "dense-00001.safetensors: model.norm.weight is not in the checkpoint",
    ]


def test_a_checkpoint_of_another_structure_is_named_as_such(packed: Packed, tmp_path: Path) -> None:
    source = make_source(tmp_path / "a", layers=1, experts=2)
    problems = [damage.problem for damage in verify_against(packed.store, source).damages]
    assert "the store has 2 MoE layers, the checkpoint 1" in problems
    assert (
        "MoE layer 0 is model.layers.0.mlp.experts with 3 experts, in the checkpoint model.layers.0.mlp.experts with 2"
        in problems
    )
    shapes = replace(make_source(tmp_path / "b", hidden=25), family="mixtral")
    problems = [damage.problem for damage in verify_against(packed.store, shapes).damages]
    assert "the store is of family qwen2_moe, the checkpoint of mixtral" in problems
    assert "the matrices of MoE layer 1 differ in name or shape" in problems


def test_a_checkpoint_that_cannot_be_read_is_not_called_damage_of_the_store(packed: Packed, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    source.shards[0].write_bytes(b"")
    with pytest.raises(CorruptData, match=r"shard .* is truncated"):
        verify_against(packed.store, source)


@pytest.mark.parametrize("workers", [0, -1, 1025])
def test_an_impossible_number_of_workers_is_refused(packed: Packed, workers: int) -> None:
    with pytest.raises(InvalidRequest, match="workers have to be 1 to 1024"):
        verify_store(packed.store, workers=workers)


def test_swapped_experts_are_found(packed: Packed) -> None:
    experts = packed.source.layers[0].experts
    swapped = change_expert(change_expert(packed.source, 0, 0, experts[2]), 0, 2, experts[0])
    problems = [damage.problem for damage in verify_against(packed.store, swapped).damages]
    assert [problem.split(":")[0] for problem in problems] == ["expert 0 of MoE layer 0"] * 2 + [
        "expert 2 of MoE layer 0"
    ] * 2


def test_a_damaged_dense_header_is_damage_and_not_a_crash(copied: Packed) -> None:
    for place in (0, 7, 8, 60):
        flip(copied.store / "dense-00001.safetensors", place, 0xFF)
        report = verify_against(copied.store, copied.source)
        assert not report.intact
        flip(copied.store / "dense-00001.safetensors", place, 0xFF)
    assert verify_against(copied.store, copied.source).intact
