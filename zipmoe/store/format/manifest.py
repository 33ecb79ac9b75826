"""The manifest of a store: settings, files, layers, and the place of every expert.

A directory without a manifest is not a store. `parse_manifest` checks every number before a caller uses it for reading
or allocation.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedStore
from zipmoe.regular_file import open_regular_file
from zipmoe.store.format import layout
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.entries import MAX_EXPERTS, ChecksummedFile, ExpertEntry, ExpertFile, ExpertTable, LayerEntry
from zipmoe.store.format.fields import Fields, canonical_json, checked_list, is_text, parse_json, xxh3_text
from zipmoe.store.format.layout import ExpertRecord
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.system_error import CHECK_ACCESS, reason_of
from zipmoe.types import ExpertKey

MANIFEST_NAME = "manifest.json"
JOURNAL_NAME = "packing.journal"
FORMAT = "zipmoe-store"
VERSION = 1
CHAT_TEMPLATES = "chat_templates"
MEASURED = "measured"
LEFT_OUT = "left_out"
MTP_LAYERS = "mtp_layers"
"""Key of the manifest that older readers ignore."""

MTP_PREFIX = "mtp."
"""Names of the tensors and modules of layers for multi-token prediction begin so."""

MAX_MANIFEST_BYTES = 1 << 27
"""128 MiB. The largest models need less than a tenth of it."""

_MAX_FILES = 1 << 16
_GEOMETRY = {
    "alignment_bytes": layout.ALIGNMENT_BYTES,
    "chunk_alignment_bytes": layout.CHUNK_ALIGNMENT_BYTES,
    "tail_padding_bytes": layout.TAIL_PADDING_BYTES,
}


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked manifest: every record lies inside its file, and no two records overlap.

    `source_xxh3` identifies the packed checkpoint (FORMAT.md, "Source fingerprint"). `digest` identifies the store, as
    16 hexadecimal digits. `mtp_layers` counts the layers for multi-token prediction; their MoE layers are the last ones
    of `layers`. `max_record_bytes`, `max_e_bytes` and `max_sm_bytes` are the largest record, the largest E
    part and the largest SM part of any expert. They are multiples of 4096, and are the slot sizes for these data.
    """

    version: int
    created_by: str
    family: str
    codec_name: str
    codec_parameters: Mapping[str, int | str]
    e_chunks_per_tensor: int
    source_xxh3: int
    layers: tuple[LayerEntry, ...]
    files: tuple[ExpertFile, ...]
    dense: tuple[ChecksummedFile, ...]
    model_files: tuple[ChecksummedFile, ...]
    chat_templates: tuple[ChecksummedFile, ...]
    measured: MeasuredSizes | None
    left_out: tuple[str, ...]
    mtp_layers: int
    digest: str
    experts: tuple[ExpertTable, ...]
    max_record_bytes: int
    max_e_bytes: int
    max_sm_bytes: int

    def record(self, key: ExpertKey) -> ExpertRecord:
        """Derives the record of an expert: the place of every chunk.

        Raises:
            NotFound: the store has no such layer or expert.

        Cost: 20 microseconds for 2 tensors of 4 E-chunks.
        """
        if not 0 <= key.layer < len(self.layers):
            raise NotFound(f"{key} does not exist: the store has {len(self.layers)} MoE layers")
        layer = self.layers[key.layer]
        if not 0 <= key.expert < layer.expert_count:
            raise NotFound(f"{key} does not exist: the layer has {layer.expert_count} experts")
        return _record(layer, self.experts[key.layer][key.expert], self.e_chunks_per_tensor)

    def expert_keys(self) -> Iterator[ExpertKey]:
        """Yields the keys of all experts, layer by layer."""
        for layer, entry in enumerate(self.layers):
            for expert in range(entry.expert_count):
                yield ExpertKey(layer, expert)

    @cached_property
    def expert_count(self) -> int:
        """Number of routed experts over all layers."""
        return sum(layer.expert_count for layer in self.layers)

    @cached_property
    def max_tensor_bytes(self) -> int:
        """Bytes of the largest recovered expert, rounded up to a multiple of 4096: the size of a tensor slot."""
        return max(layout.align(layer.spec.tensor_bytes) for layer in self.layers)

    @property
    def all_files(self) -> tuple[ExpertFile | ChecksummedFile, ...]:
        """Every file of the store except the manifest."""
        return (*self.files, *self.dense, *self.copied_files)

    @property
    def copied_files(self) -> tuple[ChecksummedFile, ...]:
        """Every file that is a verbatim copy of a file of the checkpoint."""
        return (*self.model_files, *self.chat_templates)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all dense files."""
        return sum(file.nbytes for file in self.dense)


def seal_manifest(document: dict[str, object]) -> bytes:
    """Adds the digest to a manifest document and writes it as the bytes of `manifest.json`."""
    digest = xxh3_text(xxh3(canonical_json(document)))
    return canonical_json({**document, "digest": digest}) + b"\n"


def parse_manifest(text: bytes) -> Manifest:
    """Parses and checks a manifest from untrusted bytes.

    Raises:
        UnsupportedStore: the manifest has a format, version or geometry that this reader does not know.
        CorruptData: the bytes are not JSON, the digest is wrong, or a number or name is one that no packer writes.
    """
    value = parse_json(text, MANIFEST_NAME)
    fields = Fields(value, MANIFEST_NAME)
    _check_version(fields)
    assert isinstance(value, dict)
    digest = fields.get("digest")
    actual = xxh3_text(xxh3(canonical_json({key: item for key, item in value.items() if key != "digest"})))
    if digest != actual:
        raise CorruptData(f"{MANIFEST_NAME} has digest {digest!r} but its content has {actual!r}")
    for name, nbytes in _GEOMETRY.items():
        if fields.get(name) != nbytes:
            raise UnsupportedStore(f"store has {name} {fields.get(name)!r}; this version reads {nbytes}")
    manifest = _parse_body(fields, actual)
    _check_names(manifest)
    return manifest


def read_manifest(store: Path) -> Manifest:
    """Reads and checks the manifest of a store, and checks the sizes of all files of the store.

    Raises:
        NotFound: the directory or its manifest does not exist (an unfinished pack has no manifest).
        InvalidRequest: no permission to read the manifest, or it is not a regular file.
        UnsupportedStore: see `parse_manifest`.
        CorruptData: see `parse_manifest`; or a file is missing or has another size than the manifest says.
    """
    manifest = parse_manifest(read_manifest_bytes(store))
    for file in manifest.all_files:
        check_file(store / file.name, file.nbytes)
    return manifest


def read_manifest_bytes(store: Path) -> bytes:
    """Reads the bytes of a store's manifest; raises as `read_manifest` does."""
    path = store / MANIFEST_NAME
    try:
        with open(open_regular_file(path), "rb") as file:
            if (nbytes := os.fstat(file.fileno()).st_size) > MAX_MANIFEST_BYTES:
                raise CorruptData(f"{path} has {nbytes} bytes, more than any manifest")
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not store.is_dir():
            raise NotFound(f"store {store} is not a directory") from error
        if (store / JOURNAL_NAME).exists():
            step = "run the same `zipmoe pack` again: it resumes where it stopped"
            raise NotFound(f"{store} holds an unfinished pack, not a store", next_step=step) from error
        if (store / "config.json").exists():
            step = f"run `zipmoe pack {store} DST`, then name DST"
            raise NotFound(
                f"{store} is a checkpoint, not a store: it has no {MANIFEST_NAME}", next_step=step
            ) from error
        raise NotFound(f"{store} has no {MANIFEST_NAME}, so it is not a store") from error
    except PermissionError as error:
        raise InvalidRequest(f"no permission to read {path}", next_step=CHECK_ACCESS) from error
    except OSError as error:
        raise CorruptData(f"cannot read {path}: {reason_of(error)}") from error


