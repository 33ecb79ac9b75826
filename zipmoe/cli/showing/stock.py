"""Generates with stock transformers alone, as a reference: `python -m zipmoe.cli.showing.stock CHECKPOINT`.

Stock runs in a separate process, so that memory and imports stay apart from those of the services. The process reads
one JSON line on stdin, `[[prompt ids], token count, {"temperature", "top_p", "seed"}]`, and prints the generated ids as
JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from zipmoe.errors import InternalError
from zipmoe.model.numerics import prepare_environment
from zipmoe.process.python_command import python_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIMEOUT_S: Final = 300.0


class Draw(TypedDict):
    """Sampling settings; temperature 0 is greedy."""

    temperature: float
    top_p: float
    seed: int


class StockProcess:
    """A process with stock transformers, which loads the model while the services start."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wraps a started process; callers use `stock_process`."""
        self._process = process

    def generate(self, prompt_ids: list[int], token_count: int, draw: Draw) -> list[int]:
        """Generates once and waits for the end of the process.

        Args:
            prompt_ids: token ids of the prompt.
            token_count: the most tokens to generate; an end-of-sequence token ends the answer earlier.
            draw: sampling settings.

        Returns:
            The generated ids, an end-of-sequence id included.

        Raises:
            InternalError: the process failed; the message ends with the last line of its log.
        """
        output, log = self._process.communicate(json.dumps([prompt_ids, token_count, draw]) + "\n", timeout=_TIMEOUT_S)
        if self._process.returncode != 0:
            last = (log.strip().splitlines() or ["it said nothing"])[-1]
            raise InternalError(f"stock transformers ended with exit code {self._process.returncode}: {last}")
        return [int(token_id) for token_id in json.loads(output.splitlines()[-1])]


@contextmanager
def stock_process(checkpoint: Path) -> Iterator[StockProcess]:
    """Starts stock transformers on a hub-format checkpoint of a decoder-only model.

    The process is killed after the block.
    """
    child = ("-m", "zipmoe.cli.serving.child", str(os.getpid()))
    command = python_command(*child, "zipmoe.cli.showing.stock", str(checkpoint))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield StockProcess(process)
        finally:
            process.kill()


def load_stock(checkpoint: Path) -> PreTrainedModel:
    """Loads a model with eager attention and eager experts, in bfloat16."""
    prepare_environment()  # before the import of torch, because it sets how MKL computes
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    model.train(False)
    return model


def generate_stock(model: PreTrainedModel, prompt_ids: list[int], token_count: int, draw: Draw) -> list[int]:
    """Generates with `generate` of transformers; arguments and result as in `StockProcess.generate`."""
    import torch

    torch.manual_seed(draw["seed"])
    sampled = {"do_sample": True, "temperature": draw["temperature"], "top_p": draw["top_p"], "top_k": 0}
    ids = torch.tensor([prompt_ids])
    generate: Any = model.generate
    output = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=token_count,
        **(sampled if draw["temperature"] else {"do_sample": False}),
    )
    generated: list[int] = output[0, len(prompt_ids) :].tolist()
    return generated


def main() -> None:
    """Loads the model, then answers the request on stdin."""
    model = load_stock(Path(sys.argv[1]))
    prompt_ids, token_count, draw = json.loads(sys.stdin.readline())
    print(json.dumps(generate_stock(model, prompt_ids, token_count, draw)))


if __name__ == "__main__":
    main()
