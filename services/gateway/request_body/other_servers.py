"""Fields that clients of other servers send. Each passes with the values that change nothing there.

A client that was written for llama.cpp's server, vLLM, SGLang, TGI, Ollama, LM Studio, OpenRouter or a web interface
sends its own fields at their defaults in every request. A value that would change the answer is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only

LLAMA_CPP: Final[Mapping[str, BodyField]] = {
    "n_predict": only(-1),
    "n_keep": only(0, -1),
    "n_discard": only(0),
    "n_indent": only(0),
    "n_probs": only(0),
    "min_keep": only(0, 1),
    "t_max_predict_ms": only(0, -1),
    "t_max_prompt_ms": only(0, -1),
    "typical_p": only(1),
    "typ_p": only(1),
    "top_n_sigma": only(-1, 0),
    "tfs_z": only(1),
    "dynatemp_range": only(0),
    "xtc_probability": only(0),
    "mirostat": only(0),
    "dry_multiplier": only(0),
    "repeat_penalty": only(1),
    "grammar": only(""),
    "grammar_lazy": only(False),
    "json_schema": only({}),
    "lora": only([]),
    "post_sampling_probs": only(False),
    "return_progress": only(False),
    "return_tokens": only(False),
    # These act on a feature that is off, or on how the server works.
    "dynatemp_exponent": IGNORED,
    "xtc_threshold": IGNORED,
    "mirostat_tau": IGNORED,
    "mirostat_eta": IGNORED,
    "dry_base": IGNORED,
    "dry_allowed_length": IGNORED,
    "dry_penalty_last_n": IGNORED,
    "dry_sequence_breakers": IGNORED,
    "repeat_last_n": IGNORED,
    "cache_prompt": IGNORED,
    "id_slot": IGNORED,
    "slot_id": IGNORED,
    "n_cache_reuse": IGNORED,
    "timings_per_token": IGNORED,
    "penalize_nl": only(False),
}

VLLM: Final[Mapping[str, BodyField]] = {
    "use_beam_search": only(False),
    "length_penalty": only(1),
    "early_stopping": only(False),
    "include_stop_str_in_output": only(False),
    "spaces_between_special_tokens": only(True),
    "truncate_prompt_tokens": only(-1),
    "allowed_token_ids": only([]),
    "bad_words": only([]),
    "prompt_logprobs": only(),
    "detokenize": only(True),
    "return_tokens_as_token_ids": only(False),
    "return_token_ids": only(False),
    "documents": only([]),
    "chat_template": only(""),
    "guided_json": only(),
    "guided_grammar": only(""),
    "guided_whitespace_pattern": IGNORED,
    "guided_decoding_backend": IGNORED,
    "structured_outputs": only({}),
    "logits_processors": only([]),
    "mm_processor_kwargs": only({}),
    "include_reasoning": IGNORED,
    "priority": IGNORED,
    "request_id": IGNORED,
    "cache_salt": IGNORED,
    "kv_transfer_params": only({}),
    "vllm_xargs": only({}),
}

SGLANG: Final[Mapping[str, BodyField]] = {
    "regex": only(""),
    "ebnf": only(""),
    "no_stop_trim": only(False),
    "lora_path": only("", []),
    "session_params": only({}),
    "custom_logit_processor": only(""),
    "custom_params": only({}),
    "return_hidden_states": only(False),
    "return_cached_tokens_details": IGNORED,
    "stream_reasoning": IGNORED,
    "separate_reasoning": IGNORED,
    "rid": IGNORED,
}

TGI: Final[Mapping[str, BodyField]] = {
    "watermark": only(False),
    "truncate": only(),
    "return_full_text": only(False),
    "decoder_input_details": only(False),
    "details": only(False),
    "top_n_tokens": only(0),
    "adapter_id": only(""),
    "tool_prompt": IGNORED,
}

OLLAMA_AND_LM_STUDIO: Final[Mapping[str, BodyField]] = {
    "keep_alive": IGNORED,
    "think": only(False),
    "options": only({}),
    "format": only(""),
    "raw": only(False),
    "template": only(""),
    "context": only([]),
    "images": only([]),
    "num_predict": only(-1),
    "num_ctx": IGNORED,
    "ttl": IGNORED,
    "draft_model": IGNORED,
}

ROUTERS_AND_INTERFACES: Final[Mapping[str, BodyField]] = {
    "transforms": only([]),
    "models": only([]),
    "route": IGNORED,
    "provider": IGNORED,
    "plugins": only([]),
    "top_a": only(0),
    "reasoning": only({}),
    "usage": IGNORED,
    "chat_id": IGNORED,
    "session_id": IGNORED,
    "id": IGNORED,
    "background_tasks": IGNORED,
    "num_beams": only(1),
    "do_sample": only(),
    "extra_headers": IGNORED,
    "drop_params": IGNORED,
    "caching": IGNORED,
}

OTHER_SERVERS: Final[Mapping[str, BodyField]] = {
    **LLAMA_CPP,
    **VLLM,
    **SGLANG,
    **TGI,
    **OLLAMA_AND_LM_STUDIO,
    **ROUTERS_AND_INTERFACES,
}
