"""The processes that an operator runs."""

import os

# Without its event engine gRPC handles a message on the thread that polled for it instead of passing it on to another:
# a third less for every message between processes (benchmarks/NOTES.md, "Fetch latency"). Read when gRPC is imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
