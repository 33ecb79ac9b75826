"""Comparisons with stock transformers: `zipmoe demo`, a complete run, and `zipmoe families`, every model type.

    demo           `zipmoe demo`: packs, serves, generates and compares
    stock          stock transformers in a separate process
    demo_outcome   verdict and metrics, as tables or as JSON
    families       `zipmoe families`: probes every model type on a tiny checkpoint

`demo` is built from `zipmoe.cli.stores`, `zipmoe.cli.serving` and `zipmoe.cli.talking`. `zipmoe.cli.__main__` registers
the verbs; tests and benchmarks load the reference model with `stock`.
"""
