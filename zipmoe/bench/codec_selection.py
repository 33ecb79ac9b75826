"""Which codecs to measure: as the command line names them, and with the block size that suits the data best."""

from __future__ import annotations

from collections.abc import Mapping

from zipmoe.bench.matrix import MatrixSample
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.errors import InvalidRequest, UnsupportedStore

BLOCK_ROWS = "block_rows"
_BLOCK_ROWS_TRIED = (1, 2, 4, 8, 16, 32, 64)


def parse_codec(text: str) -> Codec:
    """Makes a codec from `NAME` or `NAME:PARAMETER=VALUE,...`; numbers are taken as such.

    Raises:
        InvalidRequest: no such codec or parameter, or not of this form.
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
    """The codecs named, or all of them with their default parameters, by the name of their rows."""
    return {text: parse_codec(text) for text in texts or codec_names()}


def with_best_blocks(codecs: Mapping[str, Codec], sample: MatrixSample) -> dict[str, Codec]:
    """Adds each codec whose blocks are so many rows once more, with the block size that its ratio is best with.

    Only codecs that were named without parameters; none is added where the default is the best.
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
