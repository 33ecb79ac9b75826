"""Verbs that measure: codecs and linear kernels on this machine, and running services under load.

    bench         `zipmoe bench`: the group of the three verbs
    bench_codec   `zipmoe bench codec`: ratio and speed of the codecs
    bench_ffn     `zipmoe bench ffn`: linears of experts on the CPU
    bench_serve   `zipmoe bench serve`: load on a router or an HTTP server

The measurements are in `zipmoe.bench` and `zipmoe.loadgen`. The verbs parse options and print the results.
`zipmoe.cli.__main__` registers the group.
"""
