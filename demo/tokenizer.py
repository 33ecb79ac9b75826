"""The built-in model's tokenizer: byte-level BPE learnt from the training documents, and its chat template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.corpus import Document

ENTRIES = 4000
END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{%- set system = namespace(text='') -%}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set system.text = system.text + message.content + '\\n\\n' -%}"
    "{%- elif message.role == 'user' -%}<|user|>{{ system.text + message.content }}{%- set system.text = '' -%}"
    "{%- elif message.role == 'assistant' -%}<|assistant|>{{ message.content }}<|endoftext|>"
    "{%- else -%}{{ raise_exception('this model knows the roles system, user and assistant only') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""The model has learnt no system messages: their text goes before the user's."""


def train_tokenizer(documents: Iterable[Document]) -> PreTrainedTokenizerFast:
    """Learns the merges; the same documents give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.plain for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[int]:
    """A document as the chat template renders it: `<|user|>title<|assistant|>text<|endoftext|>`."""
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    title, text = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (document.title, document.text))
    return [user, *title, assistant, *text, end]
