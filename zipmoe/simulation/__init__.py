"""Replays routing traces under any cache policy in simulated time, and simulates the fetch order of a layer.

The modules, in reading order:

    trace                format of routing traces: read, write, check
    workload             synthetic traces of known statistics
    simulated_machine    I/O channel, workers and model's thread in simulated time
    simulator            replay of a trace through the brain and the simulated machine
    timeline             times of all tasks of a layer for a given order of fetches

Callers: `zipmoe simulate` (zipmoe/cli/planning), the router, which records traces in the format of `trace`, and the
policy and schedule benchmarks.
"""
