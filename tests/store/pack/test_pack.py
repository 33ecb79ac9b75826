import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.store.conftest import Packed
from tests.store.sources import BytesPiece, DiskSource, change_expert, make_source, tree
from zipmoe.codec.registry import codec_names, create_codec, default_codec
from zipmoe.errors import AlreadyRunning, CorruptData, InvalidRequest, NotFound, UnsupportedModel, ZipMoeError
from zipmoe.store.format.layout import TensorSpec
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.progress import Progress
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.verify.verify import verify_against


def test_a_pack_holds_the_stores_files_and_nothing_else(packed: Packed) -> None:
    assert sorted(tree(packed.store)) == [
        "config.json",
        "dense-00001.safetensors",
        "experts-00000.bin",
        "experts-00001.bin",
        "manifest.json",
        "tokenizer.json",
    ]


def test_model_files_are_copied_verbatim(packed: Packed) -> None:
    for path in packed.source.model_files:
        assert (packed.store / path.name).read_bytes() == path.read_bytes()


def test_dense_tensors_are_ordinary_safetensors(packed: Packed) -> None:
    with safe_open(packed.store / "dense-00001.safetensors", "np") as file:
        names = set(file.keys())
        assert names == {tensor.name for tensor in packed.source.dense_tensors}
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("model.layers.0.mlp.gate.weight").tobytes() == bytes(range(16))
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [50, 24]


@pytest.mark.parametrize("shard_bytes", [1, 100, 2500, 1 << 30])
def test_dense_shards_respect_their_size_and_lose_no_tensor(packed: Packed, tmp_path: Path, shard_bytes: int) -> None:
    report = pack_store(packed.source, tmp_path / "store", PackOptions(dense_shard_bytes=shard_bytes))
    names: list[str] = []
    for entry in report.manifest.dense:
        with safe_open(tmp_path / "store" / entry.name, "np") as file:
            shard_names = list(file.keys())
            names += shard_names
            sizes = [tensor.nbytes for tensor in packed.source.dense_tensors if tensor.name in shard_names]
        assert len(sizes) == 1 or sum(sizes) <= shard_bytes
    assert sorted(names) == sorted(tensor.name for tensor in packed.source.dense_tensors)
    assert verify_against(tmp_path / "store", packed.source).intact


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_number_of_workers(packed: Packed, tmp_path: Path, workers: int) -> None:
    pack_store(packed.source, tmp_path / "store", PackOptions(workers=workers))
    assert tree(tmp_path / "store") == tree(packed.store)


def test_the_bytes_depend_neither_on_the_memory_nor_on_the_order_of_dense_tensors(
    packed: Packed, tmp_path: Path
) -> None:
    source = replace(packed.source, dense_tensors=list(packed.source.dense_tensors)[::-1])
    pack_store(source, tmp_path / "store", PackOptions(memory_bytes=1))
    assert tree(tmp_path / "store") == tree(packed.store)


