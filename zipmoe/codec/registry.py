"""Creates codecs by the names that manifests use, and chooses the default codec."""

from __future__ import annotations

from zipmoe.codec.base import Codec, Parameters
from zipmoe.codec.cascade import CascadeCodec
from zipmoe.codec.huffman import HuffmanCodec
from zipmoe.codec.lz4hc import Lz4hcCodec
from zipmoe.codec.raw import RawCodec
from zipmoe.codec.zstd import ZstdCodec
from zipmoe.errors import UnsupportedStore
from zipmoe.kernels.backends import backend

_CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (CascadeCodec, HuffmanCodec, Lz4hcCodec, RawCodec, ZstdCodec)
}
_DEFAULT, _DEFAULT_WITHOUT_SIMD = CascadeCodec.name, HuffmanCodec.name


def codec_names() -> list[str]:
    """Lists the names of this version's codecs in alphabetical order."""
    return sorted(_CODECS)


def create_codec(name: str, parameters: Parameters | None = None) -> Codec:
    """Creates a codec from the name and the parameters in a manifest.

    Raises:
        UnsupportedStore: This version has no such codec, or the codec does not know a parameter.
    """
    codec = _CODECS.get(name)
    if codec is None:
        raise UnsupportedStore(f"codec {name!r} is not one of {', '.join(codec_names())}")
    return codec.create(parameters or {})


def default_codec() -> Codec:
    """Creates the default codec of `zipmoe pack`: the codec that recovers fastest on this machine."""
    return create_codec(_DEFAULT_WITHOUT_SIMD if backend() == "scalar" else _DEFAULT)
