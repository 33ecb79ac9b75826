"""Turns text into token ids, logits into tokens, and tokens into streamed text.

Read in this order:

    tokenizer           the store's tokenizer, chat template, streaming detokenizer, stop strings
    vocabulary_files    files with a vocabulary, and packages that read them
    token_ids_only      the stand-in for a tokenizer that is missing
    load_once           loads a store's tokenizer in a process of its own
    penalties           logits processors that transformers lacks: bias, presence and frequency penalty
    sampling            sampling parameters, and one request's choice of tokens from logits

Called by `services/router` and its engine. `zipmoe.cli.stores.pack` starts `load_once`.
"""
