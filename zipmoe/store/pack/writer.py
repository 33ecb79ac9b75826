"""Packs a checkpoint into a store: deterministic, parallel and resumable.

    check source -> lock DST, replay its journal -> model files, dense shards, expert files -> manifest -> unlock

Every file is written as `NAME.partial`, made durable and renamed. The manifest is written last, so an unfinished pack
is never taken for a store. Then the journal is deleted.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from zipmoe import __version__
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import default_codec
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.store.format import layout
from zipmoe.store.format.entries import ChecksummedFile, LayerEntry
from zipmoe.store.format.fields import canonical_json, is_template_name, xxh3_text
from zipmoe.store.format.manifest import (
    CHAT_TEMPLATES,
    FORMAT,
    JOURNAL_NAME,
    LEFT_OUT,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MEASURED,
    MTP_LAYERS,
    VERSION,
    Manifest,
    parse_manifest,
    read_manifest,
    seal_manifest,
)
from zipmoe.store.pack.dense_shards import copy_model_file, plan_dense_shards, write_dense_shard
from zipmoe.store.pack.disk_space import check_disk_space, estimate_bytes
from zipmoe.store.pack.expert_files import ExpertFilesWriter
from zipmoe.store.pack.expert_packer import ExpertPacker, PackingBuffers
from zipmoe.store.pack.fingerprint import source_fingerprint
from zipmoe.store.pack.journal import Journal
from zipmoe.store.pack.partial_file import PartialFile, write_error
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.pipeline import MAX_WORKERS
from zipmoe.store.pack.progress import Meter, ProgressCallback, ignore_progress
from zipmoe.store.pack.resume import PackedSoFar, expert_file_name
from zipmoe.store.pack.source import ExpertSource, copied_files
from zipmoe.store.pack.source_check import check_source
from zipmoe.system_error import CHECK_ACCESS, reason_of


@dataclass(frozen=True)
class PackOptions:
    """Options of a pack. Only `codec`, `e_chunks_per_tensor` and `dense_shard_bytes` influence the bytes of the store.

    `e_chunks_per_tensor` is the paper's K, the number of workers that can share the recovery of one tensor.
    `memory_bytes` bounds the buffers of the experts in flight; at least one expert is in flight.
    """

    codec: Codec = field(default_factory=default_codec)
    e_chunks_per_tensor: int = 4
    dense_shard_bytes: int = 1 << 30
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    memory_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        """Refuses values out of range with InvalidRequest."""
        if not 1 <= self.e_chunks_per_tensor <= layout.MAX_E_CHUNKS:
            raise InvalidRequest(
                f"e_chunks_per_tensor has to be 1 to {layout.MAX_E_CHUNKS}, not {self.e_chunks_per_tensor}"
            )
        if not 1 <= self.workers <= MAX_WORKERS:
            raise InvalidRequest(f"workers have to be 1 to {MAX_WORKERS}, not {self.workers}")
        if self.dense_shard_bytes < 1:
            raise InvalidRequest(f"dense_shard_bytes has to be positive, not {self.dense_shard_bytes}")


@dataclass(frozen=True)
class PackReport:
    """Result of a pack: the manifest, and the sizes of checkpoint and store."""

    manifest: Manifest
    already_packed: bool
    source_bytes: int
    store_bytes: int


def pack_store(
    source: ExpertSource,
    dst: Path,
    options: PackOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> PackReport:
    """Packs a checkpoint into the directory `dst`, or resumes an interrupted pack of the same inputs.

    Args:
        source: the checkpoint.
        dst: a path that does not exist, an empty directory, an unfinished pack of the same inputs, or a finished store
            of the same inputs (then nothing is packed, and the report has `already_packed`).
        options: options of the pack; None for the defaults.
        progress: called after each expert and each dense piece, always from this thread. An exception of the callback
            ends the pack.

    Returns:
        The manifest and the sizes before and after.

    Raises:
        InvalidRequest: `dst` holds other files, another store or an unfinished pack of other inputs, or no permission
            to write.
        AlreadyRunning: another process packs into `dst`.
        ResourceExhausted: too little disk space, before the start or during the pack. The pack can be resumed.
        UnsupportedModel, NotFound, CorruptData: the checkpoint cannot be packed.

    Cost: reads samples of the checkpoint, then the whole checkpoint once. A resumed pack also reads the records of
        unfinished expert files.
    """
    options = options or PackOptions()
    with closing(PieceReader()) as pieces:
        check_source(source, pieces)
        return _Packing(source, dst, options, pieces, progress).run()


class _Packing:
    """One run of `pack_store`."""

    def __init__(
        self, source: ExpertSource, dst: Path, options: PackOptions, pieces: PieceReader, progress: ProgressCallback
    ) -> None:
        self._source = source
        self._dst = dst
        self._options = options
        self._pieces = pieces
        self._progress = progress
        self._specs = [layer.spec for layer in source.layers]
        self._dense = plan_dense_shards(source.dense_tensors, options.dense_shard_bytes)
        pieces.check(piece for shard in self._dense for tensor in shard.tensors for piece in tensor.pieces)
        self._routed_bytes = sum(layer.spec.weight_bytes * len(layer.experts) for layer in source.layers)
        self._source_bytes = self._routed_bytes + sum(shard.data_bytes for shard in self._dense)
        self._source_xxh3 = source_fingerprint(source, pieces)

    def run(self) -> PackReport:
        """Inspects the destination, then packs the missing files."""
        _make_directory(self._dst)
        unfinished = (self._dst / JOURNAL_NAME).exists()
        if (self._dst / MANIFEST_NAME).exists() and not unfinished:
            return self._report(self._finished_manifest(), already_packed=True)
        if not unfinished:
            _refuse_foreign_files(self._dst)
        with closing(Journal(self._dst, self._inputs())) as journal:
            if (self._dst / MANIFEST_NAME).exists():
                # An earlier run died between writing the manifest and deleting the journal, or another process has
                # finished since the check above.
                manifest = self._finished_manifest()
                journal.remove()
                return self._report(manifest, already_packed=True)
            if journal.fresh:
                _refuse_foreign_files(self._dst)
                journal.begin()
            manifest = self._pack(journal)
            journal.remove()
        return self._report(manifest, already_packed=False)

    def _pack(self, journal: Journal) -> Manifest:
        options = self._options
        packer = ExpertPacker(self._pieces, options.codec, options.e_chunks_per_tensor)
        in_flight = max(1, min(options.memory_bytes // PackingBuffers.nbytes(self._specs), options.workers + 2))
        buffer_sets = [PackingBuffers(self._specs) for _ in range(in_flight)]
        check_disk_space(self._dst, estimate_bytes(self._source, self._dense, packer, buffer_sets[0]))

        state = PackedSoFar(journal, self._specs, options.e_chunks_per_tensor)
        meter = Meter(self._source_bytes, sum(len(layer.experts) for layer in self._source.layers), self._progress)
        model_files = self._write_model_files(state)
        dense = self._write_dense(state, meter)
        ExpertFilesWriter(self._source.layers, self._dst, state, packer, meter).write(options.workers, buffer_sets)

        text = seal_manifest(self._document(state, dense, model_files))
        if len(text) > MAX_MANIFEST_BYTES:
            raise InvalidRequest(f"the manifest would have {len(text)} bytes, more than {MAX_MANIFEST_BYTES}")
        manifest = parse_manifest(text)
        with closing(PartialFile(self._dst / MANIFEST_NAME)) as file:
            file.append([text])
            file.finish()
        return manifest

    def _write_model_files(self, state: PackedSoFar) -> list[ChecksummedFile]:
        files = []
        for name, path in copied_files(self._source):
            file = state.check_file(self._dst, name)
            if file is None:
                file = copy_model_file(name, path, self._dst, self._pieces)
                state.add_file(file)
            files.append(file)
        return files

    def _write_dense(self, state: PackedSoFar, meter: Meter) -> list[ChecksummedFile]:
        files = []
        for shard in self._dense:
            file = state.check_file(self._dst, shard.name)
            if file is None:
                file = write_dense_shard(
                    shard,
                    self._dst,
                    self._pieces,
                    lambda nbytes: meter.advance(nbytes, written_bytes=nbytes),
                )
                state.add_file(file)
            else:
                meter.advance(shard.data_bytes, resumed=True)
            files.append(file)
        return files

    def _document(
        self, state: PackedSoFar, dense: list[ChecksummedFile], model_files: list[ChecksummedFile]
    ) -> dict[str, object]:
        layers = [LayerEntry(layer.module, layer.spec, len(layer.experts)) for layer in self._source.layers]
        templates = [file.to_json() for file in model_files if is_template_name(file.name)]
        return {
            **self._settings(),
            "layers": [layer.to_json() for layer in layers],
            "files": [
                {"name": expert_file_name(layer), "bytes": state.layer_bytes(layer)} for layer in range(len(layers))
            ],
            "dense": [file.to_json() for file in dense],
            "model_files": [file.to_json() for file in model_files if not is_template_name(file.name)],
            "experts": [[entry.to_json() for entry in layer.entries] for layer in state.layers],
            # Without any of these keys, the bytes are those of older packers.
            **({CHAT_TEMPLATES: templates} if templates else {}),
            **({MEASURED: measured.to_json()} if (measured := self._source.measured) is not None else {}),
            **({LEFT_OUT: list(left_out)} if (left_out := self._source.left_out) else {}),
            **({MTP_LAYERS: count} if (count := self._source.mtp_layers) else {}),
        }

    def _settings(self) -> dict[str, object]:
        """Returns the settings that determine the bytes of the store, apart from the weights."""
        codec = self._options.codec
        return {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"zipmoe {__version__}",
            "family": self._source.family,
            "codec": {"name": codec.name, "parameters": dict(codec.parameters)},
            "e_chunks_per_tensor": self._options.e_chunks_per_tensor,
            "alignment_bytes": layout.ALIGNMENT_BYTES,
            "chunk_alignment_bytes": layout.CHUNK_ALIGNMENT_BYTES,
            "tail_padding_bytes": layout.TAIL_PADDING_BYTES,
            "source_xxh3": xxh3_text(self._source_xxh3),
        }

    def _inputs(self) -> str:
        return canonical_json({**self._settings(), "dense_shard_bytes": self._options.dense_shard_bytes}).decode()

    def _finished_manifest(self) -> Manifest:
        """Returns the manifest of an existing store of the same inputs; InvalidRequest for another store."""
        manifest = read_manifest(self._dst)
        codec = self._options.codec
        if manifest.source_xxh3 != self._source_xxh3:
            difference = "another checkpoint"
        elif (manifest.codec_name, dict(manifest.codec_parameters)) != (codec.name, dict(codec.parameters)):
            difference = f"codec {manifest.codec_name} {dict(manifest.codec_parameters)}"
        elif manifest.e_chunks_per_tensor != self._options.e_chunks_per_tensor:
            difference = f"{manifest.e_chunks_per_tensor} E-chunks a tensor"
        else:
            return manifest
        raise InvalidRequest(
            f"{self._dst} already holds a store, packed from or with {difference}",
            next_step="choose another destination, or delete that store first",
        )

    def _report(self, manifest: Manifest, *, already_packed: bool) -> PackReport:
        store_bytes = sum(file.nbytes for file in manifest.all_files)
        return PackReport(manifest, already_packed, self._source_bytes, store_bytes)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidRequest(f"{path} is not a directory", next_step="choose another destination") from error
    except FileNotFoundError as error:
        raise NotFound(f"cannot create {path}: {reason_of(error)}", next_step="choose another destination") from error
    except OSError as error:
        raise write_error(path, error) from error


def _refuse_foreign_files(path: Path) -> None:
    """Refuses a directory with files other than a journal, so that a pack never mixes with other files."""
    try:
        names = sorted(name for name in os.listdir(path) if name != JOURNAL_NAME)
    except PermissionError as error:
        raise InvalidRequest(f"no permission to read {path}", next_step=CHECK_ACCESS) from error
    if names:
        raise InvalidRequest(
            f"{path} is not empty and not an unfinished pack: it holds {len(names)} other files, such as {names[0]!r}",
            next_step="choose an empty or new directory as destination",
        )
