"""State of an interrupted pack: read from the journal, then checked against the files on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import CorruptData, ZipMoeError
from zipmoe.store.format.entries import ChecksummedFile, ExpertEntry
from zipmoe.store.format.fields import Fields, is_template_name
from zipmoe.store.format.layout import ExpertRecord, ExpertSpec, lay_out
from zipmoe.store.format.manifest import check_file
from zipmoe.store.pack.journal import Journal
from zipmoe.store.pack.partial_file import PARTIAL_SUFFIX
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import damaged_chunks
from zipmoe.store.read.record_file import RecordFile
from zipmoe.types import Part


def expert_file_name(layer: int) -> str:
    """Returns the name of the file with the experts of a layer."""
    return f"experts-{layer:05}.bin"


@dataclass
class PackedLayer:
    """The experts of a layer that are on disk, in order.

    `finished` is set when the file is complete, durable and renamed.
    """

    entries: list[ExpertEntry]
    finished: bool = False


class PackedSoFar:
    """State of a pack, built from the events of the journal. One thread at a time."""

    def __init__(self, journal: Journal, specs: Sequence[ExpertSpec], chunk_count: int) -> None:
        """Replays the journal.

        Raises:
            CorruptData: the journal holds an event that no packer writes.
        """
        self._journal = journal
        self._chunk_count = chunk_count
        self._specs = specs
        self.layers = [PackedLayer([]) for _ in specs]
        self.files: dict[str, ChecksummedFile] = {}
        for event in journal.events:
            self._apply(event)

    def add_expert(self, layer: int, entry: ExpertEntry) -> None:
        """Records in the journal that the next expert of a layer has been written."""
        self._record({"event": "expert", "layer": layer, **entry.to_json()})

    def finish_layer(self, layer: int) -> None:
        """Records in the journal that the file of a layer is durable."""
        self._record({"event": "layer", "layer": layer}, durable=True)

    def add_file(self, file: ChecksummedFile) -> None:
        """Records in the journal that a dense shard or a model file is durable."""
        self._record({"event": "file", **file.to_json()}, durable=True)

    def record(self, layer: int, entry: ExpertEntry) -> ExpertRecord:
        """Derives the record of a packed expert."""
        return lay_out(self._specs[layer], entry.tensors, self._chunk_count, entry.file, entry.offset)

    def layer_bytes(self, layer: int) -> int:
        """Returns the offset of the next record in the file of a layer."""
        entries = self.layers[layer].entries
        if not entries:
            return 0
        last = self.record(layer, entries[-1])
        return last.offset + last.nbytes

    def check_layer(self, directory: Path, layer: int) -> None:
        """Compares the file of a layer with the journal, and keeps only the intact experts.

        A finished file was durable before the journal recorded it, so checking the first and the last record is enough.
        In an unfinished file every record is read and its checksums are compared. After a power failure the journal may
        list records that never reached the disk.
        """
        state = self.layers[layer]
        path = directory / expert_file_name(layer)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        ends = [*state.entries[:1], *state.entries[-1:]]
        if state.finished and path.exists() and self._intact_count(path, layer, ends) == len(ends):
            return
        if path.exists():
            # The file is damaged, or the earlier run ended between renaming the file and recording that.
            os.replace(path, partial)
        intact = self._intact_count(partial, layer, state.entries) if partial.exists() else 0
        if state.finished or intact < len(state.entries):
            self._keep(layer, intact)

    def check_file(self, directory: Path, name: str) -> ChecksummedFile | None:
        """Returns the entry of a dense shard or model file of an earlier run, or None if it has to be written."""
        file = self.files.get(name)
        if file is not None:
            try:
                check_file(directory / name, file.nbytes)
            except ZipMoeError:
                return None
        return file

    def _intact_count(self, path: Path, layer: int, entries: Sequence[ExpertEntry]) -> int:
        """Counts the intact records, from the first entry to the first record with a wrong checksum."""
        if not entries:
            return 0
        records = [self.record(layer, entry) for entry in entries]
        memory = aligned_memory(max(record.nbytes for record in records))
        file_bytes = path.stat().st_size
        # O_DIRECT reads whole pages. An incomplete last page cannot belong to an intact record.
        file = RecordFile(path, file_bytes)
        try:
            for index, record in enumerate(records):
                if record.offset + record.nbytes > file_bytes:
                    return index
                file.read(record.offset, memory[: record.nbytes])
                if any(damaged_chunks(record, Part.ALL, memory)):
                    return index
        except CorruptData:
            return index
        finally:
            file.close()
        return len(records)

    def _keep(self, layer: int, count: int) -> None:
        self._record({"event": "keep", "layer": layer, "count": count})

    def _record(self, event: dict[str, object], *, durable: bool = False) -> None:
        self._journal.append(event, durable=durable)
        self._apply(event)

    def _apply(self, event: dict[str, object]) -> None:
        fields = Fields(event, str(self._journal.path))
        kind = fields.text("event")
        if kind == "file":
            file = ChecksummedFile.from_json(fields, chat_template=is_template_name(fields.text("name")))
            self.files[file.name] = file
            return
        layer = fields.integer("layer", 0, len(self.layers) - 1)
        state = self.layers[layer]
        if kind == "expert":
            state.entries.append(ExpertEntry.from_json(event, kind, self._specs[layer], self._chunk_count))
        elif kind == "keep":
            del state.entries[fields.integer("count", 0, len(state.entries)) :]
            state.finished = False
        elif kind == "layer":
            state.finished = True
