"""Writes the expert files of a store: experts are packed in parallel and written in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from zipmoe.store.format.entries import ExpertEntry
from zipmoe.store.format.layout import lay_out
from zipmoe.store.pack.expert_packer import ExpertPacker, PackedExpert, PackingBuffers
from zipmoe.store.pack.partial_file import PartialFile
from zipmoe.store.pack.pipeline import run_in_order
from zipmoe.store.pack.progress import Meter
from zipmoe.store.pack.resume import PackedSoFar, expert_file_name
from zipmoe.store.pack.source import LayerSource, TensorSource

_Job = tuple[int, tuple[TensorSource, ...]]


class ExpertFilesWriter:
    """Writes one file for each layer, with the experts in ascending order.

    So the bytes do not depend on the number of workers. Packing runs on worker threads, fsync on a thread of its own,
    and all other work in the thread that calls `write`.
    """

    def __init__(
        self, layers: Sequence[LayerSource], directory: Path, state: PackedSoFar, packer: ExpertPacker, meter: Meter
    ) -> None:
        self._layers = layers
        self._directory = directory
        self._state = state
        self._packer = packer
        self._meter = meter
        self._open: dict[int, PartialFile] = {}
        self._syncing: deque[tuple[int, Future[None]]] = deque()
        self._sync_pool = ThreadPoolExecutor(1, thread_name_prefix="store-sync")

    def write(self, workers: int, buffer_sets: Sequence[PackingBuffers]) -> None:
        """Packs all experts that earlier runs have not packed.

        Args:
            workers: number of threads that read, split and compress.
            buffer_sets: buffers, one set for each expert in flight. Their number bounds the memory.

        Raises:
            ResourceExhausted, CorruptData, InvalidRequest, NotFound: a file cannot be written or read. Experts that
                have been written and journaled stay for the next run.
        """
        try:
            for layer, source in enumerate(self._layers):
                self._state.check_layer(self._directory, layer)
                if done := len(self._state.layers[layer].entries):
                    self._meter.advance(done * source.spec.weight_bytes, experts=done, resumed=True)
                self._sync_if_complete(layer)
            results = run_in_order(
                self._jobs(), lambda job, buffers: self._packer.pack(job[1], buffers), buffer_sets, workers
            )
            with closing(results):
                for (layer, _), packed in results:
                    self._write_expert(layer, packed)
                    self._sync_if_complete(layer)
            while self._syncing:
                self._note_synced()
        finally:
            self._sync_pool.shutdown()
            for file in self._open.values():
                file.close()

    def _jobs(self) -> Iterator[_Job]:
        done = [len(layer.entries) for layer in self._state.layers]
        for layer, source in enumerate(self._layers):
            for tensors in source.experts[done[layer] :]:
                yield layer, tensors

    def _write_expert(self, layer: int, packed: PackedExpert) -> None:
        spec = self._layers[layer].spec
        file = self._file(layer)
        record = lay_out(spec, packed.entries, self._packer.chunk_count, layer, file.nbytes)
        file.append(list(packed.buffers(record)))
        self._state.add_expert(layer, ExpertEntry(layer, record.offset, packed.entries))
        self._meter.advance(spec.weight_bytes, experts=1, written_bytes=record.nbytes)

    def _file(self, layer: int) -> PartialFile:
        if layer not in self._open:
            path = self._directory / expert_file_name(layer)
            self._open[layer] = PartialFile(path, self._state.layer_bytes(layer))
        return self._open[layer]

    def _sync_if_complete(self, layer: int) -> None:
        """Hands a complete file to the fsync thread, so that packing does not wait for the disk."""
        state = self._state.layers[layer]
        if not state.finished and len(state.entries) == len(self._layers[layer].experts):
            file = self._file(layer)
            del self._open[layer]
            self._syncing.append((layer, self._sync_pool.submit(file.finish)))
        while self._syncing and self._syncing[0][1].done():
            self._note_synced()

    def _note_synced(self) -> None:
        layer, synced = self._syncing.popleft()
        synced.result()
        self._state.finish_layer(layer)
