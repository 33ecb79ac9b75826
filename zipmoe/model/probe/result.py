"""Result of a probe: how the requests of a model share the work. Pure data, also for processes without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class ComputePath(Enum):
    """How the requests of a model are computed."""

    SHARED = "shared"
    """Keys and values are in pages; prompts share experts, and answers share whole passes."""

    JOINED = "joined"
    """Each request runs stock's forward with a cache of its own; requests meet at experts and linears."""

    IN_TURN = "in turn"
    """One request after the other."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe.

    Attributes:
        path: the best path whose logits are all equal to stock's.
        reason: the reason why no better path is taken; empty for `SHARED`.
        lazy: the reason why stock's own code computes the experts of a layer; empty if of none.
    """

    path: ComputePath
    reason: str = ""
    lazy: str = ""

    def __str__(self) -> str:
        """Returns the path with its reasons, for people."""
        text = f"{self.path.value}: {self.reason}" if self.reason else self.path.value
        return f"{text}; experts by stock's own code: {self.lazy}" if self.lazy else text

    def to_plain(self) -> dict[str, str]:
        """Returns JSON-ready data."""
        return {"path": self.path.value, "reason": self.reason, "lazy": self.lazy}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> ProbeResult:
        """Reads the data of `to_plain`; raises KeyError, TypeError or ValueError if it is none."""
        return cls(ComputePath(plain["path"]), str(plain["reason"]), str(plain["lazy"]))
