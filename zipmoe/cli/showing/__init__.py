"""`zipmoe demo`: a complete run on a small model, checked against stock transformers.

    demo           `zipmoe demo`: packs, serves, generates and compares
    stock          stock transformers in a separate process
    demo_outcome   verdict and metrics, as tables or as JSON

`demo` is built from `zipmoe.cli.stores`, `zipmoe.cli.serving` and `zipmoe.cli.talking`. `zipmoe.cli.__main__` registers
the verb; tests and benchmarks load the reference model with `stock`.
"""
