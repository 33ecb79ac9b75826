import json
import os
from pathlib import Path

import pytest

from tests.store.conftest import Packed
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedStore
from zipmoe.store.format import manifest as manifest_module
from zipmoe.store.format.manifest import MANIFEST_NAME, parse_manifest, read_manifest, seal_manifest
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.types import ExpertKey


def document(store: Path) -> dict[str, object]:
    value = json.loads((store / MANIFEST_NAME).read_bytes())
    del value["digest"]
    return value


def rewrite(store: Path, **changes: object) -> None:
    (store / MANIFEST_NAME).write_bytes(seal_manifest({**document(store), **changes}))


def test_the_manifest_describes_what_was_packed(packed: Packed) -> None:
    manifest = read_manifest(packed.store)
    assert manifest.version == 1
    assert manifest.family == "qwen2_moe"
    assert [layer.module for layer in manifest.layers] == [layer.module for layer in packed.source.layers]
    assert [layer.spec for layer in manifest.layers] == [layer.spec for layer in packed.source.layers]
    assert [layer.expert_count for layer in manifest.layers] == [3, 3]
    assert [file.name for file in manifest.files] == ["experts-00000.bin", "experts-00001.bin"]
    assert [file.name for file in manifest.dense] == ["dense-00001.safetensors"]
    assert [file.name for file in manifest.model_files] == ["config.json", "tokenizer.json"]
    assert manifest.dense_bytes == (packed.store / "dense-00001.safetensors").stat().st_size
    assert list(manifest.expert_keys()) == [ExpertKey(layer, expert) for layer in range(2) for expert in range(3)]
    assert manifest.max_record_bytes == max(manifest.record(key).nbytes for key in manifest.expert_keys())
    assert manifest.max_tensor_bytes == 4096


def test_writing_a_manifest_again_gives_the_same_bytes(packed: Packed) -> None:
    assert seal_manifest(document(packed.store)) == (packed.store / MANIFEST_NAME).read_bytes()


@pytest.mark.parametrize("key", [ExpertKey(2, 0), ExpertKey(0, 3), ExpertKey(-1, 0), ExpertKey(0, -1)])
def test_an_expert_that_the_model_lacks_is_not_found(packed: Packed, key: ExpertKey) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_manifest(packed.store).record(key)


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a directory"):
        read_manifest(tmp_path / "nowhere")


def test_a_directory_without_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_an_unfinished_pack_is_told_apart_from_other_directories(tmp_path: Path) -> None:
    (tmp_path / "packing.journal").touch()
    with pytest.raises(NotFound, match="unfinished pack") as raised:
        read_manifest(tmp_path)
    assert "resumes" in raised.value.diagnostics()


def test_a_manifest_that_may_not_be_read_is_the_callers_problem(
    copied: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest_module, "open_regular_file", refuse)
    with pytest.raises(InvalidRequest, match="no permission"):
        read_manifest(copied.store)


def test_a_newer_format_is_unsupported_and_not_called_corrupt(copied: Packed) -> None:
    rewrite(copied.store, version=2)
    with pytest.raises(UnsupportedStore, match="format version 2"):
        read_manifest(copied.store)


@pytest.mark.parametrize("name", ["alignment_bytes", "chunk_alignment_bytes", "tail_padding_bytes"])
def test_another_geometry_is_unsupported(copied: Packed, name: str) -> None:
    rewrite(copied.store, **{name: 512})
    with pytest.raises(UnsupportedStore, match=name):
        read_manifest(copied.store)


def test_json_that_is_no_manifest_is_corrupt(copied: Packed) -> None:
    (copied.store / MANIFEST_NAME).write_text('{"name": "a web page"}')
    with pytest.raises(CorruptData, match="no 'format'"):
        read_manifest(copied.store)


def test_a_manifest_of_another_format_is_unsupported(copied: Packed) -> None:
    rewrite(copied.store, format="web-page")
    with pytest.raises(UnsupportedStore, match="not that of a zipmoe-store"):
        read_manifest(copied.store)


