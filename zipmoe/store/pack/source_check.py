"""Refuses a checkpoint that cannot be packed, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

from zipmoe.errors import InvalidRequest, NotFound, UnsupportedModel
from zipmoe.regular_file import check_regular_file
from zipmoe.store.format.fields import TEMPLATE_FOLDER, is_file_name, is_template_name, is_text
from zipmoe.store.format.manifest import JOURNAL_NAME, MANIFEST_NAME
from zipmoe.store.pack.partial_file import PARTIAL_SUFFIX
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ExpertSource, LayerSource, Piece, copied_files


def check_source(source: ExpertSource, reader: PieceReader) -> None:
    """Checks shapes, sizes and names of a source, and whether the shards hold all bytes of its experts.

    Raises:
        UnsupportedModel: there are no routed experts, experts of one layer differ in their matrices, or the bytes of a
            matrix are not bf16 of its shape.
        NotFound: a shard or a model file is missing.
        CorruptData: a shard is truncated.
        InvalidRequest: a store cannot hold the name of a model file, a model file or shard is no regular file, or a
            shard may not be read.

    Cost: opens the shards with experts and reads nothing. Dense tensors are not checked: the packer checks them when it
        plans their shards, and `verify` reads all of them.
    """
    if not source.layers:
        raise UnsupportedModel(f"the {source.family} checkpoint has no routed experts to pack")
    for layer in source.layers:
        _check_layer(layer)
    names = {source.family}.union(layer.module for layer in source.layers)
    names.update(tensor.name for layer in source.layers for tensor in layer.spec.tensors)
    if bad := [name for name in names if not is_text(name)]:
        raise UnsupportedModel(f"a store cannot hold the name {bad[0]!r}: it is empty, too long or not printable ASCII")
    reader.check(_pieces(source))
    _check_model_files(source)


def _check_layer(layer: LayerSource) -> None:
    if not layer.experts:
        raise UnsupportedModel(f"{layer.module} has no experts")
    spec = layer.spec
    for expert, tensors in enumerate(layer.experts):
        if tuple(tensor.spec for tensor in tensors) != spec.tensors:
            raise UnsupportedModel(f"expert {expert} of {layer.module} has other matrices than expert 0")
        for tensor in tensors:
            nbytes = sum(piece.nbytes for piece in tensor.pieces)
            if tensor.spec.weight_count < 1 or nbytes != tensor.spec.nbytes:
                raise UnsupportedModel(
                    f"{tensor.spec.name} of expert {expert} of {layer.module} has {nbytes} bytes, "
                    f"but bf16 {tensor.spec.rows}x{tensor.spec.cols} is {tensor.spec.nbytes}: "
                    "routed experts have to be bf16"
                )


def _check_model_files(source: ExpertSource) -> None:
    seen: set[str] = set()
    for name, path in copied_files(source):
        if not (is_template_name(name) or _is_free(name)):
            raise InvalidRequest(
                f"a store cannot hold a model file of the name {name!r}", next_step=f"rename or remove {path}"
            )
        if name in seen:
            raise InvalidRequest(f"two model files have the name {name}")
        seen.add(name)
        if not path.exists():
            raise NotFound(f"model file {path} is missing")
        check_regular_file(path)


def _is_free(name: str) -> bool:
    """Checks whether a model file may have a name: a plain file name that is none of the store's own."""
    own = name in (MANIFEST_NAME, JOURNAL_NAME, TEMPLATE_FOLDER) or name.endswith(PARTIAL_SUFFIX)
    return not own and not name.startswith(("experts-", "dense-")) and is_file_name(name)


def _pieces(source: ExpertSource) -> Iterator[Piece]:
    for layer in source.layers:
        for tensors in layer.experts:
            for tensor in tensors:
                yield from tensor.pieces
