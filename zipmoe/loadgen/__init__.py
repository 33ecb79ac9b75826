"""Puts load on a running server, and computes latency, throughput and goodput from the answers.

    session               one run: opens the server, creates jobs, sends them
    lengths               distributions of prompt and answer lengths
    jobs                  a job, random jobs, Poisson arrivals
    sharegpt, recorded    jobs from recorded dialogues
    server                interface of servers, and the router over gRPC
    http_stream, http_server   servers with OpenAI's API
    run                   open and closed loop over the jobs
    sample, statistics    times of one request; figures of a run
    plot                  latencies and course of a run as a PNG

`zipmoe.cli.benching.bench_serve` calls this room, in the process of the client.
"""
