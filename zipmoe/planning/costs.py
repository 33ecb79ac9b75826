"""What one machine takes for the work on one store's experts: the measured numbers that plans and schedules rest on.

    read      one I/O channel        latency, once for reads that follow each other, + overhead of each read
                                     + bytes / bandwidth, at the depth and request size of the expert store
    recover   L workers              the E-chunks of one expert are shared out over all of them
    FFN       the model's thread     from a recovered tensor (FULL), or straight from the chunks (PACKED, fused kernel)
    dense     the model's thread     what a step computes beside its routed experts

Every number comes from `zipmoe.calibration`; there are no defaults to fall back to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from zipmoe.errors import InvalidRequest
from zipmoe.residency.state import Residency


@dataclass(frozen=True)
class RowCost:
    """Seconds of a computation on some rows: `first_s` for one row, `per_row_s` for each further one."""

    first_s: float
    per_row_s: float

    def __post_init__(self) -> None:
        _check("first_s", self.first_s)
        _check("per_row_s", self.per_row_s)

    def seconds(self, rows: int) -> float:
        """Seconds for `rows` rows, at least 1."""
        return self.first_s + max(rows - 1, 0) * self.per_row_s

    @classmethod
    def from_plain(cls, data: object, name: str) -> RowCost:
        """Reads one from plain data.

        Raises:
            InvalidRequest: the data is not that of a RowCost; `name` says whose.
        """
        if not isinstance(data, Mapping) or set(data) != {"first_s", "per_row_s"}:
            raise InvalidRequest(f"{name} is {data!r}, expected first_s and per_row_s")
        return cls(**data)


@dataclass(frozen=True)
class Costs:
    """Measured costs, in seconds and bytes, of one store on one machine with one setting of the services.

    Attributes:
        read_latency_s: from asking for a read to its answer, beside its bytes, with nothing else under way.
        read_overhead_s: what each read occupies the way to the disk for beside its bytes: messages and wake-ups.
        read_bytes_per_s: of the I/O channel with as many requests in flight as the expert store has.
        recover_bytes_per_s: bf16 bytes that one worker recovers while all `worker_count` of them do.
        worker_count: recover workers of the decoder, L in the paper.
        full_ffn: FFN of one expert from its recovered tensor.
        packed_ffn: FFN of one expert straight from its chunks; None where there is no such kernel.
        dense: one layer's share of a step without its routed experts: attention, gate, shared expert, head.
        shares_cores: whether FFN and recovery run on the same cores, as on a CPU, and so cannot overlap.
        copy_bytes_per_s: from host memory to the device that computes; None where nothing is copied.
    """

    read_latency_s: float
    read_overhead_s: float
    read_bytes_per_s: float
    recover_bytes_per_s: float
    worker_count: int
    full_ffn: RowCost
    packed_ffn: RowCost | None
    dense: RowCost
    shares_cores: bool = True
    copy_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        _check("read_latency_s", self.read_latency_s)
        _check("read_overhead_s", self.read_overhead_s)
        for name in ("read_bytes_per_s", "recover_bytes_per_s", "copy_bytes_per_s"):
            value = getattr(self, name)
            if value is not None:
                _check(name, value, above_zero=True)
        if not isinstance(self.worker_count, int) or self.worker_count < 1:
            raise InvalidRequest(f"worker_count is {self.worker_count!r}, has to be a whole number of at least 1")

    def read_s(self, nbytes: int) -> float:
        """Seconds until `nbytes` are read that nothing else waits for at the disk; 0 for no bytes."""
        return self.read_latency_s + self.queued_read_s(nbytes) if nbytes else 0.0

    def queued_read_s(self, nbytes: int) -> float:
        """Seconds by which a read of `nbytes` delays those that queue behind it; 0 for no bytes."""
        return self.read_overhead_s + self.channel_s(nbytes) if nbytes else 0.0

    def channel_s(self, nbytes: int) -> float:
        """Seconds that `nbytes` occupy the I/O channel, as part of a read."""
        return nbytes / self.read_bytes_per_s

    def recover_s(self, nbytes: int) -> float:
        """Seconds that one worker takes for `nbytes` of bf16 while all workers are busy."""
        return nbytes / self.recover_bytes_per_s

    def copy_s(self, nbytes: int) -> float:
        """Seconds to bring `nbytes` to the device that computes; 0 where nothing is copied."""
        return nbytes / self.copy_bytes_per_s if self.copy_bytes_per_s is not None else 0.0

    def ffn_s(self, form: Residency, rows: int) -> float:
        """Seconds of one expert's FFN on `rows` rows.

        Args:
            form: FULL, or PACKED where `packed_ffn` is known.
            rows: at least 1.

        Raises:
            InvalidRequest: experts cannot be computed from that form.
        """
        if form is Residency.FULL:
            return self.full_ffn.seconds(rows)
        if form is Residency.PACKED and self.packed_ffn is not None:
            return self.packed_ffn.seconds(rows)
        raise InvalidRequest(f"experts are not computed from the form {form.value} here")

    def to_plain(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, object]) -> Costs:
        """Reads what `to_plain` gave.

        Raises:
            InvalidRequest: a field is missing, unknown or no number of its range.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise InvalidRequest(f"costs have the fields {', '.join(sorted(names))}, not {', '.join(sorted(data))}")
        values: dict[str, object] = dict(data)
        for name in ("full_ffn", "packed_ffn", "dense"):
            if values[name] is not None or name != "packed_ffn":
                values[name] = RowCost.from_plain(values[name], name)
        return cls(**values)  # type: ignore[arg-type]


def _check(name: str, value: object, *, above_zero: bool = False) -> None:
    """Refuses what no measurement gives; a wrong cost would be a wrong plan that nobody notices."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (above_zero and value == 0):  # type: ignore[operator]
        raise InvalidRequest(f"{name} is {value!r}, expected a number {'above' if above_zero else 'of at least'} 0")
