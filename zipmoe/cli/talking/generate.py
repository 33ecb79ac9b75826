"""`zipmoe generate`: streams one answer of a running router."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli.console import JsonFlag, err, facts, out, print_json
from zipmoe.cli.talking import generation_options as options
from zipmoe.cli.talking.answer import completion_json, stream_text, usage_json, usage_line
from zipmoe.cli.talking.prompt_source import check_text, parse_biases, parse_token_ids, read_text
from zipmoe.cli.talking.router_target import TargetOption, TlsCaOption, TokenFileOption, open_client
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.client import Completion, Constraint, GenerationClient, Prompt


def generate(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The prompt.", show_default=False)] = None,
    prompt_file: options.PromptFile = None,
    token_ids: options.TokenIds = None,
    chat: options.Chat = False,
    system: options.System = None,
    score: options.Score = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    choices: options.Choices = 1,
    best_of: options.BestOf = None,
    forced_token_ids: options.ForcedTokenIds = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = 0,
    stop: options.Stop = None,
    stop_token_ids: options.StopTokenIds = None,
    ignore_eos: options.IgnoreEos = False,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    logprobs: options.Logprobs = False,
    top_logprobs: options.TopLogprobs = 0,
    prompt_logprobs: options.PromptLogprobs = False,
    prompt_top_logprobs: options.PromptTopLogprobs = 0,
    special_tokens: options.SpecialTokens = False,
    target: TargetOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after so long.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Streams one answer of a running router to the terminal.

    Options that are not given come from the model's generation_config.json. A usage line follows on stderr.
    """
    from zipmoe.client import Output, Sampling, Stopping, complete_all

    output = Output(
        logprobs, top_logprobs, prompt_logprobs, prompt_top_logprobs, skip_special_tokens=not special_tokens
    )
    if (logprobs or top_logprobs or prompt_logprobs or prompt_top_logprobs) and not json_output:
        raise InvalidRequest("log-probabilities are shown in JSON only", next_step="add --json")
    if choices != 1 and not json_output:
        raise InvalidRequest("several answers are shown in JSON only", next_step="add --json")
    prompt = _prompt(text, prompt_file, token_ids, score, system, chat=chat)
    biases = {} if logit_bias is None else parse_biases(logit_bias)
    sampling = Sampling(
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        seed,
        presence_penalty,
        frequency_penalty,
        biases,
        choices,
        best_of,
    )
    stop_ids = tuple(parse_token_ids(stop_token_ids)) if stop_token_ids is not None else ()
    stopping = Stopping(max_new_tokens, tuple(stop or ()), stop_ids, ignore_eos, min_new_tokens)
    forced = parse_token_ids(forced_token_ids) if forced_token_ids is not None else []
    constraint = _constraint(json_schema, regex, choice)
    with open_client(target, token_file, tls_ca) as client:
        if score is not None:
            _print_score(score_text(client, prompt, timeout), json_output=json_output)
            return
        events = client.generate(
            prompt,
            sampling=sampling,
            stopping=stopping,
            output=output,
            forced_token_ids=forced,
            constraint=constraint,
            timeout_s=timeout,
        )
        if json_output:
            answers = [completion_json(each) for each in complete_all(events, choices)]
            print_json(answers[0] if choices == 1 else {"choices": answers})
        else:
            err().print(usage_line(stream_text(events).usage), style="dim", soft_wrap=True)


def _constraint(json_schema: Path | None, regex: str | None, choice: list[str] | None) -> Constraint | None:
    from zipmoe.client import Constraint

    if sum(each is not None for each in (json_schema, regex, choice)) > 1:
        raise InvalidRequest("--json-schema, --regex and --choice exclude each other", next_step="give one of them")
    if json_schema is not None:
        return Constraint(json_schema=read_text(json_schema, "schema file"))
    if regex is not None:
        return Constraint(regex=regex)
    return None if choice is None else Constraint(choice=tuple(choice))


def _prompt(
    text: str | None,
    prompt_file: Path | None,
    token_ids: str | None,
    score: Path | None,
    system: str | None,
    *,
    chat: bool,
) -> Prompt:
    from zipmoe.client import Message

    if sum(given is not None for given in (text, prompt_file, token_ids, score)) != 1:
        raise InvalidRequest(
            "exactly one prompt is needed",
            next_step="give TEXT, --prompt-file FILE, --token-ids 1,2,3 or --score FILE",
        )
    if token_ids is not None:
        if chat or system is not None:
            raise InvalidRequest("a chat template cannot be put around token ids", next_step="give a text")
        return parse_token_ids(token_ids)
    path = prompt_file or score
    words = check_text(text if text is not None else read_text(path) if path is not None else "")
    if not chat and system is None:
        return words
    messages = [] if system is None else [Message("system", check_text(system))]
    return [*messages, Message("user", words)]


def score_text(client: GenerationClient, prompt: Prompt, timeout_s: float | None) -> Completion:
    """Scores the tokens of a text without generating a token.

    Raises:
        InvalidRequest: the text has fewer than two tokens; the first token has no probability.
    """
    from zipmoe.client import Output, Stopping, complete

    output = Output(prompt_logprobs=True)
    scored = complete(client.generate(prompt, stopping=Stopping(max_new_tokens=0), output=output, timeout_s=timeout_s))
    if not scored.prompt_logprobs:
        raise InvalidRequest(f"a text of {scored.usage.prompt_tokens} tokens cannot be scored, 2 are needed")
    return scored


def _print_score(scored: Completion, *, json_output: bool) -> None:
    logprobs = scored.prompt_logprobs
    mean = math.fsum(logprobs) / len(logprobs)
    result: dict[str, Any] = {
        "prompt_tokens": scored.usage.prompt_tokens,
        "scored_tokens": len(logprobs),
        "mean_logprob": mean,
        "perplexity": math.exp(-mean),
    }
    if json_output:
        print_json({**result, "prompt_logprobs": list(logprobs), **usage_json(scored.usage)})
        return
    out().print(facts("score", {"perplexity": f"{result['perplexity']:.4f}", "tokens": result["scored_tokens"]}))
    err().print(usage_line(scored.usage), style="dim", soft_wrap=True)
