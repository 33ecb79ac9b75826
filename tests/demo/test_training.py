"""Training is deterministic, and stopping it changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from demo.corpus import Document
from demo.tokenizer import encode, train_tokenizer
from demo.train import Recipe, Training, Windows, balance_loss

TEXTS = ["In the beginning was the word.", "A word is dead when it is said, some say.", "The rest is silence."]
DOCUMENTS = [Document("bible", f"Book {i}", TEXTS[i % 3] * (i + 1), False) for i in range(9)]
RECIPE = Recipe(epochs=2, batch=4, window=32, warmup_steps=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(stops: tuple[int, ...], folder: Path) -> dict[str, torch.Tensor]:
    """Weights after all steps, with a snapshot and a new process's state at each stop."""
    tokenizer = train_tokenizer(DOCUMENTS)
    windows = Windows(tokenizer, DOCUMENTS, RECIPE)
    training = Training(RECIPE, 512, windows.steps, torch.device("cpu"))
    for stop in (*stops, windows.steps):
        for batch in windows.batches(training.step):
            if training.step == stop:
                break
            training.learn(batch % 512)
        if stop < windows.steps:
            training.save(folder / "snapshot.pt", {"recipe": 1})
            training = Training(RECIPE, 512, windows.steps, torch.device("cpu"))
            training.resume(folder / "snapshot.pt", {"recipe": 1})
    assert training.step == windows.steps
    return training.model.state_dict()


def test_stopping_and_resuming_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = trained((), tmp_path)
    for name, tensor in trained((2, 5), tmp_path).items():
        assert torch.equal(tensor, whole[name]), name


def test_a_snapshot_of_another_recipe_is_refused(tmp_path: Path) -> None:
    training = Training(RECIPE, 512, 4, torch.device("cpu"))
    training.save(tmp_path / "snapshot.pt", {"recipe": 1})
    with pytest.raises(SystemExit, match="another recipe"):
        training.resume(tmp_path / "snapshot.pt", {"recipe": 2})


def test_every_document_is_seen_once_an_epoch() -> None:
    tokenizer = train_tokenizer(DOCUMENTS)
    recipe = Recipe(epochs=2, batch=1, window=4)
    windows = Windows(tokenizer, DOCUMENTS, recipe)
    tokens = torch.cat(list(windows.batches(0))).flatten()
    each = torch.cat([torch.tensor(encode(tokenizer, document)) for document in DOCUMENTS])
    lost = 2 * (len(each) % 4)
    assert len(tokens) + lost == 2 * len(each)
    wanted = 2 * torch.bincount(each, minlength=len(tokenizer))
    assert int((wanted - torch.bincount(tokens, minlength=len(tokenizer))).abs().sum()) == lost


def test_the_balance_loss_is_one_where_all_experts_are_used_alike() -> None:
    even = torch.eye(4).repeat(8, 1) * 1e-3
    skewed = torch.tensor([[9.0, 0.0, 0.0, 0.0]]).repeat(32, 1)
    assert balance_loss((even, even), 1).item() == pytest.approx(1, abs=1e-3)
    assert balance_loss((skewed, skewed), 1).item() > 3.9


def test_the_tokenizer_gives_any_text_back() -> None:
    tokenizer = train_tokenizer(DOCUMENTS)
    for text in ("In the beginning", "Zürich \U0001f600 naïve\n\n\ttabs", "1234 + 5 = 1239"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
@pytest.mark.extra  # half a minute; what a snapshot holds is tested by the others
def test_training_killed_with_kill_9_goes_on_from_its_last_snapshot(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import demo.train as train\n"
        "from tests.demo.test_training import DOCUMENTS, Document\n"
        "train.read_corpus = lambda root: DOCUMENTS + [Document('bible', 'Held out', 'Said and done. ' * 40, True)]\n"
        "train.main()\n"
    )
    recipe = ["--epochs", "4", "--batch", "4", "--window", "32", "--snapshot-steps", "4", "--threads", "1"]
    root = Path(__file__).parents[2]

    def command(name: str) -> list[str]:
        places = ["--corpus", "unused", "--work", str(tmp_path / name), "--out", str(tmp_path / f"{name}-model")]
        return [sys.executable, str(program), *places, *recipe]

    environment = {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
    with subprocess.Popen(command("killed"), cwd=root, env=environment) as killed:
        while killed.poll() is None and not (tmp_path / "killed/snapshot.pt").exists():
            time.sleep(0.01)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed-model").exists()
    for name in ("killed", "whole"):
        subprocess.run(command(name), cwd=root, env=environment, check=True)
    killed_shards, whole_shards = (
        {path.name: path.read_bytes() for path in (tmp_path / f"{name}-model").glob("*.safetensors")}
        for name in ("killed", "whole")
    )
    assert killed_shards == whole_shards and len(whole_shards) > 1
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed/curves.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))
