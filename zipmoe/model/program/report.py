"""What of a pass of one row is replayed on this machine, and why the rest is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowReport:
    """Result of recording and proof.

    Attributes:
        layers: layers of the model.
        reason: why nothing is replayed; empty if something is.
        eager: layers that run stock's modules, and why, by name.
        by_torch: operations of a replayed pass that torch computes, with the reason and their number, by part.
        experts_by_python: why Python computes the experts of a layer, by name.
        nbytes: bytes of the program.
        seconds: time of recording and proof.
        failed: whether recording or proof found the reason.
    """

    layers: int
    reason: str = ""
    eager: Mapping[str, str] = field(default_factory=dict)
    by_torch: Mapping[str, Counter[str]] = field(default_factory=dict)
    experts_by_python: Mapping[str, str] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0
    failed: bool = False

    @property
    def recorded_layers(self) -> int:
        """Layers that are replayed."""
        return 0 if self.reason else self.layers - len(self.eager)

    @property
    def torch_operations(self) -> int:
        """Operations of a replayed pass that torch computes."""
        return sum(sum(counts.values()) for counts in self.by_torch.values())

    @property
    def why_eager(self) -> str:
        """Says in one line which layers run eagerly, and why; empty if none does."""
        return self.reason or "; ".join(f"{name}: {reason}" for name, reason in self.eager.items())

    @property
    def why_not_native(self) -> str:
        """Names the operations that torch computes, and the experts that Python computes; each kind once."""
        kinds = Counter[str]()
        for counts in self.by_torch.values():
            kinds.update(counts)
        for reason in self.experts_by_python.values():
            kinds[f"experts: {reason}"] += 1
        return "; ".join(f"{count} x {name}" for name, count in kinds.items())
