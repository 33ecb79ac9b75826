"""Options for the fields of protos/zipmoe/v1/generation.proto, in the groups that `--help` shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

_prompt = partial(Option, rich_help_panel="Prompt", show_default=False)
_sampling = partial(Option, rich_help_panel="Choosing tokens", show_default=False)
_stopping = partial(Option, rich_help_panel="Stopping", show_default=False)
_form = partial(Option, rich_help_panel="Form of the answer", show_default=False)
_output = partial(Option, rich_help_panel="Output", show_default=False)

PromptFile = Annotated[Path | None, _prompt(metavar="FILE", help="Read the prompt from a file; - is stdin.")]
TokenIds = Annotated[str | None, _prompt(metavar="1,2,3", help="Give the prompt as token ids.")]
Chat = Annotated[bool, _prompt("--chat", help="Put the prompt into the model's chat template.")]
System = Annotated[str | None, _prompt(metavar="TEXT", help="System message; the chat template is used.")]
Score = Annotated[Path | None, _prompt(metavar="FILE", help="Generate nothing: print the perplexity of a text.")]

Temperature = Annotated[float | None, _sampling(help="0 is greedy.")]
TopP = Annotated[float | None, _sampling(help="Keep the likeliest that make up this share, in (0, 1].")]
TopK = Annotated[int | None, _sampling(help="Keep the k likeliest; 0 keeps all.")]
MinP = Annotated[float | None, _sampling(help="Drop what is less likely than this share of the likeliest.")]
RepetitionPenalty = Annotated[float | None, _sampling(help="Above 1: repeat less.")]
PresencePenalty = Annotated[float | None, _sampling(help="Above 0: repeat no token that was generated, in [-2, 2].")]
FrequencyPenalty = Annotated[
    float | None, _sampling(help="Above 0: the same for each time that it was generated, in [-2, 2].")
]
LogitBias = Annotated[
    str | None, _sampling(metavar="ID=N,...", help="Add numbers in [-100, 100] to the logits of tokens.")
]
Seed = Annotated[int | None, _sampling(help="Make sampling repeatable.")]
Choices = Annotated[int, _sampling(help="So many answers; answer i has the seed plus i. With --json.")]
BestOf = Annotated[int | None, _sampling(help="Generate so many answers and report the likeliest.")]
ForcedTokenIds = Annotated[
    str | None, _sampling(metavar="1,2,3", help="Emit these first, whatever the model would choose.")
]

MaxNewTokens = Annotated[
    int | None,
    _stopping("--max-new-tokens", "-n", help="The most tokens to generate.  [default: up to the context's end]"),
]
MinNewTokens = Annotated[int, _stopping(help="No token ends the answer before so many.")]
Stop = Annotated[list[str] | None, _stopping(metavar="TEXT", help="End before this text; repeatable.")]
StopTokenIds = Annotated[str | None, _stopping(metavar="1,2,3", help="End at one of these tokens.")]
IgnoreEos = Annotated[bool, _stopping("--ignore-eos", help="Go on past the model's own end.")]

JsonSchema = Annotated[
    Path | None, _form("--json-schema", metavar="FILE", help="Answer with JSON that this schema describes.")
]
Regex = Annotated[str | None, _form("--regex", metavar="PATTERN", help="Answer with text that matches as a whole.")]
Choice = Annotated[list[str] | None, _form("--choice", metavar="TEXT", help="Answer with one of these; repeatable.")]

Logprobs = Annotated[bool, _output("--logprobs", help="Report log-probabilities; with --json.")]
TopLogprobs = Annotated[int, _output(help="Report so many alternatives to each token; with --json.")]
PromptLogprobs = Annotated[bool, _output("--prompt-logprobs", help="Report those of the prompt; with --json.")]
PromptTopLogprobs = Annotated[int, _output(help="Report so many alternatives to each prompt token; with --json.")]
SpecialTokens = Annotated[bool, _output("--special-tokens", help="Show special tokens by their names.")]
