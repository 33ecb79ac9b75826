"""Turns text into token ids, logits into tokens, and tokens into streamed text.

Read in this order:

    tokenizer           the store's tokenizer, chat template, streaming detokenizer, stop strings
    vocabulary_files    files with a vocabulary, and packages that read them
    token_ids_only      the stand-in for a tokenizer that is missing
    load_once           loads a store's tokenizer in a process of its own
    penalties           logits processors that transformers lacks: bias, presence and frequency penalty
    grammar_source      grammars of constrained answers as text: JSON, expressions, choices
    call_forms          the text of tool calls around names and arguments
    grammar_parts       pieces of grammars that consist of text and special tokens
    tool_grammar        grammars of answers that have to be calls of tools
    element_arguments   the same for arguments that are elements and no JSON object
    grammar_trial       compiles a grammar in a process of its own
    grammar             compiled grammars; the progress of an answer through one
    grammar_mask        the mask of a grammar as one of stock's logits processors
    sampling            sampling parameters, and one request's choice of tokens from logits

Called by `services/router` and its engine. `zipmoe.cli.stores.pack` starts `load_once`, the
engine's `grammars` starts `grammar_trial`.
"""
