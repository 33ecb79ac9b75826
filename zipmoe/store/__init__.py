"""The packed store: a bf16 checkpoint with experts that are read by parts and recovered bit for bit.

In reading order:

    FORMAT.md        normative: files, records, codecs, manifest
    format           layout arithmetic, manifest, checksums
    read             direct reads of chunks into memory, recovery
    pack             packs a checkpoint, resumable
    verify           checks a store, compares it with its checkpoint

The expert store reads experts. The decoder reads the manifest. The router reads the manifest and the dense files.
`zipmoe pack`, `verify`, `inspect`, `calibrate`, `plan`, `simulate` and `bench` use stores too.
"""
