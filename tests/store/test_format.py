"""A reader written from FORMAT.md alone, with nothing of ours, recovers the golden stores."""

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard

from tests.golden.store_make import EXPERTS, GOLDEN, STORES, golden_tensors


def up(nbytes: int, alignment: int) -> int:
    return (nbytes + alignment - 1) // alignment * alignment


def row_counts(rows: int, k: int) -> list[int]:
    blocks = up(rows, 8) // 8
    count = min(k, blocks)
    counts = [8 * (blocks // count + 1)] * (blocks % count) + [8 * (blocks // count)] * (count - blocks % count)
    return [*counts[:-1], rows - sum(counts[:-1])]


def recover(store: Path, manifest: dict[str, Any], layer: int, expert: int) -> list[bytes]:
    entry = manifest["experts"][layer][expert]
    tensors = manifest["layers"][layer]["tensors"]
    content = (store / manifest["files"][entry["file"]]["name"]).read_bytes()[entry["offset"] :]
    position = 0
    planes = []
    for tensor, sizes, sums in zip(tensors, entry["e"], entry["e_xxh3"], strict=True):
        plane = b""
        for rows, size, checksum in zip(
            row_counts(tensor["rows"], manifest["e_chunks_per_tensor"]), sizes, sums, strict=True
        ):
            position = up(position, 64)
            chunk = content[position : position + size]
            assert xxhash.xxh3_64_hexdigest(chunk) == checksum
            if manifest["codec"]["name"] == "zstd":
                chunk = zstandard.ZstdDecompressor().decompress(chunk)
            assert len(chunk) == rows * tensor["cols"]
            plane += chunk
            position += size
        end = up(position + 128, 4096)
        assert content[position:end] == bytes(end - position)
        position = end
        planes.append(plane)
    recovered = []
    for tensor, e_plane, sm_xxh3, tensor_xxh3 in zip(
        tensors, planes, entry["sm_xxh3"], entry["tensor_xxh3"], strict=True
    ):
        sm_plane = content[position : position + tensor["rows"] * tensor["cols"]]
        assert xxhash.xxh3_64_hexdigest(sm_plane) == sm_xxh3
        position = up(position + len(sm_plane), 4096)
        values = [(sm & 0x80) << 8 | e << 7 | sm & 0x7F for sm, e in zip(sm_plane, e_plane, strict=True)]
        bf16 = b"".join(value.to_bytes(2, "little") for value in values)
        assert xxhash.xxh3_64_hexdigest(bf16) == tensor_xxh3
        recovered.append(bf16)
    return recovered


@pytest.mark.parametrize("name", STORES)
def test_the_format_document_is_enough_to_read_a_store(name: str) -> None:
    manifest = json.loads((GOLDEN / name / "manifest.json").read_bytes())
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert xxhash.xxh3_64_hexdigest(canonical) == manifest["digest"]
    for entry in manifest["dense"] + manifest["model_files"]:
        content = (GOLDEN / name / entry["name"]).read_bytes()
        assert (len(content), xxhash.xxh3_64_hexdigest(content)) == (entry["bytes"], entry["xxh3"])
    for expert in range(EXPERTS):
        expected = [tensor.path.read_bytes() for tensor in golden_tensors(expert)]
        assert recover(GOLDEN / name, manifest, 0, expert) == expected
