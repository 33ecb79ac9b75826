from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.model.conversation.templates import FIXTURES, write_fixture
from zipmoe.model.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tokenizer]:
    return {name: write_fixture(name, tmp_path_factory.mktemp(name)) for name in FIXTURES}
