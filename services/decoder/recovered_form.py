"""The form to which the decoder recovers: bf16, or an in-memory form from which the CPU multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from zipmoe.arena.tensor_form import BF16, TensorForm, TensorRoom
from zipmoe.codec.base import Codec
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import CascadePart
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE
from zipmoe.store.format.manifest import Manifest

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MEMORY_FORMS = {form.name: form for form in (TILE, NIBBLE)}


class RecoveredForm(Protocol):
    """Makes recovered rows from chunks, and reads them back. Thread: any number at once."""

    def recover(self, parts: Sequence[CascadePart], out: memoryview, room: TensorRoom) -> None:
        """Recovers the rows of a unit.

        Args:
            parts: the chunks of the rows, with their number of rows.
            out: the place of the rows in the tensor slot.
            room: place and shape of the whole matrix.

        Raises:
            CorruptData: a chunk is refused. The content of `out` is undefined.
            ResourceExhausted: the matrix needs more bytes than `out` has. The content of `out` is undefined.
        """

    def weights(self, recovered: memoryview, room: TensorRoom) -> Buffer:
        """Returns the bf16 bytes of a recovered matrix; raises CorruptData if it is none."""
        ...


class Bf16Rows:
    """Recovers rows to bf16, one E-chunk at a time."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def recover(self, parts: Sequence[CascadePart], out: memoryview, room: TensorRoom) -> None:
        """See `RecoveredForm`."""
        (part,) = parts
        self._codec.recover(part.e_chunk, part.sm, out)

    def weights(self, recovered: memoryview, room: TensorRoom) -> Buffer:
        """See `RecoveredForm`."""
        return recovered


class FormInMemory:
    """Recovers whole matrices to an in-memory form."""

    def __init__(self, form: MemoryForm) -> None:
        self._form = form

    def recover(self, parts: Sequence[CascadePart], out: memoryview, room: TensorRoom) -> None:
        """See `RecoveredForm`."""
        self._form.from_cascade(parts, out, room.rows, room.cols)

    def weights(self, recovered: memoryview, room: TensorRoom) -> Buffer:
        """See `RecoveredForm`."""
        out = bytearray(2 * room.rows * room.cols)
        self._form.to_bf16(recovered, out, room.rows, room.cols)
        return out


def recovered_form(name: TensorForm, manifest: Manifest, codec: Codec) -> RecoveredForm:
    """Makes the form that experts of a store are recovered to.

    Raises:
        InvalidRequest: the store's codec is not `cascade`, or this machine does not have the form.
    """
    if name == BF16:
        return Bf16Rows(codec)
    form = _MEMORY_FORMS[name]
    if manifest.codec_name != "cascade":
        raise InvalidRequest(
            f"experts in {form} are made from chunks of the codec cascade; the store has {manifest.codec_name}",
            next_step="start with --tensor-form bf16, or pack with --codec cascade",
        )
    if not form.is_supported():
        raise InvalidRequest(f"this machine has no {form}", next_step="start with --tensor-form bf16, or plan again")
    return FormInMemory(form)
