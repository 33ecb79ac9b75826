"""lm-eval's `local-completions` against the gateway, beside lm-eval's numbers from stock transformers, offline.

    python -m benchmarks.lm_eval_scores --lm-eval VENV/bin/lm_eval

`VENV` is an environment of its own with `pip install 'lm_eval[api]' transformers` (lm-eval reads the tokenizer with
transformers, which its extra `api` leaves out); torch is not needed, and nothing of it is needed elsewhere. The script
packs the built-in model, serves it with `zipmoe up --gateway`, writes a task with continuations of held-out text as
local JSON lines, and runs `lm_eval` with `HF_HUB_OFFLINE=1`. lm-eval scores a continuation by `echo`, `logprobs: 1` and
`max_tokens: 1`. The script scores the same continuations with stock transformers by lm-eval's rules, and prints both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zipmoe.model.numerics import prepare_environment

MODEL = Path(__file__).parents[1] / "demo" / "model"
HELD_OUT = Path(__file__).parents[1] / "demo" / "held-out.jsonl"
TASK = "held_out"
QUESTIONS, CHOICES = 12, 4
CONTEXT_WORDS, ENDING_WORDS = 24, 6

_TASK_YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@dataclass(frozen=True)
class Question:
    """A beginning of a text, its true ending among others, and the place of the true one."""

    context: str
    endings: Sequence[str]
    label: int


def questions() -> list[Question]:
    """Makes questions from held-out text: the endings of other texts are the wrong answers."""
    texts = [json.loads(line)["text"].split() for line in HELD_OUT.read_text().splitlines()]
    long = [words for words in texts if len(words) > CONTEXT_WORDS + ENDING_WORDS][: QUESTIONS + CHOICES]
    contexts = [" ".join(words[:CONTEXT_WORDS]) for words in long]
    endings = [" ".join(words[CONTEXT_WORDS : CONTEXT_WORDS + ENDING_WORDS]) for words in long]
    made = []
    for number in range(min(QUESTIONS, len(long) - CHOICES)):
        offered = endings[number : number + CHOICES]
        label = number % CHOICES
        offered[0], offered[label] = offered[label], offered[0]
        made.append(Question(contexts[number], offered, label))
    return made


def _stock_model() -> Any:
    """Returns stock transformers' model, with eager attention and eager experts."""
    import torch
    from transformers import AutoConfig

    from zipmoe.model.stock.model_class import computes_eagerly, text_model_class

    model_class, config = text_model_class(computes_eagerly(AutoConfig.from_pretrained(MODEL)))
    return model_class.from_pretrained(MODEL, config=config, dtype=torch.bfloat16).eval()


