"""Refusals of `pack`: its options and its destination."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from tests.cli.run import zipmoe
from tests.model.hub import edit_config
from tests.properties.next_steps.bench import Bench, Steps, edit_manifest, performs
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.format.manifest import JOURNAL_NAME
from zipmoe.store.pack.writer import PackOptions, pack_store

PACK = "zipmoe/cli/stores/pack.py"
WRITER = "zipmoe/store/pack/writer.py"
JOURNAL = "zipmoe/store/pack/journal.py"
CATALOGUE = "zipmoe/model/checkpoint/catalogue.py"
STOCK_MTP = "zipmoe/model/stock/mtp.py"
CORRECT = "correct the named argument and call again"


def _corrected(bench: Bench, wrong: tuple[object, ...], right: tuple[object, ...]) -> Steps:
    refused = yield bench.pack(bench.original, "packed", *wrong)
    assert refused.next_step == CORRECT
    yield bench.pack(bench.original, "packed", *right)


@performs(PACK, "codec {} is not one of {}")
def an_unknown_codec(bench: Bench) -> Steps:
    yield from _corrected(bench, ("--codec", "gzip"), ("--codec", "zstd"))


@performs(PACK, "--codec-option {} is not KEY=VALUE")
def a_codec_option_without_a_value(bench: Bench) -> Steps:
    yield from _corrected(bench, ("--codec-option", "block_rows"), ("--codec-option", "block_rows=8"))


@performs(PACK, "{}")
def an_unknown_codec_option(bench: Bench) -> Steps:
    options = ("--codec", "cascade", "--codec-option")
    yield from _corrected(bench, (*options, "rows=8"), (*options, "block_rows=8"))


@performs(WRITER, "e_chunks_per_tensor has to be")
def no_e_chunks(bench: Bench) -> Steps:
    yield from _corrected(bench, ("--e-chunks", 0), ("--e-chunks", 1))


@performs(WRITER, "workers have to be")
def no_workers(bench: Bench) -> Steps:
    yield from _corrected(bench, ("--workers", 0), ("--workers", 2))


def _another_destination(bench: Bench, wrong: Path, next_step: str) -> Steps:
    refused = yield zipmoe("pack", bench.original, wrong, "--json")
    assert refused.next_step == next_step
    yield bench.pack(bench.original, "another")


@performs(WRITER, "{} is not a directory")
def a_file_as_destination(bench: Bench) -> Steps:
    (bench.folder / "file").write_bytes(b"")
    yield from _another_destination(bench, bench.folder / "file", "choose another destination")


@performs(WRITER, "cannot create {}")
def a_destination_where_nothing_can_be(bench: Bench) -> Steps:
    yield from _another_destination(bench, Path("/proc/store"), "choose another destination")


@performs(WRITER, "{} is not empty and not an unfinished pack")
def a_destination_with_other_files(bench: Bench) -> Steps:
    (bench.folder / "notes").mkdir()
    (bench.folder / "notes" / "notes.txt").write_bytes(b"")
    yield from _another_destination(bench, bench.folder / "notes", "choose an empty or new directory as destination")


@performs(WRITER, "{} already holds a store, packed from or with {}")
def a_store_of_another_codec_as_destination(bench: Bench) -> Steps:
    store = bench.store()
    refused = yield zipmoe("pack", bench.original, store, "--codec", "raw", "--json")
    assert refused.next_step == "choose another destination, or delete that store first"
    yield bench.pack(bench.original, "another", "--codec", "raw")
    shutil.rmtree(store)
    yield zipmoe("pack", bench.original, store, "--codec", "raw", "--json")


class _Interrupted(Exception):
    pass


def _unfinished(bench: Bench) -> Path:
    """A store whose pack ended before the manifest was written."""

    def interrupt(*_: object) -> bytes:
        raise _Interrupted

    path = bench.folder / "unfinished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipmoe.store.pack.writer.seal_manifest", interrupt)
        with pytest.raises(_Interrupted):
            pack_store(catalogue(bench.original), path, PackOptions(workers=1))
    return path


@performs("zipmoe/store/format/manifest.py", "{} holds an unfinished pack")
def an_unfinished_store(bench: Bench) -> Steps:
    path = _unfinished(bench)
    refused = yield zipmoe("inspect", path, "--json")
    assert refused.next_step == "run the same `zipmoe pack` again: it resumes where it stopped"
    yield zipmoe("pack", bench.original, path, "--json")
    yield zipmoe("inspect", path, "--json")


@performs(JOURNAL, "{}")
def an_unfinished_store_of_another_codec(bench: Bench) -> Steps:
    path = _unfinished(bench)
    refused = yield zipmoe("pack", bench.original, path, "--codec", "raw", "--json")
    assert refused.next_step == f"finish that pack, or delete {path} and start again"
    yield zipmoe("pack", bench.original, path, "--json")
    shutil.rmtree(path)
    yield zipmoe("pack", bench.original, path, "--codec", "raw", "--json")


@performs(JOURNAL, "{} is not the journal of a pack")
def a_journal_of_something_else(bench: Bench) -> Steps:
    (bench.folder / "other").mkdir()
    (bench.folder / "other" / JOURNAL_NAME).write_text("monday: rain\n")
    yield from _another_destination(bench, bench.folder / "other", "choose another destination")


@performs(JOURNAL, "another process is packing into {}")
def another_pack_into_the_destination(bench: Bench) -> Steps:
    path = _unfinished(bench)
    with (path / JOURNAL_NAME).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = yield zipmoe("pack", bench.original, path, "--json")
        assert refused.next_step == "wait for it to end, or choose another destination"
        yield bench.pack(bench.original, "another")
    yield zipmoe("pack", bench.original, path, "--json")


@performs("zipmoe/store/pack/source_check.py", "a store cannot hold a model file of the name {}")
def a_tokenizer_with_an_unusual_name(bench: Bench) -> Steps:
    path = bench.checkpoint()
    odd = path / "tokenizer_für_deutsch.json"
    odd.write_text("{}")
    refused = yield bench.pack(path)
    assert refused.next_step == f"rename or remove {odd}"
    odd.unlink()
    yield bench.pack(path)


@performs("zipmoe/planning/kv_bytes.py", "config.json has no {}")
def a_store_of_an_older_version(bench: Bench) -> Steps:
    from zipmoe.model.families.twin import tiny_config, write_checkpoint

    checkpoint = bench.folder / "checkpoint"
    write_checkpoint(tiny_config("dbrx"), checkpoint, seed=0)
    ran = bench.pack(checkpoint)
    assert ran.exit_code == 0, ran.stderr
    edit_manifest(bench.folder / "packed", lambda manifest: manifest.pop("measured"))
    refused = yield zipmoe("plan", bench.folder / "packed", "--memory-budget", "8GiB", "--json")
    assert refused.next_step == "pack the checkpoint with this version into a new directory"
    yield bench.pack(checkpoint, "new")
    yield zipmoe("plan", bench.folder / "new", "--memory-budget", "8GiB", "--json")


@performs("zipmoe/model/stock/generation_settings.py", "generation_config.json in {} cannot be read")
def an_unreadable_generation_config(bench: Bench) -> Steps:
    yield from _generation_config(bench, "{")


@performs("zipmoe/model/stock/generation_settings.py", "generation_config.json: {}")
def a_generation_config_that_stock_refuses(bench: Bench) -> Steps:
    yield from _generation_config(bench, '{"temperature": "warm", "do_sample": true}')


def _generation_config(bench: Bench, text: str) -> Steps:
    from tests.properties.next_steps.bench import attempt, built

    path = bench.checkpoint()
    (path / "generation_config.json").write_text(text)
    assert bench.pack(path, "first").exit_code == 0
    refused = yield attempt(lambda: built(bench.folder / "first"))
    assert refused.next_step.startswith("correct or remove generation_config.json of the checkpoint, and pack")
    (path / "generation_config.json").unlink()
    assert bench.pack(path, "first").exit_code != 0, "the next step may say less"
    yield bench.pack(path, "second")
    yield attempt(lambda: built(bench.folder / "second"))


def _without_mtp(bench: Bench, checkpoint: Path) -> Steps:
    refused = yield bench.pack(checkpoint, "packed", "--with-mtp")
    assert refused.next_step.startswith("pack without --with-mtp")
    assert not (bench.folder / "packed").exists()
    yield bench.pack(checkpoint, "packed")


@performs(CATALOGUE, "the configuration of this {} model states no layers")
def a_model_without_layers_for_multi_token_prediction(bench: Bench) -> Steps:
    yield from _without_mtp(bench, bench.original)


@performs(CATALOGUE, "config.json states {} layers for multi-token prediction, but")
def a_checkpoint_without_its_layers_for_multi_token_prediction(bench: Bench) -> Steps:
    yield from _without_mtp(bench, bench.hub.get("glm4_moe"))


@performs(STOCK_MTP, "transformers constructs no MTP layers")
def layers_for_multi_token_prediction_that_are_refused(bench: Bench) -> Steps:
    path = Path(shutil.copytree(bench.hub.get("glm4_moe"), bench.folder / "checkpoint"))
    edit_config(path, layer_types=["full_attention"] * 3)  # stock asks for mtp_layer_types then
    yield from _without_mtp(bench, path)
