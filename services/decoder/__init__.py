"""Recovers bf16 tensors from chunks into the tensor arena: the decoder process.

In reading order:

    config, __main__              settings; boot of the process
    plan, job                     steps of one recovery; its progress
    pending, chunk_slots, outbox  recoveries that wait for reads; chunk slots; results to send
    session                       accepts or refuses operations; starts recoveries after reads
    store_link, single_session    link to the expert store; the one open session
    service, metrics              gRPC methods; Prometheus metrics
    message_stream, client        stream for the client; description and session, for the caller

`zipmoe/process/task_pool.py` has the workers that carry out jobs, `zipmoe/rpc/wire.py` converts all messages.

The caller is `services/router`. `services/expert_store` has the same file names for the same roles. One difference:
`RouterSession` here is one session, while `ReadSessions` there holds all sessions of a store.
"""
