"""The processes that an operator runs, installed as the package `zipmoe.services`.

    gateway       optional HTTP front: OpenAI's API as a gRPC client of the router
    router        generation: attention, gating, expert FFN, KV cache and all policy
    decoder       recovers bf16 tensors from chunks into the tensor arena
    expert_store  reads chunks from disk into the E arena and the SM arena

The list follows a request from the client to the disk. The router calls the decoder through
`zipmoe.services.decoder.client`. The decoder calls the expert store through `zipmoe.services.expert_store.client`.
`zipmoe up` starts expert store, decoder and router, and with `--gateway` the gateway. A verb of `zipmoe` starts each
process alone.
"""

import os

# Without its event engine, gRPC handles a message on the thread that polled for it and does not pass it to another
# thread. A message between processes then takes about a third less time (benchmarks/NOTES.md, "Fetch latency").
# gRPC reads the variable when it is imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
