"""What a chat remembers."""

from __future__ import annotations

from collections.abc import Sequence

from zipmoe.cli.talking.conversation import Conversation
from zipmoe.client import Message

SYSTEM = Message("system", "s" * 10)


def ten_each(messages: Sequence[Message]) -> int:
    return 10 * len(messages)


def made(turns: int, system: Message | None = SYSTEM) -> Conversation:
    conversation = Conversation(system)
    for index in range(turns):
        conversation.answered(Message("user", f"q{index}"), Message("assistant", f"a{index}"))
    return conversation


def said(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.asking(Message("user", "now"))]


def test_turns_are_seen_in_order_behind_the_system_message() -> None:
    assert said(made(2)) == [SYSTEM.content, "q0", "a0", "q1", "a1", "now"]
    assert said(made(1, None)) == ["q0", "a0", "now"]


def test_reset_keeps_the_system_message() -> None:
    conversation = made(2)
    conversation.reset()
    assert said(conversation) == [SYSTEM.content, "now"]


def test_the_oldest_turns_are_forgotten_until_an_answer_fits() -> None:
    conversation = made(5)
    assert conversation.make_room(Message("user", "now"), 100, ten_each) == (40, 3)
    assert said(conversation) == [SYSTEM.content, "q3", "a3", "q4", "a4", "now"]


def test_nothing_is_forgotten_while_there_is_room() -> None:
    assert made(5).make_room(Message("user", "now"), 1000, ten_each) == (880, 0)


def test_what_does_not_fit_even_alone_is_left_to_the_router() -> None:
    conversation = made(2)
    assert conversation.make_room(Message("user", "now"), 15, ten_each) == (1, 2)
    assert said(conversation) == [SYSTEM.content, "now"]
