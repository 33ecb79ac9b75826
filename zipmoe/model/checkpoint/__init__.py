"""Finds every routed expert and every dense tensor of a hub checkpoint, without loading weights.

Read in this order:

    catalogue        start here; joins parameters, index and byte ranges for the packer
    model_type       the model type; refuses quantised checkpoints
    dequantising     how a quantised checkpoint becomes one in bfloat16
    shard            the header of one safetensors file
    bin_shard        places of the tensors of one .bin shard
    memory_file      bytes of a .bin shard that cannot be mapped
    checkpoint       a checkpoint directory: configuration and all tensor entries
    skeleton         the model on the meta device: names, shapes, dtypes, ties
    key_plan         which checkpoint tensors make which parameter
    expert_modules   the modules and parameters that hold routed experts
    conversion       conversions in memory, by transformers' operations
    cast_piece       casts tensors while they are read
    transposed_piece transposes matrices while they are read
    line_pieces      rows and columns of tensors as pieces
    row_trace        where the rows of each expert matrix come from
    coverage         refuses a checkpoint that lacks a tensor
    dense_sources    dense tensors, converted as stock converts them

Called by `zipmoe.cli.stores` (pack, verify), `zipmoe.bench`, `zipmoe.model.build` and `zipmoe.model.synth`.
"""
