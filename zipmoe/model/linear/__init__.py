"""Computes bf16 linears on the CPU with the bits of torch, from plain or compressed weights.

Read in this order:

    linear_order    finds torch's summation order for each shape, by self-tests
    native_linear   linears by the kernels or by torch; modules in place of `nn.Linear`
    packed          expert matrices as compressed chunks in memory

The kernels themselves are in `zipmoe.kernels`. Called by `zipmoe.model` (build, experts, attention, passes),
`services/router`, `zipmoe.calibration` and `zipmoe.bench`.
"""
