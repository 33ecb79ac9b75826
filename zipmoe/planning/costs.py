"""Measured costs of a machine's work on a store's experts, the input of plans and schedules.

    read      one I/O channel        latency, once for reads that follow each other, + overhead of each read
                                     + bytes / bandwidth, at the depth and request size of the expert store
    recover   L workers              all workers share the E-chunks of one expert
    FFN       the model's thread     from a recovered tensor (FULL), or straight from the chunks (PACKED, fused kernel)
    dense     the model's thread     all computing of a step except the routed experts

The numbers come from `zipmoe.calibration`. Only `zipmoe simulate` without a store uses round numbers instead. No
measured number has a default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        """Returns the seconds for `rows` rows, at least 1."""
        return self.first_s + max(rows - 1, 0) * self.per_row_s


@dataclass(frozen=True)
class Costs:
    """Measured costs, in seconds and bytes, of a store on a machine with given settings of the services.

    Attributes:
        read_latency_s: seconds from the request of a read to the answer, without the transfer of the bytes and with no
            other read under way.
        read_overhead_s: seconds that each read occupies the I/O channel beside the transfer of the bytes: messages and
            thread wake-ups.
        read_bytes_per_s: bandwidth of the I/O channel with the expert store's number of requests in flight.
        recover_bytes_per_s: bf16 bytes per second that one worker recovers while all `worker_count` workers recover.
        worker_count: recover workers of the decoder, L in the paper.
        full_ffn: FFN of one expert from the recovered tensor.
        packed_ffn: FFN of one expert straight from the chunks; None where there is no such kernel.
        dense: one layer's share of a step without routed experts: attention, gate, shared expert, head.
        shares_cores: whether FFN and recovery run on the same cores, as on a CPU, and therefore cannot overlap.
        copy_bytes_per_s: bandwidth from host memory to the device that computes; None where nothing is copied.
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
        """Returns the seconds of a read of `nbytes` with no other read under way; 0 for no bytes."""
        return self.read_latency_s + self.queued_read_s(nbytes) if nbytes else 0.0

    def queued_read_s(self, nbytes: int) -> float:
        """Returns the seconds by which a read of `nbytes` delays the reads behind it in the queue; 0 for no bytes."""
        return self.read_overhead_s + self.channel_s(nbytes) if nbytes else 0.0

    def channel_s(self, nbytes: int) -> float:
        """Returns the seconds that `nbytes` occupy the I/O channel, as part of a read."""
        return nbytes / self.read_bytes_per_s

    def recover_s(self, nbytes: int) -> float:
        """Returns the seconds that one worker takes for `nbytes` of bf16 while all workers are busy."""
        return nbytes / self.recover_bytes_per_s

    def copy_s(self, nbytes: int) -> float:
        """Returns the seconds to copy `nbytes` to the device that computes; 0 where nothing is copied."""
        return nbytes / self.copy_bytes_per_s if self.copy_bytes_per_s is not None else 0.0

    def ffn_s(self, form: Residency, rows: int) -> float:
        """Returns the seconds of one expert's FFN on `rows` rows.

        Args:
            form: FULL, or PACKED where `packed_ffn` is known.
            rows: at least 1.

        Raises:
            InvalidRequest: experts are not computed from `form` on this machine.
        """
        if form is Residency.FULL:
            return self.full_ffn.seconds(rows)
        if form is Residency.PACKED and self.packed_ffn is not None:
            return self.packed_ffn.seconds(rows)
        raise InvalidRequest(f"experts are not computed from the form {form.value} here")


def _check(name: str, value: object, *, above_zero: bool = False) -> None:
    """Refuses a value that no measurement gives, because a wrong cost would lead to a wrong plan without an error."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (above_zero and value == 0):  # type: ignore[operator]
        raise InvalidRequest(f"{name} is {value!r}, expected a number {'above' if above_zero else 'of at least'} 0")
