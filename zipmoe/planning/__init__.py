"""Plans the memory of one machine: bytes of each process, slots of each pool, residency state of each expert.

The modules, in reading order:

    pool_sizes, memory_split               one memory budget, split over three processes
    kv_bytes, workspace                    bytes of the cache, of a prompt's activations, of copied experts
    decayed_uses, popularity               how often decode steps use each expert
    conditional_poisson                    probability distribution of the chosen experts
    costs, expert_costs                    measured costs of a machine and of an expert
    layer_time, layer_options, knapsack    time of a layer, options, choice within a budget
    cache_plan, plan, forecast             the cache plan, the planner, TPOT and TTFT
    kv_tokens                              tokens of KV cache that cost little speed
    plan_watch                             decides when to plan again

Callers: all three services, directly and through their configuration (zipmoe/process), zipmoe/model (sizes of KV cache
and attention), zipmoe/calibration, zipmoe/simulation, and the commands in zipmoe/cli/planning.
"""
