"""Refusals of a store: its directory, its manifest, its files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.run import Ran, zipmoe
from tests.properties.next_steps.bench import Bench, Steps, attempt, built, edit_manifest, performs
from zipmoe.process.budgeted import read_model_config
from zipmoe.store.format.layout import Part
from zipmoe.store.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, read_manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey

MANIFEST = "zipmoe/store/format/manifest.py"
FIELDS = "zipmoe/store/format/fields.py"
VERIFY = "run `zipmoe verify STORE`; if it reports damage, delete the store and pack the checkpoint again"
ANEW = "upgrade zipmoe, or pack the checkpoint with this version into a new directory"
Json = dict[str, Any]


@performs(MANIFEST, "store {} is not a directory")
def a_store_that_does_not_exist(bench: Bench) -> Steps:
    refused = yield zipmoe("inspect", bench.folder / "typo", "--json")
    assert refused.next_step == "check the name or path"
    yield zipmoe("inspect", bench.store_of_all, "--json")


@performs(MANIFEST, "{} has no {}, so it is not a store")
def a_directory_around_the_store(bench: Bench) -> Steps:
    refused = yield zipmoe("inspect", bench.store().parent, "--json")
    assert refused.next_step == "check the name or path"
    yield zipmoe("inspect", bench.folder / "store", "--json")


@performs(MANIFEST, "{} is a checkpoint, not a store")
def a_checkpoint_instead_of_a_store(bench: Bench) -> Steps:
    refused = yield zipmoe("inspect", bench.original, "--json")
    assert refused.next_step == f"run `zipmoe pack {bench.original} DST`, then name DST"
    yield bench.pack(bench.original)
    yield zipmoe("inspect", bench.folder / "packed", "--json")


def _verified_and_packed_again(bench: Bench, store: Path, use: Callable[[Path], Ran]) -> Steps:
    """What the default of CorruptData says."""
    refused = yield use(store)
    assert refused.next_step == VERIFY
    verified = zipmoe("verify", store, "--json")
    assert verified.exit_code == 1, "verify does not report the damage"
    yield bench.pack_again(store)
    yield zipmoe("verify", store, "--json")
    yield use(store)


def _inspect(store: Path) -> Ran:
    return zipmoe("inspect", store, "--json")


def _edited_manifest(name: str, file: str, message: str, edit: Callable[[Json], object]) -> None:
    def steps(bench: Bench) -> Steps:
        edit_manifest(store := bench.store(), edit)
        yield from _verified_and_packed_again(bench, store, _inspect)

    steps.__name__ = f"a_manifest_with_{name}"
    performs(file, message)(steps)


for _name, _file, _message, _edit in (
    ("no_layers", FIELDS, "{} has no {}", lambda m: m.pop("layers")),
    ("an_empty_list", FIELDS, "{} has {} items", lambda m: m.update(layers=[])),
    ("a_number_for_a_list", FIELDS, "{} is not a list", lambda m: m.update(experts=[7, 7])),
    ("a_text_for_a_number", FIELDS, "{} is not an integer", lambda m: m["files"][0].update(bytes="many")),
    ("a_text_for_an_object", FIELDS, "{} is not an object", lambda m: m["files"].append("more")),
    ("a_short_checksum", FIELDS, "{} is not an xxh3-64", lambda m: m["dense"][0].update(xxh3="12")),
    ("a_number_below_0", FIELDS, "{} is outside {} to {}", lambda m: m["files"][0].update(bytes=-1)),
    (
        "a_number_for_a_boolean", FIELDS, "{} of {} is neither true nor false",
        lambda m: m.update(measured={"token_bytes": 1, "request_bytes": 0, "experts_per_token": 1, "stock_experts": 1}),
    ),
    ("a_file_outside", FIELDS, "{} of {} is not a plain file name", lambda m: m["dense"][0].update(name="../x")),
    ("no_family", FIELDS, "{} of {} is not a string", lambda m: m.update(family="")),
    (
        "a_template_outside", FIELDS, "{} of {} is not the name of a chat template",
        lambda m: m.update(chat_templates=[{**m["model_files"][0], "name": "x.jinja"}]),
    ),
    (
        "a_list_of_parameters", MANIFEST, "'parameters' of the codec in {} is not",
        lambda m: m["codec"].update(parameters=[]),
    ),
    (
        "a_null_parameter", MANIFEST, "'parameters' of the codec in {} holds",
        lambda m: m["codec"].update(parameters={"a": None}),
    ),
    ("a_number_left_out", MANIFEST, "{} of {} holds more than names", lambda m: m.update(left_out=[5])),
    ("a_file_twice", MANIFEST, "{} names the file {} twice", lambda m: m["dense"].append(m["dense"][0])),
    ("a_record_in_no_file", MANIFEST, "{} is in file {}", lambda m: m["experts"][0][0].update(file=9)),
    ("a_gap", MANIFEST, "{} begins at {} of {}", lambda m: m["experts"][0][1].update(offset=0)),
    ("a_missing_record", MANIFEST, "the records of {} end at {}", lambda m: m["experts"][0].pop()),
    ("another_size", MANIFEST, "store file {} has {} bytes", lambda m: m["dense"][0].update(bytes=10)),
):  # fmt: skip
    _edited_manifest(_name, _file, _message, _edit)


@performs(MANIFEST, "{} has {} bytes, more than any manifest")
def an_endless_manifest(bench: Bench) -> Steps:
    store = bench.store()
    os.truncate(store / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
    yield from _verified_and_packed_again(bench, store, _inspect)


@performs(FIELDS, "{} is not JSON")
def half_a_manifest(bench: Bench) -> Steps:
    store = bench.store()
    (store / MANIFEST_NAME).write_bytes((store / MANIFEST_NAME).read_bytes()[:-9])
    yield from _verified_and_packed_again(bench, store, _inspect)


@performs(MANIFEST, "{} has digest {}")
def a_manifest_with_a_flipped_byte(bench: Bench) -> Steps:
    store = bench.store()
    text = (store / MANIFEST_NAME).read_bytes()
    (store / MANIFEST_NAME).write_bytes(text.replace(b'"family":"qwen2', b'"family":"qwen3'))
    yield from _verified_and_packed_again(bench, store, _inspect)


@performs(MANIFEST, "store file {} cannot be read")
def a_missing_file(bench: Bench) -> Steps:
    store = bench.store()
    (store / "experts-00001.bin").unlink()
    yield from _verified_and_packed_again(bench, store, _inspect)


@performs(MANIFEST, "store file {} is not a regular file")
def a_directory_in_place_of_a_file(bench: Bench) -> Steps:
    store = bench.store()
    (store / "experts-00001.bin").unlink()
    (store / "experts-00001.bin").mkdir()
    yield from _verified_and_packed_again(bench, store, _inspect)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@performs("zipmoe/store/read/reader.py", "{}: {} of {} has a wrong checksum")
def a_damaged_expert(bench: Bench) -> Steps:
    def read(store: Path) -> Ran:
        manifest = read_manifest(store)
        reader = StoreReader(store, manifest)
        slot = aligned_memory(manifest.max_record_bytes)
        try:
            return attempt(lambda: reader.read(ExpertKey(0, 0), Part.E | Part.SM, slot))
        finally:
            reader.close()

    store = bench.store()
    _flip(store / "experts-00000.bin", 50)
    assert zipmoe("pack", bench.original, store, "--json").json["already_packed"], "then deleting would be needless"
    yield from _verified_and_packed_again(bench, store, read)


def _built(store: Path) -> Ran:
    return attempt(lambda: built(store))


@performs("zipmoe/model/build/dense.py", "dense weights {} have checksum {}", "{}")
def a_damaged_dense_weight(bench: Bench) -> Steps:
    store = bench.store()
    _flip(next(store.glob("dense-*")), -1)
    yield from _verified_and_packed_again(bench, store, _built)


@performs("zipmoe/model/build/dense.py", "{}")
def a_damaged_header_of_dense_weights(bench: Bench) -> Steps:
    store = bench.store()
    _flip(next(store.glob("dense-*")), 9)
    yield from _verified_and_packed_again(bench, store, _built)


@performs("zipmoe/process/budgeted.py", "{} is not JSON")
def a_damaged_config(bench: Bench) -> Steps:
    store = bench.store()
    _flip(store / "config.json", 0)
    yield from _verified_and_packed_again(bench, store, _model_config)


@performs("zipmoe/process/budgeted.py", "{} is not a JSON object")
def a_config_that_is_a_list(bench: Bench) -> Steps:
    store = bench.store()
    path = store / "config.json"
    path.write_bytes(b"[]".ljust(path.stat().st_size))
    yield from _verified_and_packed_again(bench, store, _model_config)


def _model_config(store: Path) -> Ran:
    return attempt(lambda: read_model_config(store, read_manifest(store)))


def _packed_into_a_new_directory(bench: Bench, use: Callable[[Path], Ran], edit: Callable[[Json], object]) -> Steps:
    edit_manifest(store := bench.store(), edit)
    refused = yield use(store)
    assert refused.next_step == ANEW
    yield bench.pack(bench.original, "new")
    yield use(bench.folder / "new")


@performs(MANIFEST, "store has format version {}")
def a_store_of_a_later_version(bench: Bench) -> Steps:
    yield from _packed_into_a_new_directory(bench, _inspect, lambda m: m.update(version=2))


@performs(MANIFEST, "{} is not that of a {}")
def a_store_of_another_format(bench: Bench) -> Steps:
    yield from _packed_into_a_new_directory(bench, _inspect, lambda m: m.update(format="other"))


@performs(MANIFEST, "store has {} {}; this version reads {}")
def a_store_with_another_alignment(bench: Bench) -> Steps:
    yield from _packed_into_a_new_directory(bench, _inspect, lambda m: m.update(alignment_bytes=512))


def _verify(store: Path) -> Ran:
    return zipmoe("verify", store, "--json")


def _later_codec(codec: str, message: str, parameters: Json) -> None:
    def steps(bench: Bench) -> Steps:
        yield from _packed_into_a_new_directory(
            bench, _verify, lambda m: m.update(codec={"name": codec, "parameters": parameters})
        )

    steps.__name__ = f"a_store_of_a_codec_{codec}_of_a_later_version"
    performs(f"zipmoe/codec/{'registry' if codec == 'later' else codec}.py", message)(steps)


_later_codec("later", "codec {} is not one of", {})
for _codec in ("cascade", "lz4hc", "zstd"):
    _later_codec(_codec, f"codec {_codec} does not know parameter", {"later": 1})
for _codec in ("huffman", "raw"):
    _later_codec(_codec, f"codec {_codec} has no parameters", {"later": 1})


def _of_another_version(bench: Bench, edit: Callable[[Json], object]) -> Steps:
    edit_manifest(store := bench.store(), edit)
    refused = yield _built(store)
    assert refused.next_step == "pack the checkpoint with this version into a new directory"
    yield bench.pack(bench.original, "new")
    yield _built(bench.folder / "new")


@performs("zipmoe/model/experts/ffn.py", "{} has {} of shape {}, the store's experts have {}")
def a_store_with_other_names_of_matrices(bench: Bench) -> Steps:
    yield from _of_another_version(bench, lambda m: m["layers"][0]["tensors"][0].update(name="up_gate_proj"))


@performs("zipmoe/model/build/build.py", "{} has no module {}")
def a_store_with_other_names_of_modules(bench: Bench) -> Steps:
    yield from _of_another_version(bench, lambda m: m["layers"][0].update(module="model.blocks.0.experts"))


@performs("zipmoe/model/build/dense_assignment.py", "{} dense weights of {} are missing")
def a_store_without_dense_weights(bench: Bench) -> Steps:
    yield from _of_another_version(bench, lambda m: m.update(dense=[]))


@performs("zipmoe/model/text/tokenizer.py", "{} has no tokenizer")
def a_store_without_a_tokenizer(bench: Bench) -> Steps:
    yield from _with_the_hubs_tokenizer(bench, lambda path: path.unlink(), "put the tokenizer files beside")


@performs("zipmoe/model/text/tokenizer.py", "the tokenizer in {} cannot be loaded: {}")
def a_store_with_a_damaged_tokenizer(bench: Bench) -> Steps:
    yield from _with_the_hubs_tokenizer(bench, lambda path: path.write_text("{}"), "compare the tokenizer files")


def _with_the_hubs_tokenizer(bench: Bench, damage: Callable[[Path], object], next_step: str) -> Steps:
    from zipmoe.model.text.tokenizer import Tokenizer

    path = bench.checkpoint()
    damage(path / "tokenizer.json")
    assert bench.pack(path, "first").exit_code == 0
    refused = yield attempt(lambda: Tokenizer(bench.folder / "first"))
    assert refused.next_step.startswith(next_step)
    assert refused.next_step.endswith("and pack the checkpoint into a new directory")
    shutil.copy(bench.original / "tokenizer.json", path)
    yield bench.pack(path, "second")
    yield attempt(lambda: Tokenizer(bench.folder / "second"))
