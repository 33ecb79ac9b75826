"""Renders conversations by the checkpoint's chat template, and mends forms of conversations that a template refuses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.answer_formats import AnswerFormats, AnswerReading, answer_formats
from zipmoe.model.conversation.chat_request import ChatChanges, ChatRequest, RenderedChat, Turn
from zipmoe.model.conversation.control_tokens import ControlTokenBreaker, control_tokens
from zipmoe.model.conversation.refused_forms import merged_system, with_written_arguments
from zipmoe.model.conversation.template_fit import TemplateFit, template_fit
from zipmoe.model.text.token_ids_only import AnyTokenizer, TokenIdsOnly

_TAIL_TOKENS: Final = 16
"""Tokens at the end of a prompt in which the marker that opens reasoning is looked for."""

_TRUSTED_ROLES: Final = frozenset({"system", "developer", "assistant"})
"""Roles whose contents are the operator's and the server's own, control tokens included."""

_KNOWN_ROLES: Final = _TRUSTED_ROLES | {"user", "tool"}


class ConversationRenderer:
    """Makes prompts of conversations. Thread: one at a time."""

    def __init__(self, tokenizer: AnyTokenizer, *, trust_control_tokens: bool = False) -> None:
        """Does not touch the tokenizer yet.

        Args:
            tokenizer: the tokenizer of the store.
            trust_control_tokens: leaves control tokens in all contents, as stock does.
        """
        self._tokenizer = tokenizer
        self._trust = trust_control_tokens
        self._fits: dict[str, TemplateFit] = {}

    @property
    def template_names(self) -> tuple[str, ...]:
        """Names of the chat templates, if there are several."""
        templates = None if isinstance(self._tokenizer, TokenIdsOnly) else self._tokenizer.backend.chat_template
        return tuple(sorted(templates)) if isinstance(templates, dict) else ()

    @property
    def formats(self) -> AnswerFormats:
        """The formats of answers, found from all templates."""
        if not self._tokenizer.has_chat_template:
            return AnswerFormats()
        templates: Any = self._backend.chat_template
        return self._formats("\n".join(templates.values()) if isinstance(templates, dict) else templates)

    def render(self, asked: ChatRequest) -> RenderedChat:
        """Renders a conversation up to the start of the answer.

        Raises:
            InvalidRequest: there is no turn or no such template, the template refuses the conversation, or the model
                has no tokenizer.
        """
        template = self._template(asked)
        tokens = control_tokens(self._special, self._added, template)
        breaker = ControlTokenBreaker({} if self._trust else self._named(tokens), self._ids_of)
        fit = self._fit(template)
        turns = [self._turn(turn, tokens, breaker, fit) for turn in asked.turns]
        tools = [breaker.value(tool) for tool in asked.tools]
        ids, merged = self._first_accepted(replace(asked, turns=turns, tools=tools), template)
        formats = self._formats(template)
        return RenderedChat(
            tuple(ids),
            ChatChanges(merged, tuple(sorted(breaker.broken)), bool(tools) and "tools" not in template),
            AnswerReading(formats, self._opens_reasoning(ids, formats), _offered(asked.tools)),
        )

    @property
    def _backend(self) -> PreTrainedTokenizerBase:
        if isinstance(self._tokenizer, TokenIdsOnly):
            self._tokenizer.require_text()
        return self._tokenizer.backend

    @cached_property
    def _special(self) -> frozenset[str]:
        backend = self._backend
        added = (str(token) for token in backend.added_tokens_decoder.values() if token.special)
        return frozenset(added) | frozenset(map(str, backend.all_special_tokens))

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(str(token) for token in self._backend.added_tokens_decoder.values())

    @cached_property
    def _reserved(self) -> frozenset[str]:
        """Names that are no variables of a template: parameters of stock's own function."""
        parameters = inspect.signature(self._backend.apply_chat_template).parameters
        return frozenset(parameters) | {"messages"}

    def _named(self, tokens: frozenset[str]) -> dict[str, int]:
        ids: Any = self._backend.convert_tokens_to_ids
        return {token: int(ids(token)) for token in tokens}

    def _ids_of(self, text: str) -> list[int]:
        return [int(token_id) for token_id in self._backend(text, add_special_tokens=False)["input_ids"]]

    def _formats(self, template: str) -> AnswerFormats:
        return answer_formats(template, self._special | self._added)

    def _template(self, asked: ChatRequest) -> str:
        """Returns the source of the chat template, after the checks that need no template."""
        if not asked.turns:
            raise InvalidRequest("the conversation has no message")
        self._tokenizer.require_text()
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest("the model has no chat template", next_step="send the prompt as text or token ids")
        if asked.template and asked.template not in self.template_names:
            names = ", ".join(self.template_names)
            raise InvalidRequest(
                f"the model has no chat template of the name {asked.template[:64]!r}",
                next_step=f"its templates are {names}" if names else "leave the name out: the model has one template",
            )
        for name in asked.variables:
            if name in self._reserved or not name.isidentifier() or name.startswith("_"):
                raise InvalidRequest(f"{name[:64]!r} cannot be a variable of the chat template")
        try:
            return self._backend.get_chat_template(asked.template or None, _or_none(asked.tools))
        except ValueError as error:  # several templates, and none is the default
            raise InvalidRequest(f"the chat template cannot be chosen: {error}") from error

    def _fit(self, template: str) -> TemplateFit:
        if template not in self._fits:
            self._fits[template] = template_fit(lambda turns: self._text(turns, template))
        return self._fits[template]

    def _turn(
        self, turn: Turn, tokens: frozenset[str], breaker: ControlTokenBreaker, fit: TemplateFit
    ) -> dict[str, Any]:
        """Returns a turn with contents that the template takes, without control tokens of users and tools."""
        role = turn["role"]
        # A template may write a role between the brackets of a marker.
        if role not in _KNOWN_ROLES and (not role.isidentifier() or any(role in token for token in tokens)):
            raise InvalidRequest(f"{role[:64]!r} is no role of a conversation")
        texts = turn.get("content", "")
        if role in _TRUSTED_ROLES:
            return {**turn, "content": fit.content(texts)}
        safe = {key: breaker.value(value) for key, value in turn.items() if key != "content"}
        return {**safe, "content": fit.content(breaker.text(texts) if isinstance(texts, str) else breaker.texts(texts))}

    def _first_accepted(self, asked: ChatRequest, template: str) -> tuple[list[int], bool]:
        """Returns the ids of the first form that the template accepts, and whether system messages are merged in it.

        Raises:
            InvalidRequest: no form is accepted; the message is that of the first.
        """
        forms: list[tuple[Sequence[Turn], bool]] = [(asked.turns, False)]
        if (merged := merged_system(asked.turns)) is not None:
            forms.append((merged, True))
        forms += [(written, is_merged) for form, is_merged in forms if (written := with_written_arguments(form))]
        first_error: Exception | None = None
        for form, is_merged in forms:
            try:
                return self._ids(replace(asked, turns=form), template), is_merged
            except Exception as error:  # any exception of jinja2 or of a template means a refused form
                first_error = first_error or error
        raise InvalidRequest(f"the model's chat template refuses the conversation: {first_error}") from first_error

    def _ids(self, asked: ChatRequest, template: str) -> list[int]:
        rendered: Any = self._backend.apply_chat_template(
            [dict(turn) for turn in asked.turns],
            tools=_or_none(asked.tools),
            chat_template=template,
            add_generation_prompt=asked.opens_answer,
            continue_final_message=asked.continues,
            tokenize=True,
            return_dict=True,
            **asked.variables,
        )
        return [int(token_id) for token_id in rendered["input_ids"]]

    def _text(self, turns: Sequence[Turn], template: str) -> str:
        text = self._backend.apply_chat_template(
            [dict(turn) for turn in turns], chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return str(text)

    def _opens_reasoning(self, ids: Sequence[int], formats: AnswerFormats) -> bool:
        if formats.reasoning is None:
            return False
        tail = self._backend.decode(
            list(ids[-_TAIL_TOKENS:]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(tail).rstrip().endswith(formats.reasoning.opening)


def _offered(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    functions = [tool.get("function", tool) for tool in tools]
    return {
        str(function.get("name")): function.get("parameters") or {}
        for function in functions
        if isinstance(function, Mapping)
    }


def _or_none(tools: Sequence[Any]) -> Any:
    return list(tools) or None
