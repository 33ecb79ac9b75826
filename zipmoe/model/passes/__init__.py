"""Runs forward passes of the model: prompts that stop between layers, decode steps that many requests share.

In reading order:

    sequence           one request alone, by stock's own calls
    head               logits and log-probabilities from hidden states
    joined             requests with caches of their own, joined at experts and linears
    prompt_pass        one prompt, layer by layer
    prompts_together   several prompts through the layers, each expert fetched once
    ragged             decode steps of many requests; prepares prompts
    mtp_layers         drafts of many requests by layers for multi-token prediction
    page_reuse         which cached pages have the bits of a prompt that is computed at once
    side_by_side       decode steps of several answers of an encoder-decoder

`services/router/engine` calls these classes on the model's thread; `zipmoe/calibration` uses `sequence`.
"""
