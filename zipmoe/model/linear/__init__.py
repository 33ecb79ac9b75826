"""Computes bf16 linears on the CPU with the bits of torch, from plain or compressed weights.

Read in this order:

    linear_order    finds torch's summation order for each shape, by self-tests
    packed          expert matrices as compressed chunks in memory
    compressed      dense matrices in an in-memory form, and the weights that stand for them
    native_linear   linears by the kernels or by torch, from any of these
    linear_module   modules in place of `nn.Linear`

Both kinds of compressed matrices tell which orders they take, multiply and recover: `Linears` asks no more of them.

The kernels themselves are in `zipmoe.kernels`. Called by `zipmoe.model` (build, experts, attention, passes),
`services/router`, `zipmoe.calibration` and `zipmoe.bench`.
"""
