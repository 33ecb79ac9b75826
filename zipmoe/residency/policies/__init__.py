"""Ranks experts for eviction: each policy decides which resident experts are worth keeping.

In reading order:

    base                contract between brain and policy
    registry            policies by name, and the default
    lru, lfu, fifo      classic policies
    marking             randomised marking
    zipmoe              the paper's ranking by popularity
    averages, bursts    two kinds of forecast of an expert's uses
    likely_uses         mixes the forecasts by their past success
    adaptive            the default policy, on top of `likely_uses`
    belady              offline optimum, for simulator and benchmarks

The brain calls a policy. The router, `zipmoe/simulation` and `benchmarks` create policies.
"""