def check_file(path: Path, nbytes: int) -> None:
    """Checks that a file of a store exists, is a regular file and has `nbytes` bytes; CorruptData otherwise."""
    try:
        status = path.stat()
    except OSError as error:
        raise CorruptData(f"store file {path} cannot be read: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CorruptData(f"store file {path} is not a regular file")
    if status.st_size != nbytes:
        raise CorruptData(f"store file {path} has {status.st_size} bytes, the manifest says {nbytes}")


def _check_version(fields: Fields) -> None:
    if fields.get("format") != FORMAT:
        raise UnsupportedStore(f"{MANIFEST_NAME} is not that of a {FORMAT}")
    version = fields.integer("version", 1, 1 << 31)
    if version != VERSION:
        raise UnsupportedStore(f"store has format version {version}; this version of zipmoe reads {VERSION}")


def _parse_body(fields: Fields, digest: str) -> Manifest:
    codec = Fields(fields.get("codec"), f"'codec' of {MANIFEST_NAME}")
    chunk_count = fields.integer("e_chunks_per_tensor", 1, layout.MAX_E_CHUNKS)
    layer_fields = list(fields.objects("layers", 1, _MAX_FILES))
    expert_rows = fields.items("experts", len(layer_fields), len(layer_fields))
    layers: list[LayerEntry] = []
    tables: list[ExpertTable] = []
    files = tuple(ExpertFile.from_json(file) for file in fields.objects("files", 1, _MAX_FILES))
    records = _RecordSpans(files)
    for index, (one_layer, row) in enumerate(zip(layer_fields, expert_rows, strict=True)):
        where = f"'experts'[{index}] of {MANIFEST_NAME}"
        values = checked_list(row, where, 1, MAX_EXPERTS)
        layer = LayerEntry.from_json(one_layer, len(values))
        entries = [
            ExpertEntry.from_json(value, f"[{expert}] of {where}", layer.spec, chunk_count)
            for expert, value in enumerate(values)
        ]
        for expert, entry in enumerate(entries):
            records.add(ExpertKey(index, expert), _record(layer, entry, chunk_count))
        layers.append(layer)
        tables.append(ExpertTable(entries, layer.spec, chunk_count))
    return Manifest(
        version=VERSION,
        created_by=fields.text("created_by"),
        family=fields.text("family"),
        codec_name=codec.text("name", 64),
        codec_parameters=_parse_parameters(codec),
        e_chunks_per_tensor=chunk_count,
        source_xxh3=fields.xxh3("source_xxh3"),
        layers=tuple(layers),
        files=files,
        dense=tuple(ChecksummedFile.from_json(file) for file in fields.objects("dense", 0, _MAX_FILES)),
        model_files=tuple(ChecksummedFile.from_json(file) for file in fields.objects("model_files", 0, _MAX_FILES)),
        chat_templates=_parse_chat_templates(fields),
        measured=_parse_measured(fields),
        left_out=_parse_left_out(fields),
        mtp_layers=fields.integer(MTP_LAYERS, 1, _MAX_FILES) if fields.has(MTP_LAYERS) else 0,
        digest=digest,
        experts=tuple(tables),
        max_record_bytes=records.check(),
        max_e_bytes=records.max_e_bytes,
        max_sm_bytes=records.max_sm_bytes,
    )


def _record(layer: LayerEntry, entry: ExpertEntry, chunk_count: int) -> ExpertRecord:
    return layout.lay_out(layer.spec, entry.tensors, chunk_count, entry.file, entry.offset)


def _parse_parameters(codec: Fields) -> Mapping[str, int | str]:
    values = codec.get("parameters")
    if not isinstance(values, dict):
        raise CorruptData(f"'parameters' of the codec in {MANIFEST_NAME} is not an object")
    if any(type(value) not in (int, str) for value in values.values()):
        raise CorruptData(f"'parameters' of the codec in {MANIFEST_NAME} holds more than integers and strings")
    return dict(values)


def _parse_measured(fields: Fields) -> MeasuredSizes | None:
    if not fields.has(MEASURED):  # stores whose config.json tells the same sizes, and those of older packers
        return None
    return MeasuredSizes.from_json(Fields(fields.get(MEASURED), f"{MEASURED!r} of {MANIFEST_NAME}"))


def _parse_left_out(fields: Fields) -> tuple[str, ...]:
    if not fields.has(LEFT_OUT):  # models of text alone
        return ()
    names = fields.items(LEFT_OUT, 1, _MAX_FILES)
    if not all(is_text(name) for name in names):
        raise CorruptData(f"{LEFT_OUT!r} of {MANIFEST_NAME} holds more than names of modules")
    return tuple(map(str, names))


def _parse_chat_templates(fields: Fields) -> tuple[ChecksummedFile, ...]:
    if not fields.has(CHAT_TEMPLATES):  # stores without chat templates, and those of older packers, lack the key
        return ()
    files = fields.objects(CHAT_TEMPLATES, 0, _MAX_FILES)
    return tuple(ChecksummedFile.from_json(file, chat_template=True) for file in files)


def _check_names(manifest: Manifest) -> None:
    seen = {MANIFEST_NAME, JOURNAL_NAME}
    for file in manifest.all_files:
        if file.name in seen:
            raise CorruptData(f"{MANIFEST_NAME} names the file {file.name!r} twice")
        seen.add(file.name)


class _RecordSpans:
    """Checks that the records of each file follow each other without overlap or gap, up to the end of the file."""

    def __init__(self, files: tuple[ExpertFile, ...]) -> None:
        self.max_e_bytes = self.max_sm_bytes = 0
        self._files = files
        self._spans: list[list[tuple[int, int, ExpertKey]]] = [[] for _ in files]

    def add(self, key: ExpertKey, record: ExpertRecord) -> None:
        """Adds the place of a record, as its entry states."""
        if record.file >= len(self._files):
            raise CorruptData(f"{key} is in file {record.file}, but there are {len(self._files)} expert files")
        self.max_e_bytes = max(self.max_e_bytes, record.e_bytes)
        self.max_sm_bytes = max(self.max_sm_bytes, record.nbytes - record.e_bytes)
        self._spans[record.file].append((record.offset, record.nbytes, key))

    def check(self) -> int:
        """Checks the places of all records, and returns the size of the largest record."""
        for file, spans in zip(self._files, self._spans, strict=True):
            position = 0
            for offset, nbytes, key in sorted(spans):
                if offset != position:
                    raise CorruptData(
                        f"{key} begins at {offset} of {file.name}, but the record before ends at {position}"
                    )
                position += nbytes
            if position != file.nbytes:
                raise CorruptData(f"the records of {file.name} end at {position}, but it has {file.nbytes} bytes")
        return max(nbytes for spans in self._spans for _, nbytes, _ in spans)
