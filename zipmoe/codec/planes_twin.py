"""The readable twin of the plane kernels, in torch: the reference that every kernel is tested against.

    bf16 bit   15    14 ... 7    6 ... 0
               sign  exponent    mantissa

Services do not import this module, because it needs torch. No other module of `zipmoe.codec` needs torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zipmoe.errors import InvalidRequest


def split_planes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Splits bf16 values into their two byte planes.

    Args:
        tensor: bfloat16, any shape.

    Returns:
        The SM plane (sign in bit 7, mantissa in bits 0-6) and the exponent plane: uint8, new, of the same shape.

    Raises:
        InvalidRequest: Another dtype.

    Source: ZipMoE (arXiv 2601.21198), bit-field decomposition.
    """
    if tensor.dtype != torch.bfloat16:
        raise InvalidRequest(f"tensor is {tensor.dtype}, expected torch.bfloat16")
    bits = tensor.contiguous().view(torch.int16).to(torch.int32)
    sm_plane = (bits >> 8 & 0x80) | (bits & 0x7F)
    e_plane = bits >> 7 & 0xFF
    return sm_plane.to(torch.uint8), e_plane.to(torch.uint8)


def merge_planes(sm_plane: Tensor, e_plane: Tensor, *, out: Tensor) -> None:
    """Recovers bf16 values from their two byte planes, bit for bit.

    Args:
        sm_plane: uint8. Sign in bit 7, mantissa in bits 0-6.
        e_plane: uint8, same shape. Biased exponent.
        out: bfloat16, same shape, contiguous, not overlapping the inputs. Overwritten.

    Raises:
        InvalidRequest: A shape, dtype or stride differs from the above. `out` is untouched.

    Source: ZipMoE (arXiv 2601.21198), bit-field decomposition.
    """
    if not sm_plane.shape == e_plane.shape == out.shape:
        raise InvalidRequest(f"shapes {[*sm_plane.shape]}, {[*e_plane.shape]} and {[*out.shape]} differ")
    if (sm_plane.dtype, e_plane.dtype, out.dtype) != (torch.uint8, torch.uint8, torch.bfloat16):
        raise InvalidRequest(
            f"dtypes are {sm_plane.dtype}, {e_plane.dtype}, {out.dtype}, expected uint8, uint8, bfloat16"
        )
    if not out.is_contiguous():
        raise InvalidRequest(f"out has strides {out.stride()}, expected a contiguous tensor")
    sm, e = sm_plane.to(torch.int32), e_plane.to(torch.int32)
    bits = (sm & 0x80) << 8 | e << 7 | (sm & 0x7F)
    # torch has no uint16 arithmetic; int16 is the same 16 bits.
    out.view(torch.int16).copy_(torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16))
