"""The internal protocol of the three services; the modules of `v1` are generated from `protos/zipmoe/internal/v1`."""
