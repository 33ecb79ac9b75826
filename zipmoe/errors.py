"""All errors that ZipMoE raises on purpose, each with a next step for the user.

The classes do not depend on gRPC. `zipmoe.rpc.status` maps the classes to status codes and back. A message describes
the failure with numbers, in lower case. `diagnostics()` returns the next step, which is not part of the message.
"""

from __future__ import annotations

from typing import Self

PACK_ANEW = "pack the checkpoint with this version into a new directory"
"""Next step where a store lacks what this version needs; a pack into the same directory would find it finished."""


class ZipMoeError(Exception):
    """Base of all errors that ZipMoE raises on purpose."""

    next_step: str = "report this with the log of the process that raised it"

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        if next_step is not None:
            self.next_step = next_step

    @property
    def message(self) -> str:
        """Description of the failure, with numbers."""
        return str(self.args[0])

    def diagnostics(self) -> str:
        """Returns the next step for the user."""
        return self.next_step

    def without_frames(self) -> Self:
        """Drops the traceback and the causes; returns the error.

        The frames of a traceback hold their local variables, such as slices of slots, as long as the error exists. An
        error in a local variable of a frame of its own traceback exists until a garbage collection.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class InvalidRequest(ZipMoeError):
    """An argument is malformed or out of range. The same call can never succeed."""

    next_step = "correct the named argument and call again"


class ContextLengthExceeded(InvalidRequest):
    """A prompt is longer than the context, or leaves no room for an answer."""

    next_step = "shorten the prompt, or start the router with a larger --max-prompt-tokens and --kv-tokens"


class NotFound(ZipMoeError):
    """A store, model, expert, tensor or file does not exist."""

    next_step = "check the name or path"


class ResourceExhausted(ZipMoeError):
    """A queue, pool or disk is full at the moment."""

    next_step = "wait and retry, or raise the limit named in the message"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class StaleSlot(ZipMoeError):
    """A slot reference names an old generation or an old arena epoch."""

    next_step = "none: the client acquires the slot again by itself"


class SlotLeased(ZipMoeError):
    """An operation would overwrite or unmap a slot that is in use, or the slot belongs to another session."""

    next_step = "none: the client releases the slot first"


class UnsupportedStore(ZipMoeError):
    """A store has a format version, codec or layout that this version does not know."""

    next_step = f"upgrade zipmoe, or {PACK_ANEW}"


class UnsupportedModel(ZipMoeError):
    """ZipMoE cannot serve a checkpoint of this architecture, dtype or layout losslessly."""

    next_step = "serve this model with transformers itself"


class StoreMismatch(ZipMoeError):
    """Processes that should share one store were started on different stores, or with different memory settings."""

    next_step = "start all services on the same store directory"


class BudgetInfeasible(ZipMoeError):
    """A memory budget cannot hold the model, or the machine cannot hold the budget."""

    next_step = "use the smallest feasible budget named in the message, or a machine with more memory"

    def __init__(self, message: str, *, smallest_bytes: int = 0, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.smallest_bytes = smallest_bytes


class AlreadyRunning(ZipMoeError):
    """Another process already listens on the address or owns the runtime directory."""

    next_step = "stop the other instance, or choose another --runtime-dir or --listen address"


class CorruptData(ZipMoeError):
    """Stored bytes are not the packed bytes: wrong checksum, short read, I/O error, truncated file."""

    next_step = "run `zipmoe verify STORE`; if it reports damage, delete the store and pack the checkpoint again"


class Unavailable(ZipMoeError):
    """A service is starting, draining or not running."""

    next_step = "retry; if it stays away, look at `zipmoe health` and the service's log"


class DeadlineExceeded(ZipMoeError):
    """The caller's deadline passed before the operation ended."""

    next_step = "allow more time, or ask for less"


class Cancelled(ZipMoeError):
    """The caller cancelled an operation before it had begun."""

    next_step = "none: nobody waits for it any more"


class Unauthenticated(ZipMoeError):
    """Credentials are missing or wrong."""

    next_step = "pass the token that the router was started with"


class InternalError(ZipMoeError):
    """A bug in ZipMoE. The log of the process has the details, the message has none."""
