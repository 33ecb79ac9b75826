"""The torch reference itself, against the definition of bf16."""

from __future__ import annotations

import pytest
import torch

from zipmoe.codec import planes_twin
from zipmoe.errors import InvalidRequest


def test_planes_are_sign_and_mantissa_beside_the_exponent() -> None:
    # -1.5 is sign 1, exponent 127, mantissa 1000000b; 2**-126 is the smallest normal; then infinity and a NaN.
    bits = torch.tensor([0xBFC0, 0x0080, 0x7F80, 0xFFC1, 0x8000], dtype=torch.int32).to(torch.int16)
    sm_plane, e_plane = planes_twin.split_planes(bits.view(torch.bfloat16))
    assert sm_plane.tolist() == [0b1100_0000, 0, 0, 0b1100_0001, 0b1000_0000]
    assert e_plane.tolist() == [127, 1, 255, 255, 0]


def test_merging_what_was_split_gives_every_pattern_back() -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    out = torch.empty(256, 256, dtype=torch.bfloat16)
    planes_twin.merge_planes(*planes_twin.split_planes(bits.view(torch.bfloat16)), out=out)
    assert torch.equal(out.view(torch.int16), bits)


def test_a_transposed_tensor_is_split_in_its_own_order() -> None:
    tensor = torch.arange(6, dtype=torch.float32).to(torch.bfloat16).reshape(2, 3).T
    assert torch.equal(planes_twin.split_planes(tensor)[1], planes_twin.split_planes(tensor.contiguous())[1])


def test_other_dtypes_shapes_and_strides_are_refused() -> None:
    plane = torch.zeros(4, 4, dtype=torch.uint8)
    out = torch.zeros(4, 4, dtype=torch.bfloat16)
    with pytest.raises(InvalidRequest, match=r"torch\.float16"):
        planes_twin.split_planes(torch.zeros(4, dtype=torch.float16))
    with pytest.raises(InvalidRequest, match="shapes"):
        planes_twin.merge_planes(plane, plane[0], out=out)
    with pytest.raises(InvalidRequest, match="dtypes"):
        planes_twin.merge_planes(plane, plane.to(torch.int8), out=out)
    with pytest.raises(InvalidRequest, match="strides"):
        planes_twin.merge_planes(plane, plane, out=out.T)