def test_unknown_keys_are_left_to_later_versions(copied: Packed) -> None:
    rewrite(copied.store, later={"a": [1]})
    assert read_manifest(copied.store).family == "qwen2_moe"


def test_one_changed_digit_is_noticed_by_the_digest(copied: Packed) -> None:
    text = (copied.store / MANIFEST_NAME).read_bytes()
    (copied.store / MANIFEST_NAME).write_bytes(text.replace(b'"rows":40', b'"rows":41', 1))
    with pytest.raises(CorruptData, match="digest"):
        read_manifest(copied.store)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"format": "zipmoe-store", "version": 1, "digest": ' + b"[" * 100_000,
        b'{"format": "zipmoe-store", "version": 1, "x": NaN}',
        b'{"format": "zipmoe-store", "version": 1, "x": 1e999, "digest": ""}',
        b'{"format": "zipmoe-store", "version": 1e0}',
        b'{"format": "zipmoe-store", "version": true}',
        b'{"format": "zipmoe-store", "version": ' + b"1" * 5000 + b"}",
        b'{"format": "zipmoe-store", "version": 1, "digest": "\\ud800"}',
        b"\xff\xfe{}",
        b"7",
        b"null",
    ],
    ids=range(13),
)
def test_text_that_is_no_manifest_is_corrupt(text: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_manifest(text)


def test_a_missing_file_is_corrupt(copied: Packed) -> None:
    (copied.store / "experts-00001.bin").unlink()
    with pytest.raises(CorruptData, match=r"experts-00001\.bin"):
        read_manifest(copied.store)


@pytest.mark.parametrize("name", ["experts-00000.bin", "dense-00001.safetensors", "config.json"])
def test_a_file_of_another_size_is_corrupt(copied: Packed, name: str) -> None:
    with (copied.store / name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptData, match=rf"{name} has \d+ bytes, the manifest says \d+"):
        read_manifest(copied.store)


def test_a_directory_in_place_of_a_file_is_corrupt(copied: Packed) -> None:
    (copied.store / "config.json").unlink()
    (copied.store / "config.json").mkdir()
    with pytest.raises(CorruptData, match="not a regular file"):
        read_manifest(copied.store)


def test_records_that_overlap_are_refused(copied: Packed) -> None:
    experts = document(copied.store)["experts"]
    experts[0][1]["offset"] = 0  # type: ignore[index]
    rewrite(copied.store, experts=experts)
    with pytest.raises(CorruptData, match="begins at 0"):
        read_manifest(copied.store)


def test_records_that_leave_a_gap_are_refused(copied: Packed) -> None:
    experts = document(copied.store)["experts"]
    experts[0][2]["offset"] += 4096  # type: ignore[index]
    rewrite(copied.store, experts=experts)
    with pytest.raises(CorruptData, match="the record before ends at"):
        read_manifest(copied.store)


def test_a_record_beyond_the_end_of_its_file_is_refused(copied: Packed) -> None:
    experts = document(copied.store)["experts"]
    experts[1][2]["e"][0][0] += 1 << 40  # type: ignore[index]
    rewrite(copied.store, experts=experts)
    with pytest.raises(CorruptData, match="records of experts-00001"):
        read_manifest(copied.store)


def test_a_shape_larger_than_the_file_is_refused_before_anything_is_allocated(copied: Packed) -> None:
    layers = document(copied.store)["layers"]
    layers[0]["tensors"][0]["cols"] = 1 << 33  # type: ignore[index]
    rewrite(copied.store, layers=layers)
    with pytest.raises(CorruptData):
        read_manifest(copied.store)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".hidden", "a/b", "", "manifest.json", "a\0b", "ü", 7])
def test_file_names_that_lead_elsewhere_are_refused(copied: Packed, name: object) -> None:
    files = document(copied.store)["model_files"]
    files[0]["name"] = name  # type: ignore[index]
    rewrite(copied.store, model_files=files)
    with pytest.raises(CorruptData):
        read_manifest(copied.store)


