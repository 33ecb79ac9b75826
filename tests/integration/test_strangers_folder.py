"""Services started in a folder of somebody else's Python code run none of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.stacks.stack import PackedModel
from tests.integration.stacks.up import running_up
from zipmoe.client import GenerationClient, Stopping

# Names that a stranger's project may well have: a package of ours, our own, and modules that Python and we import.
STRANGERS = (
    "services/__init__.py",
    "services/router/__init__.py",
    "services/router/__main__.py",
    "zipmoe/__init__.py",
    "zipmoe/cli/__init__.py",
    "zipmoe/services/__init__.py",
    "torch.py",
    "sitecustomize.py",
    "usercustomize.py",
    "grpc.py",
    "logging.py",
)


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    """A folder in which every module notes that it was imported, and fails."""
    for name in STRANGERS:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = tmp_path / "imported" / name.replace("/", "-")
        path.write_text(f"open({str(note)!r}, 'w').close()\nraise ImportError('a stranger has been imported')\n")
    (tmp_path / "imported").mkdir()
    return tmp_path


def test_up_in_a_folder_of_strange_modules_runs_only_ours(
    packed: Callable[[str], PackedModel], strangers_folder: Path, short_folder: Path
) -> None:
    """`--memory-budget` also plans and measures, in a process of its own."""
    store = packed("qwen2_moe").store
    options = ("--memory-budget", "1GiB")
    with running_up(store, short_folder, *options, cwd=strangers_folder / "project") as up:
        with GenerationClient(f"unix:{up.runtime}/router.sock") as client:
            answer = list(client.generate([5, 6, 7], stopping=Stopping(max_new_tokens=3, ignore_eos=True)))
        assert len(answer) == 5
        for pid in up.pids.values():
            assert Path(f"/proc/{pid}/cwd").resolve() == strangers_folder / "project"
    assert list((strangers_folder / "imported").iterdir()) == []
