from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.safetensors_file import DATA, ENTRIES, content, write
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint import shard
from zipmoe.model.checkpoint.shard import read_shard_header
from zipmoe.store.pack.source import ByteRange


def test_the_place_of_every_tensor_is_read_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**ENTRIES, "__metadata__": {"format": "pt"}})
    found = read_shard_header(path)
    assert list(found) == ["a", "b.c", "empty"]
    assert [(entry.dtype, entry.shape) for entry in found.values()] == [("BF16", (2, 3)), ("F32", ()), ("U8", (4, 0))]
    start = path.stat().st_size - len(DATA)
    assert [entry.byte_range for entry in found.values()] == [
        ByteRange(path, start, 12), ByteRange(path, start + 12, 4), ByteRange(path, start + 16, 0)
    ]  # fmt: skip


def test_entries_need_not_be_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", dict(reversed(ENTRIES.items())))
    assert list(read_shard_header(path)) == ["a", "b.c", "empty"]


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    assert read_shard_header(write(tmp_path / "x.safetensors", {}, b"")) == {}


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**ENTRIES["a"], **changes}}


MALFORMED = {
    "an empty file": (b"", "has 0 bytes"),
    "less than a length": (b"\x01\x00", "has 2 bytes"),
    "a header longer than the file": (content(header_bytes=10_000), "calls for 10008 bytes of header"),
    "a header of 2^63 bytes": (content(header_bytes=2**63), "calls for"),
    "a header that is cut off": (content()[:60], "calls for"),
    "text": (content(b"hello"), "not valid JSON"),
    "bytes that are no text": (content(b'{"\xff":1}'), "not valid JSON"),
    "JSON without an end": (content(b'{"a":' * 40_000), "not valid JSON"),
    "a list": (content([]), "JSON list"),
    "a number": (content(3), "JSON int"),
    "a key twice": (content(b'{"a":1,"a":1}'), "twice"),
    "metadata that is no table": (content({"__metadata__": [1]}, b""), "__metadata__"),
    "an entry that is no object": (content({"a": 7}), "not an object"),
    "no dtype": (content({"a": {"shape": [], "data_offsets": [0, 16]}}), "no dtype"),
    "no shape": (content({"a": {"dtype": "U8", "data_offsets": [0, 16]}}), "no valid shape"),
    "no offsets": (content({"a": {"dtype": "U8", "shape": [16]}}), "no valid data_offsets"),
    "a negative size": (content(entry(shape=[-2, -3])), "no valid shape"),
    "a size that is no integer": (content(entry(shape=[2.0, 3])), "no valid shape"),
    "a size that is a truth value": (content(entry(shape=[True, 6])), "no valid shape"),
    "a size beyond 63 bits": (content(entry(shape=[2**63, 0])), "no valid shape"),
    "more dimensions than anybody uses": (content(entry(shape=[1] * 17)), "no valid shape"),
    "sizes that multiply beyond 64 bits": (content(entry(shape=[2**32, 2**32, 2**32])), "has 12 bytes"),
    "offsets in reverse": (content(entry(data_offsets=[12, 0])), "no valid data_offsets"),
    "three offsets": (content(entry(data_offsets=[0, 6, 12])), "no valid data_offsets"),
    "a negative offset": (content(entry(data_offsets=[-12, 0])), "no valid data_offsets"),
    "a shape of other bytes": (content(entry(shape=[2, 4])), "has 12 bytes"),
    "half a byte": (content({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"0"), "has 1 bytes"),
    "a hole": (content({"a": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}}), "leaves a hole"),
    "an overlap": (
        content({**ENTRIES, "z": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]}}),
        "overlaps the tensor before it",
    ),
    "trailing bytes": (content(data=DATA + b"!"), "header describes .* the file has"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(MALFORMED[name][0])
    with pytest.raises(CorruptData, match=MALFORMED[name][1]) as error:
        read_shard_header(path)
    assert str(path) in error.value.message


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", data=DATA[:-5])
    size = path.stat().st_size
    with pytest.raises(CorruptData, match=f"truncated: its header describes {size + 5} bytes, the file has {size}$"):
        read_shard_header(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CorruptData, match="git-lfs pointer") as error:
        read_shard_header(path)
    assert "git lfs pull" in error.value.diagnostics()


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", b"", header_bytes=shard.MAX_HEADER_BYTES + 1)
    os.truncate(path, shard.MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(CorruptData, match="the limit is 100000000"):
        read_shard_header(path)


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}, b"0")
    with pytest.raises(UnsupportedModel, match=r"'a' .*'F3'"):
        read_shard_header(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"shard .* does not exist"):
        read_shard_header(tmp_path / "x.safetensors")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a directory"):
        read_shard_header(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.safetensors")

    def refuse(*_: object) -> io.BufferedReader:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard, "open", refuse, raising=False)  # root may read everything, so chmod would not do
    with pytest.raises(InvalidRequest, match="permission denied"):
        read_shard_header(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def mutated_headers(draw: st.DrawFn) -> bytes:
    """A header in which one value, at any depth, was replaced, removed or duplicated under another name."""
    header: dict[str, Any] = json.loads(json.dumps(ENTRIES))
    name = draw(st.sampled_from(list(header)))
    action = draw(st.sampled_from(["entry", "field", "number", "remove", "copy"]))
    if action == "entry":
        header[name] = draw(JSON_VALUES)
    elif action == "field":
        header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "odd"]))] = draw(JSON_VALUES)
    elif action == "number":
        offsets = header[name]["data_offsets"]
        offsets[draw(st.integers(0, 1))] = draw(st.integers(-2, 20))
    elif action == "remove":
        del header[name]
    else:
        header["copy"] = header[name]
    return content(header)


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """A file with a few bytes changed, inserted or cut off; the length of its header is made right again or not."""
    mutated = bytearray(content())
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(mutated)))
        mutated[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    end = mutated.rfind(b"}}") + 2
    if end > 9 and draw(st.booleans()):
        mutated[:8] = (end - 8).to_bytes(8, "little")
    return bytes(mutated)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated=mutated_headers() | mutated_bytes())
def test_exactly_the_files_that_safetensors_accepts_are_accepted(mutated: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(mutated)
    try:
        reference = dict(safetensors.deserialize(mutated))
    except safetensors.SafetensorError:
        with pytest.raises(ZipMoeError):
            read_shard_header(path)
        return
    found = {
        name: (tensor.dtype, list(tensor.shape), mutated[tensor.offset : tensor.offset + tensor.nbytes])
        for name, tensor in read_shard_header(path).items()
    }
    assert found == {name: (value["dtype"], value["shape"], value["data"]) for name, value in reference.items()}
