"""Finds out by computing how requests of a model can share the work, with stock's bits.

    result       the paths, and what a probe found
    comparison   a small checkpoint by each of our paths, beside stock's `generate`
    twin         a random tiny model of a configuration, compared so
    __main__     the same as a process of its own

`zipmoe.calibration.saved_probe` starts the process and keeps its result; `zipmoe pack` and the router ask there.
"""
