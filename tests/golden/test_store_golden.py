"""Any version reads every older store: these were written once and are read for ever (see store_make.py)."""

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.golden.store_make import DENSE_BYTES, EXPERTS, GOLDEN, SOURCE, STORES, golden_source, golden_tensors
from zipmoe.codec.registry import create_codec
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.store.verify.verify import verify_against
from zipmoe.types import ExpertKey, Part

DIGESTS = {
    "store-v1-zstd": "d75ca47de3cb2bc2",
    "store-v1-raw": "8c20c7e926962e0c",
    "store-v1-cascade": "53ecddd151331ed5",
    "store-v1-huffman": "3533c6dfebbf3091",
    "store-v1-lz4hc": "9fd6f386c2316b74",
}


@pytest.mark.parametrize("name", STORES)
def test_a_golden_store_is_read_and_recovered_byte_for_byte(name: str) -> None:
    store = GOLDEN / name
    manifest = read_manifest(store)
    assert manifest.digest == DIGESTS[name]
    assert (manifest.version, manifest.codec_name) == (1, STORES[name])
    reader = StoreReader(store, manifest)
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    slot = aligned_memory(manifest.max_record_bytes)
    for expert in range(EXPERTS):
        key = ExpertKey(0, expert)
        reader.read(key, Part.ALL, slot)
        for tensor, golden in zip(manifest.record(key).tensors, golden_tensors(expert), strict=True):
            out = memoryview(bytearray(tensor.spec.nbytes))
            recover_tensor(codec, tensor, slot, out)
            assert tensor.spec == golden.spec
            assert out == golden.path.read_bytes()
    reader.close()
    assert (store / "config.json").read_bytes() == (SOURCE / "config.json").read_bytes()
    with safe_open(store / "dense-00001.safetensors", "np") as file:
        assert list(file.keys()) == ["model.norm.weight"]
    assert (store / "dense-00001.safetensors").read_bytes().endswith(DENSE_BYTES)


@pytest.mark.parametrize("name", STORES)
def test_a_golden_store_passes_verification(name: str) -> None:
    report = verify_against(GOLDEN / name, golden_source())
    assert report.damages == ()


def test_packing_without_a_codec_still_gives_the_golden_bytes(tmp_path: Path) -> None:
    # Other codecs' bytes may change with their library; the layout around them may not.
    pack_store(golden_source(), tmp_path / "store", PackOptions(codec=create_codec("raw")))
    for name in ("experts-00000.bin", "dense-00001.safetensors", "config.json"):
        assert (tmp_path / "store" / name).read_bytes() == (GOLDEN / "store-v1-raw" / name).read_bytes()
