"""Chat templates in the style of public ones, each with a tiny tokenizer that has its control tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from zipmoe.model.text.tokenizer import Tokenizer

CHATML = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write a call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

LLAMA = """\
{{- bos_token }}
{%- for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if message.tool_calls %}{"name": "{{ message.tool_calls[0].function.name }}", "parameters": \
{{ message.tool_calls[0].function.arguments | tojson }}}{% else %}{{ message.content | trim }}{% endif %}<|eot_id|>
{%- endfor %}
{%- if tools %}<|start_header_id|>system<|end_header_id|>

{{ tools | tojson }}<|eot_id|>{% endif %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}[INST] {{ message.content }}[/INST]
{%- elif message.role == 'system' %}[SYSTEM_PROMPT] {{ message.content }}[/SYSTEM_PROMPT]
{%- elif message.tool_calls %}[TOOL_CALLS] [
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids of calls have nine letters') }}{% endif %}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{%- if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS] {"content": {{ message.content | tojson }}}[/TOOL_RESULTS]
{%- else %} {{ message.content }}{{ eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('user and assistant have to take turns') }}{% endif %}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string %}{{ message.content | trim }}
{%- else %}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}
<end_of_turn>
{% endfor %}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}<\uff5cUser\uff5c>{{ message.content }}
{%- elif message.role == 'tool' %}<\uff5ctool▁output\uff5c>{{ message.content }}
{%- else %}<\uff5cAssistant\uff5c>{{ message.content.split('</think>')[-1] }}
{%- for call in message.tool_calls or [] %}
{{- '\\ncall ' + call.function.name + ': ' + call.function.arguments }}
{%- endfor %}
{{- eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<\uff5cAssistant\uff5c><think>
{% endif %}"""

HARMONY = """\
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}
# Valid channels: analysis, commentary, final.<|end|>
{%- if tools or messages[0].role in ['system', 'developer'] %}<|start|>developer<|message|>
{%- if messages[0].role in ['system', 'developer'] %}{{ messages[0].content }}{% endif %}
{%- for tool in tools or [] %}
type {{ tool.function.name }} = {{ tool.function.parameters | tojson }};{% endfor %}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}<|start|>user<|message|>{{ message.content }}<|end|>
{%- elif message.role == 'assistant' and message.tool_calls %}
{%- for call in message.tool_calls %}<|start|>assistant<|channel|>commentary to=functions.{{ call.function.name }} \
<|constrain|>json<|message|>{{ call.function.arguments | tojson }}<|call|>{% endfor %}
{%- elif message.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
{%- elif message.role == 'tool' %}<|start|>functions.{{ message.name | default('tool') }} to=assistant<|channel|>\
commentary<|message|>{{ message.content | tojson }}<|end|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

PARTS_ONLY = """\
{%- for message in messages %}<|{{ message.role }}|>
{%- for part in message.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@dataclass(frozen=True)
class Fixture:
    """A template with its control tokens; `plain` ones are added tokens that are not special."""

    template: str | dict[str, str]
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    kind: str = "bytes"


_HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
FIXTURES = {
    "chatml": Fixture(
        CHATML,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "  ", "<table>"),
    ),
    "llama": Fixture(
        LLAMA, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
    ),
    "mistral": Fixture(
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        kind="words",
    ),
    "gemma": Fixture(GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), ("\n\n",), kind="words"),
    "deepseek": Fixture(
        DEEPSEEK,
        ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<\uff5cUser\uff5c>",
         "<\uff5cAssistant\uff5c>", "<\uff5ctool▁output\uff5c>"),
        ("<think>", "</think>"),
    ),
    "harmony": Fixture(HARMONY, ("<|endoftext|>", *_HARMONY_TOKENS)),
    "parts": Fixture(PARTS_ONLY, ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")),
    "named": Fixture({"default": PARTS_ONLY, "tool_use": CHATML}, ("<|end|>", "<|im_start|>", "<|im_end|>")),
}  # fmt: skip


def raw_tokenizer(kind: str) -> RawTokenizer:
    """A tokenizer of single bytes, or of single characters behind word marks as SentencePiece makes them."""
    if kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = RawTokenizer(models.BPE({name: index for index, name in enumerate(alphabet)}, []))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        raw.decoder = decoders.ByteLevel()
        return raw
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocabulary = {name: index for index, name in enumerate(names)}
    raw = RawTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


def write_fixture(name: str, folder: Path) -> Tokenizer:
    """Writes the tokenizer files of a fixture and loads them as the router does."""
    fixture = FIXTURES[name]
    raw = raw_tokenizer(fixture.kind)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in fixture.special])
    raw.add_tokens([AddedToken(token, normalized=False) for token in fixture.plain])
    settings: Any = {"bos_token": fixture.special[0], "eos_token": fixture.special[1 % len(fixture.special)]}
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=fixture.template, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    return Tokenizer(folder)
