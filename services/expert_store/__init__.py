"""Reads E-chunks and SM-chunks from disk into the chunk arenas: the expert store process.

In reading order:

    config, __main__        settings; boot of the process
    operations, wire        results of a session; conversion of protocol messages
    plan, job, workers      steps of one read; its progress; threads that carry out jobs
    session                 accepts or refuses operations; leases slots to reads
    service, metrics        gRPC methods; Prometheus metrics
    loop_queue, busy_clock  events from threads to the event loop; busy time of the disk
    client                  description and session, for the caller

The caller is `services/decoder`, which has the same file names for the same roles. One difference: `ReadSessions` here
holds all sessions of a store, while `RouterSession` there is one session.
"""
