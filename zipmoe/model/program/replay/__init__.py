"""Replays a recorded pass.

Read in this order:

    torch_twin       the readable twin of the native interpreter: entries through torch
    replay_state     what the steps of a replay share
    expert_program   one routed expert, as its matrices arrive
    expert_programs  a layer's experts, for each number of rows that an expert gets
    row_places       places of the rows in the pool
    steps            native segments, and what runs between them
    row_program      the pass of some rows

Called by `zipmoe/model/passes/ragged.py`, which has the program from `zipmoe/model/program/start.py`.
"""
