"""Selects the codecs to measure, by name and with the best block size for the data."""

from __future__ import annotations

from collections.abc import Mapping

from zipmoe.bench.matrix import MatrixSample
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.errors import InvalidRequest, UnsupportedStore

BLOCK_ROWS = "block_rows"
_BLOCK_ROWS_TRIED = (1, 2, 4, 8, 16, 32, 64)


def parse_codec(text: str) -> Codec:
    """Creates a codec from `NAME` or `NAME:PARAMETER=VALUE,...`; decimal values become integers.

    Raises:
        InvalidRequest: the codec or a parameter is unknown, or the text is not of this form.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, int | str] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise InvalidRequest(f"codec {text!r} is not of the form NAME:PARAMETER=VALUE,PARAMETER=VALUE")
        parameters[key] = int(value) if value.lstrip("-").isdecimal() else value
    try:
        return create_codec(name, parameters)
    except UnsupportedStore as error:
        raise InvalidRequest(error.message) from error


def choose_codecs(texts: list[str]) -> dict[str, Codec]:
    """Creates the named codecs, or all codecs with default parameters, by the name of the row."""
    return {text: parse_codec(text) for text in texts or codec_names()}


def with_best_blocks(codecs: Mapping[str, Codec], sample: MatrixSample) -> dict[str, Codec]:
    """Adds variants of the block codecs, with the block size that compresses the sample best.

    Only codecs with the parameter `block_rows` that were named without parameters get a variant. None is added if the
    default is the best. The sizes are compared on the exponent plane of the first matrix.
    """
    chosen = dict(codecs)
    matrix = sample.matrices[0]
    _, e_plane = matrix.planes
    for name, codec in codecs.items():
        if BLOCK_ROWS not in codec.parameters or ":" in name:
            continue
        sizes = {
            rows: len(candidate.compress(e_plane, matrix.cols))
            for rows in _BLOCK_ROWS_TRIED
            if (candidate := _created(name, rows)) is not None
        }
        default = codec.parameters[BLOCK_ROWS]
        best = min(sizes, key=lambda rows: (sizes[rows], rows != default))
        if best != default:
            text = f"{name}:{BLOCK_ROWS}={best}"
            chosen[text] = parse_codec(text)
    return chosen


def _created(name: str, rows: int) -> Codec | None:
    try:
        return create_codec(name, {BLOCK_ROWS: rows})
    except UnsupportedStore:
        return None
