"""Stock's generation settings: the defaults that `generate()` fills in, and the logits processors that it builds.

A request that sets nothing gets the tokens of stock's `generate()` under the checkpoint's generation_config.json. Only
the length differs: stock's default is 20 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from zipmoe.errors import InvalidRequest, UnsupportedModel

_STRATEGIES: Final[Mapping[str, tuple[object, ...]]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "prompt_lookup_num_tokens": (),
    "is_assistant": (False,),
    "use_mtp": (False,),
    "token_healing": (False,),
    "max_time": (),
}
"""Fields that choose another way of generating than one token after the other, and their values without effect.
None never has an effect."""


CORRECT_GENERATION_CONFIG: Final = (
    "correct or remove generation_config.json of the checkpoint, and pack the checkpoint into a new directory"
)
IGNORED_EFFECT: Final = "each answer is one sequence, generated token by token"


class ChoiceRules(NamedTuple):
    """Rules for choosing the tokens of one request.

    Attributes:
        processors: stock's logits processors, in stock's order.
        sample: whether the next token is drawn; otherwise the likeliest token is taken.
    """

    processors: LogitsProcessorList
    sample: bool


def ignored_settings(defaults: GenerationConfig) -> dict[str, object]:
    """Returns the settings of a generation_config.json that this system does not follow.

    Beam search and its relatives compute several sequences for one answer. They are left out, and the caller warns.
    """
    values = {name: getattr(defaults, name, None) for name in _STRATEGIES}
    return {name: value for name, value in values.items() if value is not None and value not in _STRATEGIES[name]}


def read_generation_config(path: Path, model: PreTrainedModel) -> GenerationConfig:
    """Reads the generation settings of a checkpoint or store; without a file those of the model's configuration.

    Raises:
        UnsupportedModel: transformers refuses generation_config.json.
    """
    if not (path / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(model.config)
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedModel(
            f"generation_config.json in {path} cannot be read: {error}", next_step=CORRECT_GENERATION_CONFIG
        ) from error


class StockGeneration:
    """Generation settings of one model, combined as stock combines them. Thread: safe from any."""

    def __init__(self, model: PreTrainedModel, defaults: GenerationConfig) -> None:
        """Reads the defaults of a model.

        Args:
            model: transformers' model; only its configuration is read.
            defaults: content of generation_config.json.

        Raises:
            UnsupportedModel: stock refuses the defaults, so that no request could be answered.
        """
        self._model: Any = model  # stubs take the methods of GenerationMixin for tensors
        self._defaults = GenerationConfig(**defaults.to_dict())  # type: ignore[no-untyped-call]
        for name in ignored_settings(defaults):
            setattr(self._defaults, name, None)
        try:
            self.rules({}, [0], 1)
        except (InvalidRequest, ValueError, TypeError) as error:
            raise UnsupportedModel(
                f"generation_config.json: {_first_line(error)}", next_step=CORRECT_GENERATION_CONFIG
            ) from error

    def resolve(self, given: Mapping[str, Any]) -> GenerationConfig:
        """Combines the fields of a request with the model's defaults, and these with stock's.

        Args:
            given: GenerationConfig's fields that the request sets, by name.
        """
        config: Any = GenerationConfig(**given)  # type: ignore[no-untyped-call]
        config.update(**self._defaults.to_dict(), defaults_only=True, allow_custom_entries=True)
        config.update(**self._defaults._get_default_generation_params(), defaults_only=True)
        assert isinstance(config, GenerationConfig)
        return config

    def decoder_input(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """Returns the decoder's tokens before the first choice: the prompt, or an encoder-decoder's start token."""
        if not self._model.config.is_encoder_decoder:
            return prompt_ids
        config = self._defaults
        candidates = (
            config.decoder_start_token_id,
            getattr(self._model.config, "decoder_start_token_id", None),
            config.bos_token_id,
        )
        return [next((token for token in candidates if token is not None), 0)]

    def rules(
        self,
        given: Mapping[str, Any],
        prompt_ids: Sequence[int],
        new_tokens: int,
        own: LogitsProcessorList | None = None,
    ) -> ChoiceRules:
        """Builds the rules of a request.

        Args:
            given: GenerationConfig's fields that the request sets, by name.
            prompt_ids: tokens of the prompt.
            new_tokens: the most tokens of the answer.
            own: processors of the request, as in the argument `logits_processor` of stock's `generate`. They act after
                penalties and bans, and before temperature and the filters of sampling.

        Raises:
            InvalidRequest: stock refuses the combination of fields; the message is stock's.
        """
        config = self.resolve(given)
        input_tokens = len(self.decoder_input(prompt_ids))
        encoder_ids = torch.tensor([list(prompt_ids)]) if self._model.config.is_encoder_decoder else None
        config.max_length = input_tokens + new_tokens
        if config.min_new_tokens is not None:
            config.min_length = input_tokens + config.min_new_tokens
        try:
            self._model._prepare_special_tokens(config, True, device="cpu", batch_size=1)
            processors = self._model._get_logits_processor(
                config, input_tokens, encoder_ids, logits_processor=own, device="cpu", model_kwargs={}
            )
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"the generation settings cannot be used: {_first_line(error)}") from error
        return ChoiceRules(processors, bool(config.do_sample))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
