"""Records the pass of some single rows through a model, proves it, and replays it in a few native calls a layer.

    pass of stock's modules --recording--> entries --lowering--> native operations --replay--> pass in native segments
                                              |                          |
                                              +-- twin: through torch ---+-- proof, byte for byte

An entry is one ATen operation, or one call of our kernels, of routed experts or of a layer. Between two gates a replay
is one native call, if torch computes none of the operations. The router asks the provider for the experts as in an
eager pass. No model type is named: what has no native operation, or other bits than torch on this machine, is left to
torch; a layer that no other pass may repeat runs its own module.

Read in this order:

    recording   entries of a pass, and which layers may be replayed
    lowering    order, memory and native operations of the entries
    replay      the readable twin, and the replayed pass
    lockstep    comparison of native operations with their twins
    start       recording and proof
    report      what is replayed, and why the rest is not

`zipmoe/model/passes/ragged.py` records and replays. `zipmoe/kernels/program.py` is the native interpreter.
"""
