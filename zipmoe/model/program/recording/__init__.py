"""Runs stock's modules for single rows and writes down every operation.

Read in this order:

    tape               entries, and the mode that writes them down
    row_model          what a pass of one row is computed with
    record             records a pass
    parts              layers that no other pass may repeat: two recordings compared
    borrowed_experts   experts for recording and proof, in the memory of dense weights

Called by `zipmoe/model/program/start.py`.
"""
