"""Holds the measurements of a machine, and derives the costs for plans from the measurements."""

from __future__ import annotations

from dataclasses import dataclass, field

from zipmoe.arena.tensor_form import BF16
from zipmoe.calibration.disk import DiskSpeed
from zipmoe.calibration.identity import MachineIdentity
from zipmoe.calibration.messages import HOPS, MessageSpeed
from zipmoe.calibration.model_speed import ModelSpeed
from zipmoe.calibration.recovery_speed import RecoverPoint, recover_rate
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.planning.costs import Costs, RowCost


@dataclass(frozen=True)
class StoreSpeed:
    """Measurements with a store: the codec on the store's chunks, and the model on some devices.

    Attributes:
        codec: name of the codec.
        expert_bytes: bf16 bytes of the largest expert.
        others_ratio: share of the cores that other processes took during the measurement, see `OtherWork`.
        recover: one entry for each measured number of workers.
        models: speed of the model by device, `cpu` or `cuda`.
    """

    codec: str
    expert_bytes: int
    others_ratio: float
    recover: tuple[RecoverPoint, ...]
    models: dict[str, ModelSpeed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.recover:
            raise InvalidRequest("a store has at least one measurement of its recovery")


@dataclass(frozen=True)
class Calibration:
    """All measurements of a machine with a disk.

    Attributes:
        identity: the machine and the disk.
        effort: name of the `MeasurementTime` with which the disk was measured.
        others_ratio: share of the cores that other processes took while the disk was measured.
        disk: speed of the disk.
        messages: speed of messages between services.
        stores: measurements with each store, by digest of the store.
    """

    identity: MachineIdentity
    effort: str
    others_ratio: float
    disk: DiskSpeed
    messages: MessageSpeed
    stores: dict[str, StoreSpeed] = field(default_factory=dict)

    def costs(
        self,
        digest: str,
        *,
        device: str,
        worker_count: int,
        io_threads: int,
        request_bytes: int,
        compressed: bool = False,
        tensor_form: str = BF16,
    ) -> Costs:
        """Derives the costs for plans and schedules from the measurements.

        Args:
            digest: digest of the store.
            device: `cpu` or `cuda`.
            worker_count: recover workers of the decoder.
            io_threads: requests that the expert store has at the disk at the same time.
            request_bytes: size of a request.
            compressed: whether the dense weights are compressed in memory.
            tensor_form: form of recovered experts.

        Raises:
            NotFound: the store has not been measured, or not on this device.
        """
        store = self.stores.get(digest)
        model = store.models.get(device) if store else None
        if store is None or model is None:
            raise NotFound(
                f"store {digest} has not been measured on {device}", next_step="run `zipmoe calibrate STORE`"
            )
        dense = model.compressed.dense if compressed and model.compressed is not None else model.dense
        return Costs(
            read_latency_s=self.disk.latency_s + HOPS * self.messages.round_trip_s,
            read_overhead_s=HOPS * self.messages.further_s,
            read_bytes_per_s=self.disk.bytes_per_s(request_bytes, io_threads),
            recover_bytes_per_s=recover_rate(store.recover, worker_count),
            worker_count=worker_count,
            full_ffn=model.full(tensor_form),
            packed_ffn=model.packed_ffn,
            dense=dense or RowCost(0.0, 0.0),
            shares_cores=device == "cpu",
            copy_bytes_per_s=model.copy_bytes_per_s,
        )
