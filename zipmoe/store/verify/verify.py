"""Checks a whole store and lists every damage; on request also compares all tensors with the checkpoint."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.store.format.checksum import xxh3_of_file
from zipmoe.store.format.entries import ChecksummedFile, ExpertFile
from zipmoe.store.format.manifest import MANIFEST_NAME, Manifest, check_file, parse_manifest, read_manifest_bytes
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.pipeline import MAX_WORKERS, run_in_order
from zipmoe.store.pack.progress import Meter, ProgressCallback, ignore_progress
from zipmoe.store.pack.source import ExpertSource
from zipmoe.store.pack.source_check import check_source
from zipmoe.store.read.record_file import RecordFile
from zipmoe.store.verify.expert_check import CheckBuffers, ExpertCheck
from zipmoe.store.verify.source_compare import compare_dense, compare_layers
from zipmoe.system_error import reason_of
from zipmoe.types import ExpertKey

_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Damage:
    """A problem of a store, with the name of the damaged file."""

    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


@dataclass(frozen=True)
class VerifyReport:
    """Result of a verification: all damages, and the number of checked experts and bytes."""

    digest: str
    damages: tuple[Damage, ...]
    checked_experts: int
    checked_bytes: int
    compared: bool

    @property
    def intact(self) -> bool:
        """Whether the verification found no damage."""
        return not self.damages


def verify_store(store: Path, progress: ProgressCallback = ignore_progress, workers: int | None = None) -> VerifyReport:
    """Reads every byte of a store and checks it: each chunk, each recovered tensor, padding, dense and model files.

    Args:
        store: the store directory.
        progress: called after each expert and each piece of another file, always from this thread.
        workers: number of threads; by default one for each core.

    Returns:
        All damages: those of model files and dense files first, then those of experts in order.

    Raises:
        NotFound, UnsupportedStore, CorruptData, InvalidRequest: the manifest is missing or unusable.
        InvalidRequest: `workers` is out of range.

    Cost: reads and recovers the whole store; memory of a few experts.
    """
    manifest = parse_manifest(read_manifest_bytes(store))
    return _Verification(store, manifest, progress, workers).run(None)


def verify_against(
    store: Path, source: ExpertSource, progress: ProgressCallback = ignore_progress, workers: int | None = None
) -> VerifyReport:
    """Verifies a store as `verify_store` does, and compares all recovered and dense tensors with a checkpoint.

    Args:
        store: the store directory.
        source: the checkpoint from which the store should have been packed.
        progress: as for `verify_store`.
        workers: as for `verify_store`.

    Returns:
        All damages and differences.

    Raises:
        NotFound, UnsupportedStore, CorruptData, InvalidRequest: the manifest is missing or unusable.
        NotFound, CorruptData, UnsupportedModel, InvalidRequest: the checkpoint cannot be read.
    """
    manifest = parse_manifest(read_manifest_bytes(store))
    return _Verification(store, manifest, progress, workers).run(source)


class _Verification:
    """A verification of one store."""

    def __init__(self, store: Path, manifest: Manifest, progress: ProgressCallback, workers: int | None) -> None:
        self._store = store
        self._manifest = manifest
        if workers is not None and not 1 <= workers <= MAX_WORKERS:
            raise InvalidRequest(f"workers have to be 1 to {MAX_WORKERS}, not {workers}")
        self._workers = workers or len(os.sched_getaffinity(0))
        self._damages: list[Damage] = []
        routed_bytes = sum(layer.spec.weight_bytes * layer.expert_count for layer in manifest.layers)
        other_bytes = sum(file.nbytes for file in (*manifest.dense, *manifest.copied_files))
        self._meter = Meter(routed_bytes + other_bytes, manifest.expert_count, progress)

    def run(self, source: ExpertSource | None) -> VerifyReport:
        """Checks all files and experts, and compares with `source` if there is one."""
        with closing(PieceReader()) as pieces:
            if source is not None:
                check_source(source, pieces)
            for file in (*self._manifest.copied_files, *self._manifest.dense):
                self._check_whole_file(file)
            comparable = None
            if source is not None:
                for name, problem in compare_dense(self._store, self._manifest, source, pieces):
                    self._note(name, problem)
                differences = list(compare_layers(self._manifest, source))
                for difference in differences:
                    self._note(MANIFEST_NAME, difference)
                comparable = None if differences else source
            self._check_experts(comparable, pieces)
        done = self._meter.progress()
        damages = tuple(self._damages)
        return VerifyReport(self._manifest.digest, damages, done.done_experts, done.done_bytes, source is not None)

    def _check_whole_file(self, file: ChecksummedFile) -> None:
        path = self._store / file.name
        try:
            check_file(path, file.nbytes)
            actual = xxh3_of_file(path, self._meter.advance)
        except CorruptData as error:
            self._note(file.name, error.message)
        except OSError as error:
            self._note(file.name, f"cannot be read: {reason_of(error)}")
        else:
            if actual != file.xxh3:
                self._note(file.name, "has a wrong checksum")

    def _check_experts(self, source: ExpertSource | None, pieces: PieceReader) -> None:
        manifest = self._manifest
        codec = create_codec(manifest.codec_name, manifest.codec_parameters)
        with ExitStack() as stack:
            files = [self._open(file, stack) for file in manifest.files]
            check = ExpertCheck(manifest, codec, files, pieces)

            def work(key: ExpertKey, buffers: CheckBuffers) -> list[str]:
                original = None if source is None else source.layers[key.layer].experts[key.expert]
                return check.problems(key, original, buffers)

            readable = (key for key in manifest.expert_keys() if files[manifest.record(key).file] is not None)
            set_count = max(1, min(_MEMORY_BYTES // CheckBuffers.nbytes(manifest), self._workers + 1))
            buffer_sets = [CheckBuffers(manifest) for _ in range(set_count)]
            results = stack.enter_context(closing(run_in_order(readable, work, buffer_sets, self._workers)))
            for key, problems in results:
                for problem in problems:
                    self._note(manifest.files[manifest.record(key).file].name, problem)
                self._meter.advance(manifest.layers[key.layer].spec.weight_bytes, experts=1)

    def _open(self, file: ExpertFile, stack: ExitStack) -> RecordFile | None:
        """Opens a file of records, even of a wrong size, so that all experts in the file are checked."""
        path = self._store / file.name
        try:
            check_file(path, file.nbytes)
        except CorruptData as error:
            self._note(file.name, error.message)
        try:
            record_file = RecordFile(path, path.stat().st_size)
        except OSError:
            return None
        except CorruptData:
            return None
        return stack.enter_context(closing(record_file))

    def _note(self, file: str, problem: str) -> None:
        self._damages.append(Damage(file, problem))
