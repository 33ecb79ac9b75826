"""Measures the built-in model and writes its figures, its routing trace, its held-out texts and its model card.

    python -m demo.report --corpus "$(scripts/fetch_debian.sh bible-kjv-text dict-devil jargon-text)"

A few minutes on two cores. Everything lands in `demo/`; the card is `demo/model/README.md`.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from transformers import AutoTokenizer, Qwen2MoeForCausalLM  # noqa: E402

from demo.card import plot_curves, write_card  # noqa: E402
from demo.corpus import Document, read_corpus  # noqa: E402
from demo.figures import (  # noqa: E402
    bits_per_byte,
    codec_figures,
    exponent_figures,
    load_figures,
    rounded,
    windows,
)
from demo.routing import expert_loads, record_trace, write_trace  # noqa: E402
from demo.tokenizer import encode  # noqa: E402

FOLDER = Path(__file__).parent
TRACE_TOKENS, TRACE_PROMPT_TOKENS, TRACE_SEED = 2000, 32, 1


def main() -> None:
    """Writes all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that scripts/fetch_debian.sh printed")
    parser.add_argument("--work", type=Path, default=Path("build/demo-training"), help="where demo.train wrote curves")
    arguments = parser.parse_args()

    held_out = [document for document in read_corpus(arguments.corpus) if document.held_out]
    folder = FOLDER / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2MoeForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    ).eval()

    _write_lines([asdict(document) for document in held_out], FOLDER / "held-out.jsonl")
    trace, guesses = record_trace(model, _texts_to_trace(tokenizer, held_out), TRACE_TOKENS, TRACE_PROMPT_TOKENS)
    write_trace(trace, FOLDER / "routing-trace.jsonl")
    curves = [json.loads(line) for line in (arguments.work / "curves.jsonl").read_text().splitlines()]
    _write_lines(curves, FOLDER / "curves.jsonl")
    figures = rounded(
        {
            "bits_per_byte": bits_per_byte(model, tokenizer, held_out),
            "expert_load": load_figures(expert_loads(model, windows(tokenizer, held_out))),
            "next_layer_guess": guesses.shares(),
            "exponent_entropy": exponent_figures(model),
            "codecs": codec_figures(model),
        }
    )
    (FOLDER / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot_curves(curves, folder / "curves.png")
    write_card(figures, curves, folder)


def _texts_to_trace(tokenizer: Any, documents: list[Document]) -> list[list[int]]:
    """Held-out documents in random order, all books among them."""
    texts = [encode(tokenizer, document) for document in documents]
    random.Random(TRACE_SEED).shuffle(texts)
    return texts


def _write_lines(items: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))


if __name__ == "__main__":
    main()
