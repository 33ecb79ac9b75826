"""Lossless compression of exponent planes: the contract, its implementations and their registry."""

from zipmoe.codec.base import Codec
from zipmoe.codec.registry import codec_names, create_codec, default_codec

__all__ = ["Codec", "codec_names", "create_codec", "default_codec"]
