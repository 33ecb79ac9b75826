"""Turns text into token ids, logits into tokens, and tokens into streamed text.

Read in this order:

    tokenizer   the store's tokenizer, chat template, streaming detokenizer, stop strings
    sampling    sampling parameters, and one request's choice of tokens from logits

Called by `services/router` and its engine.
"""
