"""Supplies the model with routed experts from shared memory, which the decoders fetch as the brain decides.

    expert_setup               makes the provider: policy, scheduler, brain, popularity, costs
    arena_experts              the provider: asks the brain for decisions and sends them
    layer_arrivals             the experts of a pass through a layer, as they arrive
    decoder_sessions           sends operations, tells the brain of results; decoders attach and go
    views                      matrices as views of arena slots
    arena_placement            brings an expert's matrices to the device that computes
    decoder_link, decoders     a session with one decoder, kept open; all of them
    read_account               bytes read from disk, and the part charged to requests
    pass_log                   log of steps and layer passes; feeds the next two
    live_forecast, trace_file  popularity and forecast; the routing trace
    brain_metrics              the brain's counters for Prometheus

`services/router/boot.py` builds the provider; the model, the stepper and the engine call it on the model thread.
"""
