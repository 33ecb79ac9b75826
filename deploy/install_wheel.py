"""Installs a zipmoe wheel into the running Python, without touching a torch that is already there.

Jetson images bring a torch of their own, built for their GPU; any other one would not see it. So what is there is
pinned, the wheel is installed under that pin, and the script fails if torch is another one afterwards. Standard library
only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path


def installed_versions() -> dict[str, str]:
    """Versions of torch and numpy in the running Python; absent ones have no entry."""
    found = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    return {name: found[name] for name in ("torch", "numpy") if name in found}


def constraints(versions: Mapping[str, str]) -> list[str]:
    """Lines of a pip constraint file that keep an installed torch, and numpy at the major version it was built for."""
    if "torch" not in versions:
        return []
    lines = [f"torch=={versions['torch']}"]
    if "numpy" in versions:
        lines.append(f"numpy<{int(versions['numpy'].split('.')[0]) + 1}")
    return lines


def pip_install(arguments: list[str], constraint_lines: list[str]) -> None:
    """Runs `pip install` under the given constraints and no others.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "constraints.txt"
        constraint_file.write_text("".join(f"{line}\n" for line in constraint_lines))
        environment = os.environ | {"PIP_CONSTRAINT": str(constraint_file), "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--root-user-action=ignore", *arguments]
        subprocess.run(command, env=environment, check=True)


def main() -> None:
    """Installs the wheel named on the command line, and torch first if there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch", help="requirement to install if there is no torch")
    parser.add_argument("--torch-index", default="", help="index to take it from; empty: pip's own")
    arguments = parser.parse_args()
    if "torch" not in installed_versions():
        index = ["--index-url", arguments.torch_index] if arguments.torch_index else []
        pip_install([*index, arguments.torch], [])
    before = installed_versions()
    pip_install([f"zipmoe[gateway] @ {arguments.wheel.resolve().as_uri()}"], constraints(before))
    # A new process: this one may have cached what it saw before.
    script = "from importlib.metadata import version; print(version('torch'))"
    after = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    if after.stdout.strip() != before["torch"]:
        raise SystemExit(f"torch was {before['torch']} and is now {after.stdout.strip()}")


if __name__ == "__main__":
    main()
