"""Conversations as stock renders them, and token ids as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zipmoe.model.conversation.chat_request import Turn
from zipmoe.model.text.tokenizer import Tokenizer


def turns(*pairs: tuple[str, Any]) -> list[Turn]:
    return [{"role": role, "content": content} for role, content in pairs]


def stock(tokenizer: Tokenizer, conversation: Sequence[Turn], **arguments: Any) -> list[int]:
    rendered: Any = tokenizer.backend.apply_chat_template(
        [dict(turn) for turn in conversation], add_generation_prompt=True, return_dict=True, **arguments
    )
    return list(rendered["input_ids"])


def shown(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return str(tokenizer.backend.decode(list(token_ids), clean_up_tokenization_spaces=False))
