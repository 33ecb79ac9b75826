"""Measures the speed of a machine with a store, and keeps the measurements that plans and schedules are made from.

The modules, in reading order:

    identity, calibration, calibration_file    measured machine, measurements, file of the measurements
    measurement_time, other_work, measure      duration, load by other processes, the whole procedure
    disk, messages, recovery_speed             random reads, gRPC messages, recovery by workers
    model_speed, packed_experts, compute       FFNs and the dense part of a model
    synthetic_store                            stores of random experts where no store exists
    saved_popularity                           expert popularity kept between runs
    saved_probe                                probe of the model, kept between runs
    calibrated_costs, plan_request             costs and plan inputs for the callers

Callers: the router, which never measures, `zipmoe calibrate`, `plan` and `simulate` (zipmoe/cli/planning), and
zipmoe/doctor.
"""
