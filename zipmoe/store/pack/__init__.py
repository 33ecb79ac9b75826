"""Packs a checkpoint into a store: deterministic, parallel and resumable.

    writer                     `pack_store`: the order of all steps
    source, source_check       checkpoint as byte ranges, and its checks
    pieces                     reads byte ranges of checkpoint shards
    fingerprint, disk_space    identity of a checkpoint, size of its store
    expert_packer              one expert: split, compress, checksum
    expert_files, pipeline     experts in parallel, one file a layer
    dense_shards               dense tensors and model files
    partial_file               files that are renamed once durable
    journal, resume            progress on disk, and its replay
    progress                   counters for progress bars

`zipmoe pack`, `zipmoe demo` and calibration call `pack_store`. `zipmoe/model` describes checkpoints with the
classes of `source`.
"""