HOSTILE_TEMPLATES = [
    "../outside.jinja", "/etc/x.jinja", "x.jinja", "other/x.jinja", "additional_chat_templates/../config.json",
    "additional_chat_templates/../x.jinja", "additional_chat_templates/a/b.jinja", "additional_chat_templates//x.jinja",
    "additional_chat_templates/.x.jinja", "additional_chat_templates/x.json", "additional_chat_templates/",
    "additional_chat_templates/a\0.jinja", "additional_chat_templates/ü.jinja", "additional_chat_templates", "", 7,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_names_of_chat_templates_that_lead_elsewhere_are_refused(copied: Packed, name: object) -> None:
    rewrite(copied.store, chat_templates=[{"name": name, "bytes": 0, "xxh3": "0" * 16}])
    with pytest.raises(CorruptData):
        read_manifest(copied.store)


@pytest.mark.parametrize("key", ["model_files", "dense"])
def test_only_chat_templates_lie_in_the_folder(copied: Packed, key: str) -> None:
    files = document(copied.store)[key]
    files[0]["name"] = "additional_chat_templates/x.jinja"  # type: ignore[index]
    rewrite(copied.store, **{key: files})
    with pytest.raises(CorruptData, match="not a plain file name"):
        read_manifest(copied.store)


def test_two_chat_templates_of_one_name_are_refused(copied: Packed) -> None:
    entry = {"name": "additional_chat_templates/x.jinja", "bytes": 0, "xxh3": "0" * 16}
    rewrite(copied.store, chat_templates=[entry, entry])
    with pytest.raises(CorruptData, match="twice"):
        read_manifest(copied.store)


def test_a_missing_chat_template_is_refused(copied: Packed) -> None:
    entry = {"name": "additional_chat_templates/x.jinja", "bytes": 0, "xxh3": "0" * 16}
    rewrite(copied.store, chat_templates=[entry])
    with pytest.raises(CorruptData, match=r"x\.jinja cannot be read"):
        read_manifest(copied.store)


MEASURED = {"token_bytes": 20480, "request_bytes": 63 << 20, "experts_per_token": 8, "stock_experts": False}


def test_measured_sizes_and_left_out_modules_are_read(copied: Packed) -> None:
    assert read_manifest(copied.store).measured is None and read_manifest(copied.store).left_out == ()
    rewrite(copied.store, measured=MEASURED, left_out=["model.visual"])
    manifest = read_manifest(copied.store)
    assert manifest.measured == MeasuredSizes(20480, 63 << 20, 8)
    assert manifest.measured.to_json() == MEASURED and manifest.left_out == ("model.visual",)


@pytest.mark.parametrize(
    "changes",
    [
        {"measured": {**MEASURED, "token_bytes": -1}}, {"measured": {**MEASURED, "request_bytes": 1 << 50}},
        {"measured": {**MEASURED, "experts_per_token": 0}}, {"measured": {**MEASURED, "token_bytes": 1.5}},
        {"measured": {**MEASURED, "stock_experts": 1}}, {"measured": {"token_bytes": 1}}, {"measured": []},
        {"left_out": []}, {"left_out": [7]}, {"left_out": ["a\nb"]}, {"left_out": "model.visual"},
    ],
)  # fmt: skip
def test_measured_sizes_and_left_out_modules_that_no_packer_writes_are_refused(
    copied: Packed, changes: dict[str, object]
) -> None:
    rewrite(copied.store, **changes)
    with pytest.raises(CorruptData):
        read_manifest(copied.store)


def test_a_manifest_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    with pytest.raises(InvalidRequest, match=r"manifest\.json is a FIFO"):
        read_manifest(tmp_path)


def test_two_files_of_one_name_are_refused(copied: Packed) -> None:
    files = document(copied.store)["model_files"]
    files[1] = files[0]  # type: ignore[index]
    rewrite(copied.store, model_files=files)
    with pytest.raises(CorruptData, match="twice"):
        read_manifest(copied.store)


def test_a_manifest_larger_than_any_is_refused_unread(copied: Packed) -> None:
    with (copied.store / MANIFEST_NAME).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptData, match="more than any manifest"):
        read_manifest(copied.store)
