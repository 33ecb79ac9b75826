"""Turns the entries of a recording into native operations at fixed addresses.

Read in this order:

    pass_memory    places of the pass's tensors
    schedule       order of the replay; what is computed while experts are read
    unary_tables   functions of one bf16 number, as tables that torch fills
    operands       operands of native operations
    aten           ATen operations to native operations
    kernels        linears and attention to native operations
    lowered        all entries of a schedule

Called by `zipmoe/model/program/start.py` and, for experts, by `zipmoe/model/program/replay`.
"""
