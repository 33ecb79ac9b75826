"""Places of the rows of a pass in the pool, as the frame of the native code has them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from zipmoe.kernels.attention import Contexts
from zipmoe.kernels.program import Context, Frame
from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.program.recording.row_model import PassRow


class RowPlaces:
    """Token slots of rows, and the tokens that each row sees in layers of each window.

    Attributes:
        lengths: for each window, the number of tokens that each row sees.
        tokens: most tokens that the rows see together.
    """

    def __init__(self, pool: KvPool, rows: Sequence[PassRow], windows: Sequence[int | None]) -> None:
        """Looks up the places.

        Args:
            pool: the pool.
            rows: the rows.
            windows: windows of the layers; None sees all tokens.
        """
        slots = pool.keys[0].shape[1]
        places = [KvPlace(row.pages, row.position + 1, pool.device) for row in rows]
        self._slots = array("q", [pool.slot(row.pages, row.position) for row in rows])
        self._contexts: list[Contexts] = []
        self.lengths: list[tuple[int, ...]] = []
        for window in windows:
            firsts = [0 if window is None else max(0, row.position + 1 - window) for row in rows]
            runs = [place.runs(first) for place, first in zip(places, firsts, strict=True)]
            self._contexts.append(Contexts(runs, slots))
            self.lengths.append(self._contexts[-1].lengths)
        self.tokens = max((each.tokens for each in self._contexts), default=1)
        self._bound = (Context * len(windows))(
            *(Context(each.entries, each.runs, each.requests) for each in self._contexts)
        )

    def bind(self, frame: Frame) -> None:
        """Sets slots and contexts of a frame. This object has to live as long as the frame is used with them."""
        frame.contexts = self._bound
        frame.slots = self._slots.buffer_info()[0]
