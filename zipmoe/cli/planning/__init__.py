"""Verbs that predict speed from measurements: calibrate, plan and simulate.

    calibrate         `zipmoe calibrate`: measures disk, recovery and computing
    budget_settings   parses the settings of the budget split
    store_forecast    forecasts a store on this machine
    budget_table      forecasts of several budgets as tables, JSON and chart
    plan              `zipmoe plan`: splits a memory budget, prints forecasts
    planned_settings  runs `zipmoe plan` in a child process, for `up`
    simulated_setup   builds the machine and the cache of a simulation
    simulate          `zipmoe simulate`: replays a trace with cache policies

The computation is in `zipmoe.planning`, `zipmoe.calibration` and `zipmoe.simulation`. `zipmoe.cli.__main__` registers
the verbs; `zipmoe.cli.serving.up` calls `budget_settings` and `planned_settings`.
"""
