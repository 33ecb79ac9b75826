"""The optional OpenAI-compatible HTTP front: a gRPC client of the router like any other."""
