"""Computes attention over KV pages, each request over its own context, with the bits of stock `transformers`.

In reading order:

    kv_pool            memory of keys and values in pages; places of a sequence
    ragged_attention   cache of one pass; stock's eager attention, request by request
    row_attention      kernels for single rows, where a self-test finds stock's bits
    softmax            softmax of single rows, without OpenMP
    attention_draws    drawn numbers of that self-test
    latent             cache of one pass where latents are kept

The only caller is `zipmoe/model/passes`, which makes the cache of a pass and runs the model with that cache.
"""
