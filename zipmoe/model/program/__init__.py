"""Records the pass of one row through a model, proves it at the start, and replays it in a few native calls a layer.

    pass of stock's modules --record--> entries --schedule--> order and memory --lower--> native operations
                                           |                                                    |
                                           +----- twin: the same entries through torch ----- proof, byte for byte

An entry is one ATen operation, or one call of our kernels, of routed experts or of a layer. Between two gates a replay
is one native call. The router asks the provider for the experts as in an eager pass. No model type is named: what has
no native operation, or other bits than torch on this machine, is left to torch; a layer that no other pass may repeat
runs its own module.

Read in this order:

    tape            entries, and the mode that writes them down
    row_model       what a pass of one row is computed with
    record          records a pass
    parts           layers that no other pass may repeat: two recordings compared
    memory          places of the pass's tensors
    schedule        order of the replay; what is computed while experts are read
    torch_orders    how this machine's torch sums rows and computes softmax
    unary_tables    functions of one bf16 number, as tables that torch fills
    operands        operands of native operations
    lower_aten      ATen operations to native operations
    lower_kernels   linears and attention to native operations
    lowering        all entries of a schedule
    expert_program  the same for one routed expert
    twin            the readable twin of the interpreter
    replay          state of a replay
    steps           native segments, and what runs between them
    row_program     the replayed pass
    drawn_experts   experts for recording and proof
    proof           comparison of operations with their twins
    start           recording and proof at the start
    report          what is replayed, and why the rest is not

`zipmoe/model/passes/ragged.py` records and replays; `zipmoe/kernels/program.py` is the native interpreter.
"""
