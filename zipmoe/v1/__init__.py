"""The public generation protocol; every module here is generated from `protos/zipmoe/v1`."""