def test_the_bytes_do_not_depend_on_where_the_shards_are_or_how_they_are_cut(packed: Packed, tmp_path: Path) -> None:
    whole = tmp_path / "whole.bin"
    whole.write_bytes(packed.source.tensor_bytes(0, 1, 0))
    _, down = packed.source.layers[0].experts[1]
    spec = packed.source.layers[0].spec.tensors[0]
    pieces = (ByteRange(whole, 0, 3), ByteRange(whole, 3, 0), ByteRange(whole, 3, spec.nbytes - 3))
    source = change_expert(packed.source, 0, 1, (TensorSource(spec, pieces), down))
    pack_store(source, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(packed.store)


@pytest.mark.parametrize("codec", codec_names())
@pytest.mark.parametrize("chunk_count", [1, 3, 64])
def test_every_codec_and_chunk_count_gives_the_checkpoint_back(
    packed: Packed, tmp_path: Path, codec: str, chunk_count: int
) -> None:
    options = PackOptions(codec=create_codec(codec), e_chunks_per_tensor=chunk_count)
    report = pack_store(packed.source, tmp_path / "store", options)
    assert report.manifest.codec_name == codec
    assert report.manifest.e_chunks_per_tensor == chunk_count
    assert verify_against(tmp_path / "store", packed.source).intact


def test_layers_may_have_different_experts(tmp_path: Path) -> None:
    small, large = make_source(tmp_path / "a", layers=1), make_source(tmp_path / "b", layers=1, hidden=200, experts=2)
    source = replace(small, layers=(small.layers[0], large.layers[0]))
    manifest = pack_store(source, tmp_path / "store").manifest
    assert [layer.expert_count for layer in manifest.layers] == [3, 2]
    assert verify_against(tmp_path / "store", source).intact


def test_progress_adds_up(packed: Packed, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = pack_store(packed.source, tmp_path / "store", progress=seen.append)
    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)
    last = seen[-1]
    assert last.done_bytes == last.total_bytes == report.source_bytes
    assert last.done_experts == last.total_experts == 6
    assert last.resumed_bytes == 0
    assert 0 < last.written_bytes <= report.store_bytes
    assert last.bytes_per_s > 0
    assert last.remaining_s == 0
    assert report.store_bytes == sum(
        len(content) for name, content in tree(tmp_path / "store").items() if name != "manifest.json"
    )


def test_packing_the_same_again_says_already_packed_and_touches_nothing(copied: Packed) -> None:
    before = tree(copied.store)
    stamps = {path: path.stat().st_mtime_ns for path in copied.store.iterdir()}
    report = pack_store(copied.source, copied.store)
    assert report.already_packed
    assert report.manifest.digest == read_manifest(copied.store).digest
    assert tree(copied.store) == before
    assert {path: path.stat().st_mtime_ns for path in copied.store.iterdir()} == stamps


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (PackOptions(codec=create_codec("raw")), f"codec {default_codec().name}"),
        (PackOptions(e_chunks_per_tensor=2), "4 E-chunks a tensor"),
    ],
)
def test_a_finished_store_is_not_overwritten_with_other_options(
    copied: Packed, options: PackOptions, difference: str
) -> None:
    before = tree(copied.store)
    with pytest.raises(InvalidRequest, match=f"already holds a store.*{difference}"):
        pack_store(copied.source, copied.store, options)
    assert tree(copied.store) == before


def test_a_finished_store_is_not_overwritten_with_another_checkpoint_of_one_shape(
    copied: Packed, tmp_path: Path
) -> None:
    before = tree(copied.store)
    with pytest.raises(InvalidRequest, match="another checkpoint"):
        pack_store(make_source(tmp_path / "other", seed=2), copied.store)
    assert tree(copied.store) == before


