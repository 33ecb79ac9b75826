import json

from tests.store.conftest import Packed
from zipmoe.store.format.inspection import describe_store
from zipmoe.store.format.manifest import read_manifest


def test_a_description_is_json_and_its_sizes_add_up(packed: Packed) -> None:
    description = describe_store(packed.store)
    assert json.loads(json.dumps(description)) == description
    assert description["family"] == "qwen2_moe"
    assert description["digest"] == read_manifest(packed.store).digest
    assert description["expert_count"] == 6
    assert description["e_chunk_count"] == 6 * (4 + 3)
    assert description["sm_chunk_count"] == 12
    assert description["expert_bf16_bytes"] == 6 * 2880
    sizes = {name: description[f"{name}_bytes"] for name in ("expert_stored", "e", "sm", "padding")}
    assert sizes["expert_stored"] == sizes["e"] + sizes["sm"] + sizes["padding"]
    assert description["total_bytes"] == sum(
        path.stat().st_size for path in packed.store.iterdir() if path.name != "manifest.json"
    )
    tensors = description["tensors"]
    assert isinstance(tensors, list)
    assert [(tensor["name"], tensor["count"]) for tensor in tensors] == [("gate_up_proj", 6), ("down_proj", 6)]
    assert sum(tensor["e_bytes"] for tensor in tensors) == sizes["e"]
    assert all(0.5 < tensor["ratio"] < 1 for tensor in tensors)
