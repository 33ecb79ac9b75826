"""What one job of one run has given, as a line of the file from which an interrupted benchmark goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.job import ModelShape
from zipmoe.errors import InvalidRequest

RESIDENT = "resident"
"""The budget that holds everything."""


class PeerCase(NamedTuple):
    """What is compared: of one case there is a row in the report."""

    model: str
    system: str
    budget: str
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def shape(self) -> ModelShape:
        """Of its jobs."""
        return ModelShape(self.batch, self.prompt_tokens, self.new_tokens)


class PeerRun(NamedTuple):
    """One start of a system: the jobs of one round."""

    case: PeerCase
    round: int


@dataclass(frozen=True)
class Record:
    """One job, or why there is none.

    Attributes:
        run: which run.
        index: number of the job in its run.
        problem: why it could not be done; all figures are 0 then.
        run_s: how long the whole run took up to the end of this job, start included.
        ttft_ms, tpot_ms, step_ms, tokens_per_s: as in `Answer`; None where too few tokens came.
        prefill_bytes: read until all sequences had begun.
        decode_bytes: read after that.
        decoded_tokens: tokens that came after that.
        disk_gbps: bandwidth of O_DIRECT reads of the same files, mean of before and after.
        peak_bytes: of the cgroup since the start, the page cache included.
        held_bytes: of it at most, what the kernel could not drop.
        anonymous_bytes: of it at the end, anonymous memory without what is shared.
        oom_kills: processes that were killed for want of memory.
        resident_share: of the files' pages, those in memory before the start.
        choices_equal: share of the greedy choices that are stock's.
        facts: what the system says of itself.
    """

    run: PeerRun
    index: int
    problem: str = ""
    run_s: float = 0.0
    ttft_ms: float = 0.0
    tpot_ms: float | None = None
    step_ms: float | None = None
    tokens_per_s: float = 0.0
    prefill_bytes: int = 0
    decode_bytes: int = 0
    decoded_tokens: int = 0
    disk_gbps: float = 0.0
    peak_bytes: int = 0
    held_bytes: int = 0
    anonymous_bytes: int = 0
    oom_kills: int = 0
    resident_share: float = 0.0
    choices_equal: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        """Read from disk for each token that came when all sequences were decoded."""
        return self.decode_bytes / self.decoded_tokens if self.decoded_tokens else 0.0

    def line(self) -> str:
        """Writes it as a line of JSON, without its end."""
        fields = asdict(self)
        fields["run"] = {**self.run.case._asdict(), "round": self.run.round}
        return json.dumps(fields)

    @classmethod
    def parse(cls, line: str) -> Record:
        """Reads what `line` has written."""
        fields = json.loads(line)
        run = fields.pop("run")
        count = run.pop("round")
        return cls(PeerRun(PeerCase(**run), count), **fields)


class Records:
    """A file of records that grows; a record is in it once it has been added, whatever happens next."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, record: Record) -> None:
        """Appends a record."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(record.line() + "\n")

    def __iter__(self) -> Iterator[Record]:
        """Reads all of them, of a job that was done again the last; raises InvalidRequest where a line is none."""
        if not self._path.exists():
            return
        found: dict[tuple[PeerRun, int], Record] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = Record.parse(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InvalidRequest(f"{self._path}, line {number}, is no record: {error!r}") from error
            found[record.run, record.index] = record
        yield from found.values()
