"""What stands in `zipmoe/v1` and `zipmoe/internal` is what `make proto` makes of `protos/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("zipmoe/v1", "zipmoe/internal/v1")


def generated_files(root: Path) -> dict[str, bytes]:
    """Content of every generated file under `root`, by its path."""
    files = (file for package in PACKAGES for file in (root / package).glob("*_pb2*.py*"))
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_generated_code_is_current(tmp_path: Path) -> None:
    protos = sorted(str(file.relative_to(REPOSITORY / "protos")) for file in (REPOSITORY / "protos").rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *outputs, *protos]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)

    expected, committed = generated_files(tmp_path), generated_files(REPOSITORY)
    assert sorted(committed) == sorted(expected)
    stale = [name for name in expected if committed[name] != expected[name]]
    assert not stale, "run `make proto`"


def test_generated_code_imports_on_the_installed_runtimes_without_a_warning() -> None:
    modules = [
        name.removesuffix(".py").replace("/", ".") for name in generated_files(REPOSITORY) if name.endswith(".py")
    ]
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {', '.join(modules)}"], cwd=REPOSITORY, check=True)
