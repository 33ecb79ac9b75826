"""Runs stock transformers models with the routed experts left out of memory, and opens the checkpoints behind them.

Read in this order:

    torch_version  refuses a torch that is too old for transformers
    numerics       environment variables that fix torch's bits; self-test of the machine
    torch_orders   how this machine's torch sums rows and computes softmax
    stock          parts of transformers that are private or may change
    checkpoint     finds the experts and dense tensors of a hub checkpoint
    build          builds the served model; lists everything of stock that is replaced
    linear         bf16 linears with torch's bits, plain or compressed
    meeting        passes as coroutines that meet at modules
    experts        routed experts, gates, shared experts, the provider's protocol
    attention      KV pages and the attention of requests that share a pass
    program        the pass of one row, recorded, proven and replayed natively
    passes         forward passes: one request, shared rows, prompts, encoder-decoders
    families       tiny twins of every model type
    probe          comparison of a twin with stock, which chooses how requests are computed
    text           tokenizer, streamed text, sampling
    conversation   prompts of conversations; reasoning and tool calls in answers
    synth          synthetic checkpoints of some families, at true widths too
    raw_tensor     raw bytes as torch tensors

Called by `services/router`, `zipmoe.calibration`, `zipmoe.bench`, `zipmoe.doctor` and the `zipmoe.cli` verbs that pack,
verify, synthesise and show a demo.
"""
