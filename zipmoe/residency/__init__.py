"""Decides which experts memory holds, which are evicted and which are fetched next.

Plain synchronous objects without I/O and without a clock, so every run can be replayed. In reading order:

    state, holding            residency states of an expert; slots of an expert
    pools                     vocabulary: pools, slots, urgencies, operations
    brain                     the entry point: events in, operations out
    slot_pool                 free, evictable, spare and transient slots of one pool
    slot_assignment           assigns slots to experts, evicts victims
    fetch_queue               waiting experts, operations under way
    decoder_choice            chooses the decoder that fetches an expert
    tasks, scheduler          cost of a fetch as a task graph; order of fetches
    guesses, guess_control    speculative prefetches; how far ahead they look
    fill                      fetches into free slots while the router is idle
    counters, describe        totals for metrics; the state in one line
    policies                  rank experts for eviction

Called by the router (`services/router/experts`), `zipmoe/simulation` and `benchmarks`. The store and the decoder use
the vocabulary of `pools`; `zipmoe/planning` uses `state` and `tasks`.
"""
