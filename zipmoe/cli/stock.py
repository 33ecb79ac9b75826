"""Greedy generation by stock transformers alone, to compare with: `python -m zipmoe.cli.stock CHECKPOINT IDS COUNT`.

A process of its own, so that its memory and its imports are not those of a service. Prints the generated ids as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from zipmoe.errors import InternalError
from zipmoe.model.numerics import prepare_environment

_TIMEOUT_S: Final = 300.0


def generate_stock(checkpoint: Path, prompt_ids: list[int], token_count: int) -> list[int]:
    """Generates greedily with eager attention and eager experts: one prefill, then one token at a time.

    Args:
        checkpoint: hub-format directory of a decoder-only model.
        prompt_ids: token ids of the prompt.
        token_count: the most tokens to generate; an end-of-sequence token ends it earlier.

    Returns:
        The generated ids, an end-of-sequence id included.
    """
    prepare_environment()  # before torch: it decides how MKL computes
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    model.train(False)
    ends = model.generation_config.eos_token_id
    end_ids = set(ends) if isinstance(ends, list) else {ends}
    generated: list[int] = []
    step, past = torch.tensor([prompt_ids]), None
    with torch.inference_mode():
        while len(generated) < token_count and not end_ids.intersection(generated[-1:]):
            output = model(input_ids=step, past_key_values=past, use_cache=True)
            past = output.past_key_values
            generated.append(int(output.logits[0, -1].argmax()))
            step = torch.tensor([generated[-1:]])
    return generated


def run_stock(checkpoint: Path, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
    """Has stock transformers generate greedily, in a process of its own.

    Raises:
        InternalError: it failed; the message ends with its last words.
    """
    module = [sys.executable, "-m", "zipmoe.cli.child", str(os.getpid()), "zipmoe.cli.stock"]
    arguments = [str(checkpoint), json.dumps(prompt_ids), str(max_new_tokens)]
    run = subprocess.run([*module, *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InternalError(f"stock transformers ended with exit code {run.returncode}: {last}")
    return [int(token_id) for token_id in json.loads(run.stdout.splitlines()[-1])]


def main() -> None:
    """Generates as the command line says."""
    checkpoint, prompt_ids, token_count = sys.argv[1:4]
    print(json.dumps(generate_stock(Path(checkpoint), json.loads(prompt_ids), int(token_count))))


if __name__ == "__main__":
    main()
