"""Finds every routed expert and every dense tensor of a hub checkpoint, without loading weights.

Read in this order:

    catalogue        start here; joins parameters, index and byte ranges for the packer
    model_type       the model type; refuses quantised checkpoints
    shard            the header of one safetensors file
    checkpoint       a checkpoint directory: configuration and all tensor entries
    skeleton         the model on the meta device: names, shapes, dtypes, ties
    key_plan         which checkpoint tensors make which parameter
    expert_modules   the modules and parameters that hold routed experts
    cast_piece       casts tensors while they are read
    row_trace        byte ranges of each expert matrix
    coverage         refuses a checkpoint that lacks a tensor
    dense_sources    dense tensors, converted as stock converts them

Called by `zipmoe.cli.stores` (pack, verify), `zipmoe.bench`, `zipmoe.model.build` and `zipmoe.model.synth`.
"""
