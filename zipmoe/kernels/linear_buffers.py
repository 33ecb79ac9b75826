"""Checks the buffers of a linear before a kernel gets their addresses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from zipmoe.kernels.linear import LinearShape

_BF16_BYTES = 2


class CheckedAddresses:
    """Checked addresses of inputs, outputs and bias of a linear.

    Attributes:
        x: address of the inputs.
        bias: address of the bias, 0 without one.
        out: the outputs.
    """

    def __init__(self, stack: ExitStack, x: Buffer, out: Buffer, shape: LinearShape, bias: Buffer | None) -> None:
        """Looks up the addresses, which stay valid until the stack is closed.

        Raises:
            InvalidRequest: a buffer has another size than the shape says, cannot be written, or overlaps `out`.
        """
        inputs = bf16_address(stack, "x", x, shape.m * shape.k)
        added = None if bias is None else bf16_address(stack, "bias", bias, shape.n)
        self.x = inputs.start
        self.bias = 0 if added is None else added.start
        self.out = bf16_address(stack, "out", out, shape.m * shape.n, writable=True)
        self.check_apart(*([inputs] if added is None else [inputs, added]))

    def check_apart(self, *others: Address) -> None:
        """Raises InvalidRequest if an input overlaps the outputs."""
        check_apart(self.out, *others)


def check_apart(out: Address, *inputs: Address) -> None:
    """Raises InvalidRequest if an input overlaps the output."""
    if any(out.overlaps(each) for each in inputs):
        raise InvalidRequest("out overlaps an input")


def bf16_address(stack: ExitStack, name: str, buffer: Buffer, count: int, *, writable: bool = False) -> Address:
    """Looks up the address of `count` bf16 numbers, which stays valid until the stack is closed.

    Raises:
        InvalidRequest: the buffer has another size or layout, or cannot be written.
    """
    address = stack.enter_context(Address(name, buffer, writable=writable))
    if address.nbytes != _BF16_BYTES * count:
        raise InvalidRequest(f"{name} has {address.nbytes} bytes, expected {count} bf16 numbers")
    return address
