"""Lossless serving of Mixture-of-Experts models that are larger than the device's memory.

Read ARCHITECTURE.md first, then the rooms in this order:

    types, errors, buffer, system_error  nouns, errors and helpers of all rooms
    regular_file                         refuses inputs that are no regular files
    codec, kernels                       exponents to chunks and back; C++ kernels
    store, arena                         packed experts on disk; slots in shared memory
    residency, planning, serving         experts in memory; memory split; forward passes
    model                                checkpoints, model building, routed experts
    calibration, simulation, doctor      costs, replay and state of this machine
    bench, loadgen                       benchmarks; load on running services
    rpc, process, client, cli            servers, boot, public client, command line

The processes are in `services/` (installed as `zipmoe.services`). They import these rooms; no room imports them.
"""

__version__ = "0.1.0"
