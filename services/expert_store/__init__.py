"""Reads E-chunks and SM-chunks from disk into the chunk arenas: the expert store process.

In reading order:

    config, __main__           settings; boot of the process
    plan, job                  steps of one read; its progress
    measured_disk, busy_clock  work of an I/O thread; busy time of the disk
    session                    accepts or refuses operations; leases slots to reads
    service, metrics           gRPC methods; Prometheus metrics
    client                     description and session, for the caller

`zipmoe/process/task_pool.py` has the threads that carry out jobs, `zipmoe/rpc/wire.py` converts all messages.

The caller is `services/decoder`, which has the same file names for the same roles. One difference: `ReadSessions` here
holds all sessions of a store, while `RouterSession` there is one session.
"""