@contextmanager
def served(store: Path, runtime: Path) -> Iterator[str]:
    """Runs `zipmoe up --gateway` during the block, and yields the base URL."""
    options = ("--runtime-dir", str(runtime), "--listen", "", "--metrics-port", "0", "--gateway", "--gateway-port", "0")
    command = [sys.executable, "-m", "zipmoe", "up", str(store), *options, "--threads", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            services = json.loads(process.stdout.readline())["services"]
            yield next(each for each in services if each["name"] == "gateway")["endpoints"][0]
        finally:
            process.terminate()


def with_greedy_endings(asked: Sequence[Question]) -> list[Question]:
    """Gives every third question another ending, stock's greedy one: lm-eval's `is_greedy` is true for some endings."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, stock = AutoTokenizer.from_pretrained(MODEL), _stock_model()
    made = list(asked)
    for number in range(0, len(made), 3):
        context = tokenizer(made[number].context, return_tensors="pt")
        with torch.inference_mode():
            ids = stock.generate(**context, max_new_tokens=ENDING_WORDS, do_sample=False, repetition_penalty=1.0)
        ending = tokenizer.decode(ids[0, context["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        made[number] = replace(made[number], endings=[*made[number].endings, ending])
    return made


def stock_scores(asked: Sequence[Question]) -> list[list[tuple[float, bool]]]:
    """Scores each ending with stock transformers: sum of log-probabilities, and whether it is the greedy one."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, stock = AutoTokenizer.from_pretrained(MODEL), _stock_model()
    scores = []
    for question in asked:
        row = []
        for ending in question.endings:
            context = tokenizer(question.context)["input_ids"]
            whole = tokenizer(f"{question.context} {ending}")["input_ids"]
            with torch.inference_mode():
                logits = stock(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            places = range(len(context) - 1, len(whole) - 1)
            told = [float(logits[place, whole[place + 1]]) for place in places]
            greedy = all(int(logits[place].argmax()) == whole[place + 1] for place in places)
            row.append((sum(told), greedy))
        scores.append(row)
    return scores


def lm_eval_scores(program: Path, url: str, model: str, folder: Path, asked: Sequence[Question]) -> dict[str, Any]:
    """Runs lm-eval, and returns its results with the scores of every ending under `samples`."""
    data, tasks, output = folder / "data.jsonl", folder / "tasks", folder / "out"
    data.write_text("".join(json.dumps(vars(question)) + "\n" for question in asked))
    tasks.mkdir(exist_ok=True)
    (tasks / f"{TASK}.yaml").write_text(_TASK_YAML.format(task=TASK, data=data))
    arguments = f"model={model},base_url={url}/completions,tokenizer={MODEL},num_concurrent=2,max_retries=1"
    command = [
        str(program), "--model", "local-completions", "--model_args", arguments, "--tasks", TASK,
        "--include_path", str(tasks), "--output_path", str(output), "--log_samples", "--batch_size", "4",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}
    subprocess.run(command, check=True, env={**os.environ, **offline, "OPENAI_API_KEY": "none"})
    (results,) = output.rglob("results_*.json")
    (samples,) = output.rglob("samples_*.jsonl")
    told: dict[str, Any] = json.loads(results.read_text())["results"][TASK]
    told["samples"] = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda each: each["doc_id"])
    return told


def check_environment(program: Path) -> None:
    """Ends the script unless lm-eval and the tokenizer's package are there: without, lm-eval ends with a traceback."""
    python = program.parent / "python"
    command = [str(python), "-c", "import lm_eval, tenacity, transformers"]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"{python}: {' '.join(last)}; run {python} -m pip install 'lm_eval[api]' transformers")


def main() -> None:
    """Compares and prints; ends with an error if a score differs."""
    prepare_environment()  # before torch is imported
    from zipmoe.model.checkpoint.catalogue import catalogue
    from zipmoe.store.pack.writer import pack_store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", type=Path, required=True, help="the program lm_eval of an environment of its own")
    program = parser.parse_args().lm_eval
    check_environment(program)
    asked = with_greedy_endings(questions())
    with tempfile.TemporaryDirectory(prefix="lme") as name:
        folder = Path(name)
        pack_store(catalogue(MODEL), folder / "store")
        with served(folder / "store", folder / "r") as url:
            told = lm_eval_scores(program, url, "store", folder, asked)
    stock = stock_scores(asked)
    worst = 0.0
    for sample, wanted in zip(told["samples"], stock, strict=True):
        for (response,), (logprob, greedy) in zip(sample["resps"], wanted, strict=True):
            worst = max(worst, abs(float(response[0]) - logprob))
            assert str(response[1]) == str(greedy), (response, logprob, greedy)
    right = sum(
        max(range(len(row)), key=lambda place: row[place][0]) == question.label
        for row, question in zip(stock, asked, strict=True)
    )
    print(f"questions {len(asked)}, endings {sum(len(row) for row in stock)}")
    print(f"acc: lm-eval over HTTP {told['acc,none']:.4f}, stock {right / len(asked):.4f}")
    print(f"largest difference of a summed log-probability: {worst:.2e}; is_greedy equal in all")
    print(f"greedy endings: {sum(greedy for row in stock for _, greedy in row)}")
    assert abs(told["acc,none"] - right / len(asked)) < 1e-9 and worst < 1e-4


if __name__ == "__main__":
    main()
