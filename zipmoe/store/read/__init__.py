"""Reads chunks of experts from a store, and recovers matrices from chunks.

In reading order:

    record_file      one expert file, read with O_DIRECT
    reader           requests to the disk, checksums of chunks
    recovery         recovers a bf16 matrix from a record
    aligned_memory   memory for O_DIRECT
    read_defaults    I/O threads and request size

The expert store reads with `reader`. Calibration, `zipmoe bench`, `pack` (on resuming) and `verify` use parts of it.
"""
