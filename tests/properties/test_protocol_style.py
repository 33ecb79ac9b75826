"""The protocol passes buf's STANDARD and COMMENTS rules, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_protocol_passes_buf_lint(tmp_path: Path) -> None:
    buf = Path(sys.executable).with_name("buf")
    environment = {**os.environ, "BUF_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [buf, "lint", "protos"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
