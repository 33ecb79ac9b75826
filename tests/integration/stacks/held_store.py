"""An expert store whose disk hangs while a file named `hold` is in its run directory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from zipmoe.services.expert_store.__main__ import main
from zipmoe.store.read.reader import ReadRequest, StoreReader

HOLD = "hold"
_LOOK_S = 0.01
_read_request = StoreReader.read_request


def read_request(reader: StoreReader, request: ReadRequest, e_slot: memoryview, sm_slot: memoryview) -> None:
    """Reads once the file is gone."""
    hold = Path(sys.argv[sys.argv.index("--runtime-dir") + 1], HOLD)
    while hold.exists():
        threading.Event().wait(_LOOK_S)
    _read_request(reader, request, e_slot, sm_slot)


if __name__ == "__main__":
    StoreReader.read_request = read_request  # type: ignore[method-assign]
    sys.exit(main())
