"""Sizes of a model that were measured while it was packed, and the parts of the checkpoint that are left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from zipmoe.store.format.fields import Fields

_MOST_BYTES = 1 << 40
_MOST_EXPERTS = 1 << 16


@dataclass(frozen=True)
class MeasuredSizes:
    """Sizes that config.json does not tell by the names of most families.

    Attributes:
        token_bytes: growth of the cache of a request with each token of context.
        request_bytes: bytes of the cache of a request that do not grow, such as recurrent states.
        experts_per_token: routed experts that a token uses in a layer.
        stock_experts: whether stock's own code computes the experts of some layer, from copies.
    """

    token_bytes: int
    request_bytes: int
    experts_per_token: int
    stock_experts: bool = False

    def to_json(self) -> dict[str, int | bool]:
        """Returns the object of the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> MeasuredSizes:
        """Reads the object of the manifest; raises CorruptData for a number that no packer writes."""
        return cls(
            fields.integer("token_bytes", 0, _MOST_BYTES),
            fields.integer("request_bytes", 0, _MOST_BYTES),
            fields.integer("experts_per_token", 1, _MOST_EXPERTS),
            fields.boolean("stock_experts"),
        )
