"""The service that clients talk to: attention, gating, expert FFN from shared memory, KV cache and all policy.

    __main__, boot   from settings to a running process: model, engine, decoder links, servers
    config, metrics  settings of the operator; series of requests and steps (of experts: experts/brain_metrics)
    service          gRPC in and out: submits each request to the engine and streams its events
    choices          several answers to one call, and the best of them
    engine/          the model thread: plans and computes steps, chooses tokens, emits events
    deadlines        deadlines of the requests that share a forward pass
    kept_note        findings about the passes of a store, kept between runs
    experts/         the expert provider: drives the brain and the decoders, waits for experts

The list follows a request from the gRPC call to the experts. Callers are `zipmoe.client`, the gateway and any other
gRPC client of `zipmoe.v1.GenerationService`.
"""
