"""The model card of the built-in model, made from its measured figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.corpus import HELD_OUT_BOOKS, HELD_OUT_SHARE
from demo.routing import GUESSES
from demo.train import Recipe

_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The built-in model of ZipMoE

A Mixture-of-Experts language model of 10.9 million weights (5.5 million of them used a token), in the format of
Qwen1.5-MoE (`qwen2_moe`): 6 layers, 16 routed experts a layer of which 4 are used, one shared expert, hidden size 256,
a byte-level BPE of 4,000 entries. It exists so that ZipMoE can be shown and measured on weights that were trained. It
continues texts and answers requests in the manner of three old books, knows nothing, and reasons about nothing.

It was trained on windows of 512 tokens. A chat template renders requests as it has seen them: `Genesis 1`,
`Define heart.`, `What does hacker mean?`

## Data and licence

| book | Debian package | why it may be used |
|---|---|---|
| King James Bible, 1611 | `bible-kjv-text` | copyright expired; the file is provided "for unrestricted use" |
| The Devil's Dictionary, Ambrose Bierce, 1911 | `dict-devil` | copyright expired; the file says "public domain" |
| The Jargon File 4.4.7, 2003 | `jargon-text` | its editors placed it in the public domain |

The weights are Apache-2.0, as the project. Held out, whole: {held_out_books}; and of the dictionaries each entry
whose title hashes to 0 modulo {held_out_share}. `held-out.jsonl` in the folder above has those texts.

## Training

    make train        # demo.train, then demo.report

The recipe: {recipe}. AdamW, cosine to zero, load-balancing loss a layer each; fp32 on the CPU, rounded to bf16 at the
end. {steps} steps. Held-out loss of 16 windows fell from {first_loss:.2f} to {last_loss:.2f} nats a token
(`curves.jsonl` in the folder above).

![training and held-out loss](curves.png)

## Figures

**Bits per byte on the held-out text** (windows of 512 tokens, half of them context; titles and ends count;
`xz -9e` takes all documents of a row as one stream):

{bits}

**Load of the experts** on the held-out text; entropy as a share of the largest possible, least and most used expert as
a multiple of the fair share:

{load}

**Guessing the next layer's experts** on {trace_tokens} held-out tokens one at a time: the share of layer l+1's four
experts that are among the four that its gate names for a hidden state of layer l (by chance: 0.25):

{guess}

**Entropy of the exponents**, bits a weight, over all matrices of a kind together and of each matrix alone:

{entropy}

**Stored size over bf16 size of the routed experts**, beside normally distributed weights of the same shapes (matrices
as small as these pay more for codecs' headers than a real model's):

{codecs}

All of it by `python -m demo.report`, in `figures.json` in the folder above.
"""


def write_card(figures: dict[str, Any], curves: list[dict[str, float]], folder: Path) -> None:
    """Writes `README.md` into the checkpoint's folder."""
    card = _CARD.format(
        held_out_books=", ".join(HELD_OUT_BOOKS),
        held_out_share=HELD_OUT_SHARE,
        recipe=", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(Recipe()).items()),
        steps=curves[-1]["step"],
        first_loss=curves[0]["held_out"],
        last_loss=curves[-1]["held_out"],
        trace_tokens="2,000",
        bits=_table(["text", "bytes", "model", "`xz -9e`"], figures["bits_per_byte"], ["bytes", "model", "xz"]),
        load=_table(
            ["layer", "entropy", "least used", "most used"],
            dict(enumerate(figures["expert_load"])),
            ["entropy", "least", "most"],
        ),
        guess="\n".join(
            ["| hidden state | share guessed |", "|---|---|"]
            + [f"| {GUESSES[name]} | {share:.3f} |" for name, share in figures["next_layer_guess"].items()]
        ),
        entropy=_table(
            ["kind", "weights", "together", "apart"], figures["exponent_entropy"], ["weights", "together", "apart"]
        ),
        codecs=_table(["codec", "trained", "normal"], figures["codecs"], ["trained", "synthetic"]),
    )
    (folder / "README.md").write_text(card)


def plot_curves(curves: list[dict[str, float]], path: Path) -> None:
    """Draws training and held-out loss over the steps; needs matplotlib (the `plot` extra)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    steps = [line["step"] for line in curves]
    axes.plot(steps, [line["loss"] for line in curves], label="training, one batch")
    axes.plot(steps, [line["held_out"] for line in curves], label="held out")
    axes.set(xlabel="step", ylabel="nats a token")
    axes.legend()
    figure.savefig(path, dpi=90)


def _table(head: list[str], rows: dict[Any, dict[str, float]], columns: list[str]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column]:,}" if isinstance(row[column], int) else f"{row[column]:.3f}" for column in columns]
        lines.append("| " + " | ".join([str(name), *cells]) + " |")
    return "\n".join(lines)
