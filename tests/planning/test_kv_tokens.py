"""The default size of the KV cache: the context, as far as a token takes at most 5 % longer."""

from __future__ import annotations

import pytest

from zipmoe.planning.kv_tokens import affordable_tokens, context_of, kv_options


def speeds(*percent: float | None) -> dict[int, float | None]:
    return {4096 << place: None if each is None else 1 + each / 100 for place, each in enumerate(percent)}


@pytest.mark.parametrize(
    ("context", "seconds", "chosen"),
    [
        (32768, speeds(0, 1, 2, 4.9), 32768),
        (32768, speeds(0, 1, 2, 5.1), 16384),
        (32768, speeds(0, 7, 2, 3), 4096),  # a smaller one that is slower is no reason to go further
        (32768, speeds(0, 1, None, None), 8192),
        (32768, speeds(None, None, None, None), 4096),
        (2048, speeds(0), 4096),
        (0, speeds(0), 4096),
        (10_000, {**speeds(0, 1), 10_016: 1.02}, 10_016),  # whole pages
    ],
)
def test_the_context_is_cached_as_far_as_it_costs_little(
    context: int, seconds: dict[int, float | None], chosen: int
) -> None:
    options = kv_options(context, lambda tokens: 2 * tokens, seconds.__getitem__)
    assert [option.tokens for option in options] == sorted(seconds)
    assert all(option.nbytes == 2 * option.tokens for option in options)
    assert affordable_tokens(options) == chosen


def test_the_context_is_what_the_configuration_says() -> None:
    assert context_of({"max_position_embeddings": 2048, "n_positions": 4}) == 2048
    assert context_of({"max_position_embeddings": None, "n_positions": 512}) == 512
    assert context_of({}) == 0
