"""Loads the tokenizer of a store once and prints the outcome: `python -m zipmoe.model.text.load_once STORE`.

The outcome is one JSON line: `null`, or `{"problem": text, "next_step": text}`. A caller starts the module as a process
of its own, so that files that hang or kill the process harm nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from zipmoe.model.text.token_ids_only import TokenIdsOnly, load_tokenizer


def main() -> None:
    """Loads the tokenizer of the store that the command line names."""
    loaded = load_tokenizer(Path(sys.argv[1]))
    outcome = None
    if isinstance(loaded, TokenIdsOnly):
        outcome = {"problem": loaded.reason.message, "next_step": loaded.reason.next_step}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
