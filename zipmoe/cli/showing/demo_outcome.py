"""The outcome of the demonstration, as tables or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zipmoe.cli.console import facts, out
from zipmoe.cli.size import format_size
from zipmoe.cli.talking.answer import completion_json

if TYPE_CHECKING:
    from zipmoe.client import Completion


@dataclass(frozen=True)
class DemoOutcome:
    """An answer of the services, and the tokens of stock transformers for comparison.

    Attributes:
        answer: answer of the three services.
        prompt_ids: token ids of the prompt, from the tokenizer of the router.
        stock_ids: token ids that stock transformers generated from the same prompt ids.
        startup_s: seconds until all three services served.
        metrics: metric samples of the services by name, summed over labels.
    """

    answer: Completion
    prompt_ids: list[int]
    stock_ids: list[int]
    startup_s: float
    metrics: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether stock transformers generated the same tokens."""
        return list(self.answer.token_ids) == self.stock_ids

    def to_json(self, seconds: float) -> dict[str, Any]:
        """Describes the outcome as JSON-ready data; `seconds` is the duration of the demonstration."""
        return {
            "passed": self.passed,
            **completion_json(self.answer),
            "prompt_token_ids": self.prompt_ids,
            "stock_token_ids": self.stock_ids,
            "startup_s": self.startup_s,
            "seconds": seconds,
            "metrics": self.metrics,
        }

    def print(self, seconds: float) -> None:
        """Prints a table of the metrics and the verdict; `seconds` is the duration of the demonstration."""
        reads = f"{self.metrics['zipmoe_store_reads_total']:.0f} reads, every checksum verified"
        rows = {
            "expert hits": f"{self.metrics['zipmoe_expert_hits_total']:.0f}",
            "expert misses": f"{self.metrics['zipmoe_expert_misses_total']:.0f}",
            "read from disk": f"{format_size(self.metrics['zipmoe_store_read_bytes_total'])} in {reads}",
            "recovered": f"{format_size(self.metrics['zipmoe_decoder_recovered_bytes_total'])} of bf16",
            "first token": self._mean("zipmoe_time_to_first_token_seconds"),
            "between tokens": self._mean("zipmoe_inter_token_seconds"),
            "services ready": f"after {self.startup_s:.1f} s",
            "all of it": f"{seconds:.1f} s",
        }
        out().print()
        out().print(facts("from the services' Prometheus metrics", rows))
        out().print()
        if self.passed:
            out().print(f"[bold green]PASS[/]: all {len(self.stock_ids)} token ids are those of stock transformers")
            return
        out().print("[bold red]FAIL[/]: the token ids differ from those of stock transformers")
        out().print(f"  zipmoe {list(self.answer.token_ids)}\n  stock  {self.stock_ids}", markup=False, soft_wrap=True)

    def _mean(self, name: str) -> str:
        count = self.metrics.get(f"{name}_count", 0.0)
        return f"{1000 * self.metrics[f'{name}_sum'] / count:.1f} ms" if count else "none"
