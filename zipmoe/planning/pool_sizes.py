"""A triple of numbers, one for each pool of slots."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import InvalidRequest


class PoolSizes(NamedTuple):
    """Numbers for the E pool, the SM pool and the tensor pool, such as numbers of slots or bytes of a slot."""

    e: int
    sm: int
    tensor: int

    def nbytes(self, slot_bytes: PoolSizes) -> int:
        """Returns the bytes of all slots, where `slot_bytes` are the bytes of a slot of each pool."""
        return sum(count * size for count, size in zip(self, slot_bytes, strict=True))

    def __str__(self) -> str:
        return f"{self.e}:{self.sm}:{self.tensor}"

    @classmethod
    def parse(cls, text: str) -> PoolSizes:
        """Reads numbers of slots in the format of `str`, such as 120:120:8.

        Raises:
            InvalidRequest: the text is not three whole numbers, or has no slot for E-chunks or none for SM-chunks.
        """
        fields = text.split(":")
        if len(fields) != 3 or not all(field.isascii() and field.isdigit() for field in fields):
            raise InvalidRequest(f"cache slots are three numbers as in 120:120:8 (E, SM, tensor), not {text!r}")
        sizes = cls(*map(int, fields))
        if not (sizes.e and sizes.sm):
            raise InvalidRequest(f"cache slots of {text} leave no slot for E-chunks or none for SM-chunks")
        return sizes