def test_a_directory_with_other_files_is_refused_and_left_alone(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidRequest, match=r"not empty.*thesis\.txt"):
        pack_store(packed.source, tmp_path)
    assert tree(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_file_as_destination_is_refused(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for destination in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidRequest, match="not a directory"):
            pack_store(packed.source, destination)


def test_an_empty_directory_and_missing_parents_are_fine(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pack_store(packed.source, tmp_path / "empty")
    pack_store(packed.source, tmp_path / "a" / "b")
    assert tree(tmp_path / "empty") == tree(tmp_path / "a" / "b") == tree(packed.store)


def test_two_packers_do_not_share_a_destination(packed: Packed, tmp_path: Path) -> None:
    refusals: list[AlreadyRunning] = []

    def pack_again(progress: Progress) -> None:
        if progress.done_experts == 3:
            with pytest.raises(AlreadyRunning, match="another process is packing") as raised:
                pack_store(packed.source, tmp_path / "store")
            refusals.append(raised.value)

    pack_store(packed.source, tmp_path / "store", progress=pack_again)
    assert len(refusals) == 1
    assert tree(tmp_path / "store") == tree(packed.store)


def test_everything_is_durable_before_the_manifest_gets_its_name(
    packed: Packed, tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    renamed: list[str] = []

    def replace_after_sync(old: Path, new: Path) -> None:
        assert str(old) in synced, "renamed before its content was durable"
        if new.name == "manifest.json":
            assert {path.name for path in store.iterdir()} == {*tree(packed.store), "packing.journal"} - {
                "manifest.json"
            } | {"manifest.json.partial"}
            assert synced[-2:] == [f"{store}/packing.journal", f"{store}/manifest.json.partial"]
        renamed.append(new.name)
        real_replace(old, new)

    real_replace = os.replace
    monkeypatch.setattr(os, "replace", replace_after_sync)
    pack_store(packed.source, store)
    assert sorted(renamed) == sorted(tree(packed.store))
    assert renamed[-1] == "manifest.json"
    # The directory is made durable after the last name came and after the journal went.
    assert synced[-2:] == [str(store)] * 2


def test_an_error_of_the_progress_callback_ends_the_pack_which_can_go_on(packed: Packed, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done_experts == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(packed.source, tmp_path / "store", progress=interrupt)
    with pytest.raises(NotFound, match="unfinished pack"):
        read_manifest(tmp_path / "store")
    pack_store(packed.source, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(packed.store)


def refused(source: DiskSource, store: Path, kind: type[ZipMoeError], message: str) -> None:
    """A source that cannot be packed is refused before the destination comes into being."""
    with pytest.raises(kind, match=message):
        pack_store(source, store)
    assert not store.exists()


def test_a_missing_shard_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    source.shards[1].unlink()
    refused(source, tmp_path / "store", NotFound, "model-2.safetensors is missing")


def test_a_truncated_shard_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    nbytes = source.shards[1].stat().st_size
    with source.shards[1].open("r+b") as file:
        file.truncate(nbytes - 1)
    refused(source, tmp_path / "store", CorruptData, rf"truncated: it has {nbytes - 1} bytes.* {nbytes}$")


def test_a_shard_that_shrinks_while_packing_ends_the_pack(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", experts=12)

    def shrink(progress: Progress) -> None:
        if progress.done_experts == 1:
            source.shards[0].write_bytes(b"")

    with pytest.raises(CorruptData, match="truncated: it ends at"):
        pack_store(source, tmp_path / "store", PackOptions(workers=1), shrink)
    assert not (tmp_path / "store" / "manifest.json").exists()


def with_template(source: DiskSource, folder: Path) -> DiskSource:
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")
    return replace(source, chat_templates=[template])


def test_chat_templates_are_copied_into_their_folder(packed: Packed, tmp_path: Path) -> None:
    source = with_template(packed.source, tmp_path)
    manifest = pack_store(source, tmp_path / "store").manifest
    assert [file.name for file in manifest.chat_templates] == ["additional_chat_templates/tool_use.jinja"]
    copy = tmp_path / "store" / "additional_chat_templates" / "tool_use.jinja"
    assert copy.read_text() == "{{ messages }}"
    assert pack_store(source, tmp_path / "store").already_packed
    assert verify_against(tmp_path / "store", source).intact
    copy.write_text("{{ massages }}")
    (damage,) = verify_against(tmp_path / "store", source).damages
    assert str(damage) == "additional_chat_templates/tool_use.jinja: has a wrong checksum"


def test_a_pack_with_chat_templates_is_resumed(packed: Packed, tmp_path: Path) -> None:
    source = with_template(packed.source, tmp_path)
    pack_store(source, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.done_experts == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(source, tmp_path / "store", PackOptions(workers=1), interrupt)
    pack_store(source, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


def test_without_chat_templates_the_manifest_has_no_key_for_them(packed: Packed) -> None:
    assert "chat_templates" not in json.loads((packed.store / "manifest.json").read_bytes())


@pytest.mark.parametrize("name", [".hidden.jinja", "ä.jinja"])
def test_a_chat_template_whose_name_a_store_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path / "source")
    (tmp_path / name).touch()
    refused(replace(source, chat_templates=[tmp_path / name]), tmp_path / "store", InvalidRequest, "cannot hold")


def test_a_shard_or_model_file_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    os.mkfifo(tmp_path / "tokenizer.json")
    fifo = [tmp_path / "tokenizer.json"]
    refused(replace(source, model_files=fifo), tmp_path / "store", InvalidRequest, "tokenizer.json is a FIFO")
    source.shards[1].unlink()
    os.mkfifo(source.shards[1])
    refused(source, tmp_path / "store", InvalidRequest, "model-2.safetensors is a FIFO")


@pytest.mark.parametrize("name", ["packing.journal", "config.json.partial"])
def test_a_fifo_in_an_unfinished_pack_is_refused_and_not_waited_for(packed: Packed, tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(packed.source, store, PackOptions(workers=1), interrupt)
    for path in (store / name, store / "config.json"):
        path.unlink(missing_ok=True)
    os.mkfifo(store / name)
    with pytest.raises(InvalidRequest, match=f"{name} is a FIFO"):
        pack_store(packed.source, store, PackOptions(workers=1))


def test_a_missing_model_file_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    source.model_files[0].unlink()
    refused(source, tmp_path / "store", NotFound, "config.json is missing")


@pytest.mark.parametrize(
    "name", ["manifest.json", "packing.journal", "experts-1", "dense-x", "a.partial", ".hidden", "ä"]
)
def test_a_model_file_that_would_clash_with_the_stores_own_is_refused(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path / "source")
    (tmp_path / name).touch()
    refused(replace(source, model_files=[tmp_path / name]), tmp_path / "store", InvalidRequest, "cannot hold")


def test_two_model_files_of_one_name_are_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    files = [*source.model_files, source.model_files[0]]
    refused(replace(source, model_files=files), tmp_path / "store", InvalidRequest, "two model files")


def fp32_tensor(source: DiskSource) -> DiskSource:
    gate, down = source.layers[0].experts[0]
    piece = gate.pieces[0]
    return change_expert(source, 0, 0, (TensorSource(gate.spec, (piece, piece, piece, piece)), down))


def other_shape(source: DiskSource) -> DiskSource:
    gate, down = source.layers[0].experts[1]
    spec = TensorSpec(gate.spec.name, gate.spec.rows // 2, gate.spec.cols * 2)
    return change_expert(source, 0, 1, (TensorSource(spec, gate.pieces), down))


def no_experts(source: DiskSource) -> DiskSource:
    return replace(source, layers=(LayerSource("model.layers.0.mlp.experts", ()),))


def bad_name(source: DiskSource) -> DiskSource:
    return replace(source, layers=(LayerSource("module\n", source.layers[0].experts),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fp32_tensor, r"gate_up_proj of expert 0 .* has 3840 bytes, but bf16 40x24 is 1920: .* have to be bf16"),
        (other_shape, "expert 1 .* other matrices than expert 0"),
        (no_experts, "has no experts"),
        (lambda source: replace(source, layers=()), "no routed experts"),
        (bad_name, "not printable"),
    ],
)
def test_routed_tensors_that_cannot_be_packed_losslessly_are_refused(
    tmp_path: Path, change: Callable[[DiskSource], DiskSource], message: str
) -> None:
    refused(change(make_source(tmp_path / "source")), tmp_path / "store", UnsupportedModel, message)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (DenseTensor("x", "F4", (2,), (BytesPiece(b"\0"),)), "dtype F4"),
        (DenseTensor("x", "F32", (2, 2), (BytesPiece(b"\0" * 15),)), "15 bytes, but F32 2x2 is 16"),
    ],
)
def test_dense_tensors_that_do_not_fit_their_header_are_refused(
    tmp_path: Path, tensor: DenseTensor, message: str
) -> None:
    source = replace(make_source(tmp_path / "source"), dense_tensors=[tensor])
    refused(source, tmp_path / "store", UnsupportedModel, message)


def test_two_dense_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    tensors = list(source.dense_tensors)
    refused(replace(source, dense_tensors=[*tensors, tensors[0]]), tmp_path / "store", InvalidRequest, "two dense")


def test_a_model_without_dense_tensors_or_model_files_packs(packed: Packed, tmp_path: Path) -> None:
    source = replace(packed.source, dense_tensors=[], model_files=[])
    manifest = pack_store(source, tmp_path / "store").manifest
    assert manifest.dense == manifest.model_files == ()
    assert verify_against(tmp_path / "store", source).intact


@pytest.mark.parametrize("options", [{"e_chunks_per_tensor": 0}, {"e_chunks_per_tensor": 65}, {"workers": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=r"has to be|have to be"):
        PackOptions(**options)  # type: ignore[arg-type]


def test_a_store_may_be_copied_and_is_still_whole(packed: Packed, tmp_path: Path) -> None:
    shutil.copytree(packed.store, tmp_path / "copy")
    assert verify_against(tmp_path / "copy", packed.source).intact
