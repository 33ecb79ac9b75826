"""The store format as code: layout of records, manifest, and checksums. Nothing here reads an expert.

In reading order:

    layout           offsets of chunks in a record, from shapes and sizes
    entries          files, layers and experts of the manifest as JSON
    manifest         reads, checks and seals `manifest.json`
    fields           type and range checks of JSON values
    checksum         xxh3-64 of buffers and files
    inspection       sizes and ratios for `zipmoe inspect`

The rooms `read`, `pack` and `verify` build on it. All processes read manifests with it.
"""
