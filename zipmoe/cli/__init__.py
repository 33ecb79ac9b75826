"""The command line: one file a verb. Nothing here imports torch, transformers or grpc before a verb needs it."""
