"""Describes the work for a needed expert as a graph of tasks: reads, recoveries and products.

A request is a needed expert in its present residency state. Its tasks, per tensor with K E-chunks:

    ABSENT    read E 1..K, read SM   then K recoveries, then the product
    E_ONLY                 read SM   then K recoveries, then the product
    SM_ONLY   read E 1..K            then K recoveries, then the product
    PACKED                                K recoveries, then the product
    FULL                                                     the product

Recovery k needs E-chunk k and the SM-chunk. An expert that is computed directly from its chunks has no recoveries, and
its products need the chunks. The product of a tensor also needs the product of the tensor before it (down needs
gate|up).

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: tasks of a request by compression state.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import NamedTuple

from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, Part

#: Parts that a request in each state has to read.
MISSING_PARTS = {
    Residency.ABSENT: Part.ALL,
    Residency.E_ONLY: Part.SM,
    Residency.SM_ONLY: Part.E,
    Residency.PACKED: Part.NONE,
    Residency.FULL: Part.NONE,
}


class FetchRequest(NamedTuple):
    """An expert that the running step needs.

    Attributes:
        key: the expert.
        state: residency state of the expert now.
        form: form that the expert is computed from: FULL (recovered first) or PACKED (directly from its chunks). It has
            no effect on an expert that is FULL already.
        rows: tokens that are routed to the expert.
    """

    key: ExpertKey
    state: Residency
    form: Residency = Residency.FULL
    rows: int = 1

    @property
    def recovers(self) -> bool:
        """Whether the expert has to be recovered before it is computed."""
        return self.state is not Residency.FULL and self.form is Residency.FULL


class TensorCosts(NamedTuple):
    """Costs of the tasks of an expert's tensor, in seconds.

    Attributes:
        e_read_s: read of all E-chunks.
        sm_read_s: read of the SM-chunk.
        recover_s: recovery of the whole tensor on one worker.
        chunk_count: K, the number of E-chunks, which are recovered independently.
        full_s: product of one row with the recovered tensor.
        packed_s: product of one row directly from the chunks.
        full_row_s: product of each further row with the recovered tensor.
        packed_row_s: product of each further row directly from the chunks.
    """

    e_read_s: float
    sm_read_s: float
    recover_s: float
    chunk_count: int
    full_s: float = 0.0
    packed_s: float = 0.0
    full_row_s: float = 0.0
    packed_row_s: float = 0.0

    def read_s(self, state: Residency) -> float:
        """Returns the time to read the chunks of the tensor that are missing in a state."""
        parts = MISSING_PARTS[state]
        return (self.e_read_s if parts & Part.E else 0.0) + (self.sm_read_s if parts & Part.SM else 0.0)

    def compute_s(self, form: Residency, rows: int) -> float:
        """Returns the time of the product of `rows` rows with the tensor in a form, FULL or PACKED."""
        if form is Residency.FULL:
            return self.full_s + (rows - 1) * self.full_row_s
        return self.packed_s + (rows - 1) * self.packed_row_s


ExpertCosts = tuple[TensorCosts, ...]
"""Costs of an expert's tensors, in the order they are stored and computed: gate|up, then down."""


class WorkKind(enum.Enum):
    """Kind of task: a read by the I/O channel, a recovery by one of the L workers, or a product by the model."""

    READ = "read"
    RECOVERY = "recovery"
    PRODUCT = "product"


class Handover(enum.Enum):
    """Unit in which chunks become usable after their read: each chunk, each tensor, or the whole expert."""

    CHUNK = "chunk"
    TENSOR = "tensor"
    EXPERT = "expert"


class Task(NamedTuple):
    """A task of a request.

    Attributes:
        work: kind of the task, which also determines the stage that executes it.
        tensor: index of the tensor.
        part: E or SM for a read; else NONE.
        chunk: index of the E-chunk for reads of E-chunks and for recoveries; else 0.
        seconds: duration of the task.
        after: indices of the tasks of the same request that have to end before this task begins.
    """

    work: WorkKind
    tensor: int
    part: Part
    chunk: int
    seconds: float
    after: tuple[int, ...]


class TaskGraph(NamedTuple):
    """The tasks of a request with their dependencies.

    Attributes:
        tasks: the tasks in topological order. Reads come in the order of the record on disk, where all E-chunks of an
            expert precede its SM-chunks. So each part is one contiguous read, and E comes before SM within a tensor.
        roots: indices of the tasks without dependencies.
        followers: for each task, the indices of the tasks that depend on it.
    """

    tasks: tuple[Task, ...]
    roots: tuple[int, ...]
    followers: tuple[tuple[int, ...], ...]


@lru_cache(4096)
def tasks_of(
    state: Residency, form: Residency, rows: int, costs: ExpertCosts, handover: Handover = Handover.CHUNK
) -> TaskGraph:
    """Makes the task graph of a request: reads of missing chunks, recoveries if the form needs them, and products.

    Args:
        state: residency state of the expert.
        form: as in `FetchRequest`.
        rows: as in `FetchRequest`.
        costs: costs of the expert's tensors.
        handover: unit in which chunks become usable.
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
    """Returns the indices of the reads that the tasks of a tensor wait for."""
    return tuple(i for i, read in enumerate(reads) if handover is Handover.EXPERT or read.tensor == tensor)


def _serves(read: Task, chunk: int) -> bool:
    return read.part is Part.SM or read.chunk == chunk
