"""Serves the built-in model under a chat template that has tools, with a context of 32,768 tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import pack_store

BUILT_IN: Final = Path(__file__).parents[2] / "demo" / "model"
CONTEXT_TOKENS: Final = 32_768
"""The first request of an agent takes a third of it. The model has learned from 2,048; it still computes."""

TEMPLATE: Final = """\
{%- set before = namespace(text='') -%}
{%- if tools -%}{%- set before.text -%}
You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write a call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.

{% endset -%}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set before.text = before.text + message.content + '\\n\\n' -%}
{%- elif message.role == 'user' -%}<|user|>{{ before.text + message.content }}{%- set before.text = '' -%}
{%- elif message.role == 'assistant' -%}<|assistant|>{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor -%}<|endoftext|>
{%- elif message.role == 'tool' -%}<|user|><tool_response>
{{ message.content }}
</tool_response>
{%- else -%}{{ raise_exception('this model knows the roles system, user, assistant and tool only') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


@dataclass(frozen=True)
class Served:
    """A gateway to try.

    Attributes:
        url: base URL with `/v1`.
        metrics_url: URL of the router's metrics; empty where nobody told.
    """

    url: str
    metrics_url: str = ""

    def model(self) -> str:
        """Returns the name of the served model."""
        with urllib.request.urlopen(f"{self.url}/models", timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])


def pack_calling_model(folder: Path) -> Path:
    """Packs the built-in model with the other template and context, and returns the store's folder.

    Args:
        folder: existing folder for checkpoint and store.
    """
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    for path in BUILT_IN.iterdir():
        if path.name not in ("chat_template.jinja", "config.json"):
            (checkpoint / path.name).symlink_to(path)
    config = json.loads((BUILT_IN / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT_TOKENS
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    pack_store(catalogue(checkpoint), folder / "store")
    return folder / "store"


@contextmanager
def served(store: Path, runtime: Path) -> Iterator[Served]:
    """Runs `zipmoe up --gateway` during the block."""
    options = ("--listen", "", "--metrics-port", "0", "--gateway", "--gateway-port", "0", "--device", "cpu")
    size = ("--threads", "1", "--kv-tokens", str(CONTEXT_TOKENS), "--max-prompt-tokens", str(CONTEXT_TOKENS))
    command = [
        sys.executable,
        "-m",
        "zipmoe",
        "up",
        str(store),
        *options,
        *size,
        "--runtime-dir",
        str(runtime),
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("zipmoe up has ended before it served")
            services = {each["name"]: each for each in json.loads(line)["services"]}
            metrics_port = services["router"]["metrics_port"]
            yield Served(services["gateway"]["endpoints"][0], f"http://127.0.0.1:{metrics_port}/metrics")
        finally:
            process.terminate()
