"""The model that a router serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Description of a router's model and of the limits of requests.

    Attributes:
        name: the store's name.
        family: transformers' `model_type`, for example `qwen2_moe`.
        store_digest: digest of the store's manifest, 16 hexadecimal digits.
        context_tokens: the longest prompt plus answer, in tokens; of an encoder-decoder, the longest answer.
        vocabulary_size: number of token ids.
        has_chat_template: whether conversations are understood.
        moe_layers: Mixture-of-Experts layers.
        experts_per_layer: routed experts of a layer.
        encoder_decoder: whether prompt and answer are separate sequences.
        version: the router's own version.
        compute_path: how requests are computed: `shared`, `joined` or `in turn`; empty from an older router.
        compute_path_reason: why no better path is taken; empty for `shared`.
        lazy_experts_reason: why the model's own code computes its experts as a whole layer; empty if one by one.
        recorded_layers: layers whose decode pass of one request is replayed from a recording.
        reasoning_format: how the model marks its reasoning, by the name of a format; empty if it is not known to.
        tool_call_format: how the model writes tool calls, by the name of a format; empty if none is known.
        template_names: names of the chat templates, if the checkpoint has several.
        eager_pass_reason: why other layers, or all, run the model's own code in such a pass; empty if none does.
    """

    name: str
    family: str
    store_digest: str
    context_tokens: int
    vocabulary_size: int
    has_chat_template: bool
    moe_layers: int
    experts_per_layer: int
    encoder_decoder: bool
    version: str
    compute_path: str = ""
    compute_path_reason: str = ""
    lazy_experts_reason: str = ""
    recorded_layers: int = 0
    eager_pass_reason: str = ""
    prompt_limit_tokens: int = 0
    reasoning_format: str = ""
    tool_call_format: str = ""
    template_names: tuple[str, ...] = ()
