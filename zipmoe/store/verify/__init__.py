"""Verifies a store: every checksum, all padding, every recovered tensor; on request against the checkpoint.

In reading order:

    verify           `verify_store` and `verify_against`: the whole run
    expert_check     one expert: chunks, padding, recovered tensors
    source_compare   layers and dense tensors against the checkpoint
    compare          first difference of two buffers

`zipmoe verify` calls it.
"""
