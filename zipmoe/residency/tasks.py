"""What it takes to get one expert computed, as a graph of tasks: chunks are read, tensors recovered, products computed.

A request is one needed expert in the residency state that it is in. Its tasks, per tensor with K E-chunks:

    ABSENT    read E 1..K, read SM   then K recoveries, then the product
    E_ONLY                 read SM   then K recoveries, then the product
    SM_ONLY   read E 1..K            then K recoveries, then the product
    PACKED                                K recoveries, then the product
    FULL                                                     the product

Recovery k needs E-chunk k and the SM-chunk. An expert that is computed straight from its packed form has no recoveries:
its products need the chunks. The product of a tensor also needs that of the tensor before it (down needs gate|up).

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: tasks of a request by compression state.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import NamedTuple

from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, Part

#: What a request in a state has to read.
MISSING_PARTS = {
    Residency.ABSENT: Part.ALL,
    Residency.E_ONLY: Part.SM,
    Residency.SM_ONLY: Part.E,
    Residency.PACKED: Part.NONE,
    Residency.FULL: Part.NONE,
}


class FetchRequest(NamedTuple):
    """One expert that the running step needs.

    Attributes:
        key: which expert.
        state: what memory holds of it now.
        form: what it is to be computed from: FULL, which means recovered first, or PACKED, straight from its chunks.
            Of no effect on an expert that is FULL already.
        rows: tokens that are routed to it.
    """

    key: ExpertKey
    state: Residency
    form: Residency = Residency.FULL
    rows: int = 1

    @property
    def recovers(self) -> bool:
        """Whether its tensors have to be recovered before they are computed with."""
        return self.state is not Residency.FULL and self.form is Residency.FULL


class TensorCosts(NamedTuple):
    """What the tasks of one tensor of an expert cost, in seconds.

    Attributes:
        e_read_s: reading all its E-chunks.
        sm_read_s: reading its SM-chunk.
        recover_s: recovering all of it on one worker.
        chunk_count: K, its E-chunks, which are recovered independently.
        full_s: computing with the recovered tensor, one row.
        packed_s: computing straight from the chunks, one row.
        full_row_s: each further row.
        packed_row_s: each further row.
    """

    e_read_s: float
    sm_read_s: float
    recover_s: float
    chunk_count: int = 4
    full_s: float = 0.0
    packed_s: float = 0.0
    full_row_s: float = 0.0
    packed_row_s: float = 0.0

    def read_s(self, state: Residency) -> float:
        """Reading what is missing of the tensor."""
        parts = MISSING_PARTS[state]
        return (self.e_read_s if parts & Part.E else 0.0) + (self.sm_read_s if parts & Part.SM else 0.0)

    def compute_s(self, form: Residency, rows: int) -> float:
        """The product of `rows` rows with the tensor in a form, FULL or PACKED."""
        if form is Residency.FULL:
            return self.full_s + (rows - 1) * self.full_row_s
        return self.packed_s + (rows - 1) * self.packed_row_s


ExpertCosts = tuple[TensorCosts, ...]
"""Costs of an expert's tensors, in the order they are stored and computed: gate|up, then down."""


class WorkKind(enum.Enum):
    """What a task is: a read of the one I/O channel, a recovery of one of the L workers, a product of the model."""

    READ = "read"
    RECOVERY = "recovery"
    PRODUCT = "product"


class Handover(enum.Enum):
    """When chunks that have been read can be used: each by itself, with its tensor, or with all of its expert."""

    CHUNK = "chunk"
    TENSOR = "tensor"
    EXPERT = "expert"


class Task(NamedTuple):
    """One task of a request.

    Attributes:
        work: what it is, and so who carries it out.
        tensor: index of the tensor.
        part: of a read: E or SM; else NONE.
        chunk: index of the E-chunk, for reads of E-chunks and recoveries; else 0.
        seconds: how long it takes.
        after: indices of the tasks of the same request that have to end before it begins.
    """

    work: WorkKind
    tensor: int
    part: Part
    chunk: int
    seconds: float
    after: tuple[int, ...]


class TaskGraph(NamedTuple):
    """The tasks of one request.

    Attributes:
        tasks: each comes after those it waits for. Reads come in the order of the record on disk, where all E-chunks of
            an expert precede its SM-chunks: so a part is one contiguous read, and E comes before SM within a tensor.
        roots: indices of tasks that wait for none.
        followers: for each task, the indices of those that wait for it.
    """

    tasks: tuple[Task, ...]
    roots: tuple[int, ...]
    followers: tuple[tuple[int, ...], ...]


@lru_cache(4096)
def tasks_of(
    state: Residency, form: Residency, rows: int, costs: ExpertCosts, handover: Handover = Handover.CHUNK
) -> TaskGraph:
    """Makes the graph of a request: what it misses is read, then recovered if it has to be, then computed.

    Args:
        state: what memory holds of the expert.
        form: as in `FetchRequest`.
        rows: as in `FetchRequest`.
        costs: of the expert's tensors.
        handover: when chunks can be used.
    """
    tasks = _reads(MISSING_PARTS[state], costs)
    reads = len(tasks)
    product: tuple[int, ...] = ()
    for tensor, cost in enumerate(costs):
        wanted = _wanted(tasks[:reads], tensor, handover)
        if state is Residency.FULL or form is not Residency.FULL:
            needs = tuple(index for index in range(reads) if index in wanted)
        else:
            needs = tuple(range(len(tasks), len(tasks) + cost.chunk_count))
            for chunk in range(cost.chunk_count):
                after = tuple(i for i in wanted if handover is not Handover.CHUNK or _serves(tasks[i], chunk))
                tasks.append(
                    Task(WorkKind.RECOVERY, tensor, Part.NONE, chunk, cost.recover_s / cost.chunk_count, after)
                )
        seconds = cost.compute_s(Residency.FULL if state is Residency.FULL else form, rows)
        tasks.append(Task(WorkKind.PRODUCT, tensor, Part.NONE, 0, seconds, needs + product))
        product = (len(tasks) - 1,)
    roots = tuple(index for index, task in enumerate(tasks) if not task.after)
    followers = tuple(tuple(j for j, task in enumerate(tasks) if index in task.after) for index in range(len(tasks)))
    return TaskGraph(tuple(tasks), roots, followers)


def _reads(parts: Part, costs: ExpertCosts) -> list[Task]:
    reads = []
    if parts & Part.E:
        for tensor, cost in enumerate(costs):
            seconds = cost.e_read_s / cost.chunk_count
            reads += [Task(WorkKind.READ, tensor, Part.E, chunk, seconds, ()) for chunk in range(cost.chunk_count)]
    if parts & Part.SM:
        reads += [Task(WorkKind.READ, tensor, Part.SM, 0, cost.sm_read_s, ()) for tensor, cost in enumerate(costs)]
    return reads


def _wanted(reads: list[Task], tensor: int, handover: Handover) -> tuple[int, ...]:
    """The reads that a tensor's tasks wait for."""
    return tuple(i for i, read in enumerate(reads) if handover is Handover.EXPERT or read.tensor == tensor)


def _serves(read: Task, chunk: int) -> bool:
    return read.part is Part.SM or read.chunk == chunk
