"""Writes synthetic hub checkpoints of every supported family, for tests, demonstrations and measurements.

Read in this order:

    configs           real and tiny configurations of each family
    inventory         names, shapes and spreads of the tensors to write
    values            random bf16 weights, reproducible from a seed
    shards            safetensors files, written block by block
    tokenizer_files   small working tokenizers, made offline
    writer            `synthesise`: all of the above into one directory

Called by `zipmoe.cli` (synth, demo) and by tests.
"""
