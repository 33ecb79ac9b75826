"""Measures the cost of a fetch beside the transfer of bytes: messages on a gRPC stream and thread wake-ups."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import grpc

from zipmoe.calibration.measurement_time import MeasurementTime, undisturbed
from zipmoe.errors import InvalidRequest

HOPS = 2
"""Hops of a fetch: from the router to the decoder, and from the decoder to the expert store."""

_METHOD = "/zipmoe.Calibration/Echo"
_MESSAGE = b"x" * 128
_BATCH = 4


@dataclass(frozen=True)
class MessageSpeed:
    """Times of messages between services on this machine.

    Attributes:
        round_trip_s: seconds from a message to the answer, over one hop, with a thread woken at either end.
        further_s: seconds for each further message and answer under way at the same time, over one hop.
    """

    round_trip_s: float
    further_s: float

    def __post_init__(self) -> None:
        if not (self.round_trip_s > 0 and self.further_s >= 0):
            raise InvalidRequest(f"no message takes {self.round_trip_s} s, and no further one {self.further_s} s")


def measure_messages(effort: MeasurementTime) -> MessageSpeed:
    """Measures messages to an echo server over a UNIX socket, one at a time and several at once.

    Raises:
        grpc.RpcError: the socket cannot be reached.

    Cost: 2 x rounds x `point_s`.
    """
    alone: list[float] = []
    batches: list[float] = []
    with _echo() as exchange:
        exchange(1)  # connects
        for _ in range(effort.rounds):
            for count, taken in ((1, alone), (_BATCH, batches)):
                end_s = time.perf_counter() + effort.point_s
                taken.append(exchange(count))
                while time.perf_counter() < end_s:
                    taken.append(exchange(count))
    one_s, batch_s = undisturbed(alone), undisturbed(batches)
    return MessageSpeed(one_s, max(0.0, batch_s - one_s) / (_BATCH - 1))


class _Exchange:
    """Sends messages on a gRPC stream and waits for the answers."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._out: SimpleQueue[bytes | None] = SimpleQueue()
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_METHOD)
        self._answers = call(iter(self._out.get, None))

    def __call__(self, count: int) -> float:
        """Sends `count` messages and returns the seconds until all messages are answered."""
        begin_s = time.perf_counter()
        for _ in range(count):
            self._out.put(_MESSAGE)
        for _ in range(count):
            next(self._answers)
        return time.perf_counter() - begin_s

    def close(self) -> None:
        self._out.put(None)
        for _ in self._answers:
            pass


def _answer(messages: Iterator[bytes], _: object) -> Iterator[bytes]:
    return messages


@contextmanager
def _echo() -> Iterator[_Exchange]:
    with tempfile.TemporaryDirectory(prefix="zipmoe-calibrate-") as folder, ThreadPoolExecutor(1) as workers:
        address = f"unix:{folder}/echo.sock"
        server = grpc.server(workers)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Echo": grpc.stream_stream_rpc_method_handler(_answer)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("zipmoe.Calibration", handlers),))
        server.add_insecure_port(address)
        server.start()
        try:
            with grpc.insecure_channel(address) as channel:
                exchange = _Exchange(channel)
                try:
                    yield exchange
                finally:
                    exchange.close()
        finally:
            server.stop(None).wait()
