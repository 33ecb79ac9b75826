"""Computes the routed experts of a MoE layer from matrices that a provider fetches, with the bits of stock.

In reading order:

    provider         the protocol of an expert provider; two readable twins
    supply           takes the experts of a layer pass from the provider, as they arrive
    routed_experts   module in the place of stock's routed experts
    assignments      rows of each chosen expert; the sum of the outputs
    ffn              one expert's feed-forward network, stock's code or an equal short cut
    proof            comparisons with stock's module, which choose between these
    lazy_experts     stock's module with matrices on demand, where experts cannot be computed one by one
    device           transfer of an expert's matrices to the device
    next_gate        prediction of the experts of this layer and the next ones
    overlap          shared expert and predictions computed while routed experts are read
    gates            stock's gates on the kernels' linears

`zipmoe/model/build` puts these modules into a model, except `gates`, which `zipmoe/model/passes` installs.
`services/router/experts` has the provider that serves.
"""
