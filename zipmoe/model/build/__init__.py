"""Builds the served model: stock transformers code, dense weights in memory, routed experts left out.

Read in this order:

    build     builds the model of a store or of a checkpoint
    dense     reads the dense weights one after the other, verifies checksums, locks memory
    dense_forms       compresses the matrices of linears in memory, where that leaves torch's bits
    dense_assignment  assigns the weights to the model
    context   the longest sequence of a model

`services/router` and `zipmoe.calibration` build models here; `zipmoe.model.passes` computes with them.

The table lists every place where `zipmoe` and `services` replace or patch stock transformers (or torch) at run time.
Paths and modules are relative to zipmoe/model, unless they start with `zipmoe` or `services`. The demo and the
benchmarks also set forward hooks, on stock models of their own.

    replaced                           by (ours)                      where it is installed           undone when
    ---------------------------------- ------------------------------ ------------------------------- --------------

    Before torch is imported, and when a process sets its threads

    environment `MKL_CBWR` and         the values "AVX2,STRICT" and   numerics.py:                    never
    `OMP_WAIT_POLICY`, unless set      "passive"                      prepare_environment

    torch's number of threads          the option `--threads` of the  services/router/boot.py:        never; after
                                       router; the bench's argument   _start_engine;                  the bench
                                                                      zipmoe/bench/linear_rounds.py:
                                                                      measure_linears

    While the model is built

    `_attn_implementation`,            the values "eager", "eager"    stock/model_class.py:           never (passes
    `_experts_implementation` and      and bfloat16                   computes_eagerly                change the
    `dtype` of the configuration and                                                                  first, below)
    of each of its parts

    weight initialisation and tying;   stock's own contexts: no-ops,  stock/model_class.py:construct  after the
    default device and dtype           meta device, bfloat16                                          construction
                                       (`get_init_context`,
                                       `no_init_weights`)

    the towers of a multimodal model   None                           stock/towers.py:                never
                                                                      leave_out_towers

    each module of exact type          linear.linear_module           linear/linear_module.py:        never
    `nn.Linear`, on the CPU if the     .NativeLinear, with stock's    replace_linears, called by
    caller gives `linears`             parameters                     build/build.py:build_model

    the `weight` of such a module, if  linear.compressed              build/dense_forms.py:           never
    dense weights are compressed       .CompressedWeight, a tensor    DenseCompression, called by
                                       without bf16 memory            build/dense_assignment.py

    the routed experts module of each  experts.routed_experts         build/build.py:_replace_experts never
    MoE layer                          .RoutedExperts

    the parameters of one such stock   deleted; during a call, plain  experts/ffn.py:StockFfn         never; set to
    module (of one Switch expert) for  attributes with the tensors of (__init__ deletes, __call__     None after the
    each class and expert shape        one expert                     sets)                           call

    `num_experts` of that stock        the value 1                    experts/ffn.py:                 never
    module, if packed                                                 StockFfn.__init__

    the parameters of a stock module   experts.lazy_experts           experts/lazy_experts.py:        never; matrices
    that is more than a sum of         .StackStandIn, or matrices     LazyExperts.__init__            of the experts
    experts; its `forward`             during a call; a function                                      after the call
                                       that fetches and runs stock's

    parameters and persistent buffers  the dense weights, by          build/dense_assignment.py:      never
    on the meta device                 `load_state_dict(assign=True)` assign_dense
                                       and `tie_weights`

    non-persistent buffers             new buffers, filled by stock's stock/initialisation.py:        never
                                       `_init_weights`                refill_buffers, called by
                                                                      build/build.py:build_model

    no stock code: a forward pre-hook  experts.overlap                experts/overlap.py:             never
    on MoE blocks with `shared_expert` .announce_first: announces the announce_first, called by
    (qwen2_moe)                        predicted experts              build/build.py:_replace_experts

    `shared_experts.forward` of MoE    experts.overlap                experts/overlap.py:             never
    blocks (DeepSeek, GLM-4)           .OverlappedShared              overlapped_shared

    no stock entry: `mtp`, a module    stock's MtpModel of the model,  build/build.py:_add_mtp; the    never
    of the model, if the store holds   by stock/mtp.py:construct_mtp   shared modules are set at
    layers for multi-token prediction                                  the end of build_model

    `layer_idx` of its attention       the index plus the number of    stock/mtp.py:move_behind       never
    modules                            layers of the model

    `generation_config` of the model   the GenerationConfig of the    build/build.py:build_model      never
                                       store's directory, else one
                                       derived from the configuration

    When a decoder-only model is prepared for passes that requests share, on the CPU

    `forward` of each module that owns a wrapper of stock's forward,  experts/gates.py:               never
    a matrix and is neither            made by                        replace_gate_linears, called by
    NativeLinear, embedding nor        experts.gates._redirected      passes/ragged.py:
    RoutedExperts: the gates                                          RaggedModel.__init__

    `torch.nn.functional.linear`       linear.native_linear.Linears,  experts/gates.py:_redirected    end of the
    inside such a forward, if requests through a TorchFunctionMode,                                   gate's forward
    share the rows or the matrix is    experts.gates
    bf16                               ._ByLinears

    While a pass of one row is recorded, at the start of a router

    no stock code: forward hooks on    functions that note calls in the    program/recording/record.py:     end of the
    layers and on routed experts       tape                            record                          recording

    no stock code: every operation     program.recording.tape          program/recording/tape.py:       end of the
    that torch dispatches              ._Dispatch, a TorchDispatchMode Tape.running                    recording

    no stock code: provider of the     program.recording               experts/routed_experts.py:      end of the
    routed experts; no shared expert   .borrowed_experts               RoutedExperts.served_by,        proof
    beside the reads                   .BorrowedExperts                called by program/start.py

    no stock code: each call of        a function that notes it        linear/native_linear.py:        end of the
    `Linears`                                                          Linears.watched_by              recording

    When a pass is computed

    no stock entry:                    attention.ragged_attention     attention/ragged_attention.py,  never
    `AttentionInterface` gets the name .attend                        at import
    "zipmoe_ragged"

    `config._attn_implementation`,     the value "zipmoe_ragged", for stock/attention_switch.py:      end of the
    "eager" otherwise; for an          which stock builds no          attending_by; passes/ragged.py, `with` block:
    encoder-decoder, the decoder's     attention mask                 prompt_pass.py,                 a pass or a
                                                                      prompts_together.py and         few layers
                                                                      side_by_side.py enter it by
                                                                      attention.ragged_attention

    `eager_attention_forward` as the   `attend` of the pass: stock's  attention/ragged_attention.py:  with the value
    function that attention modules    function for each request, or  attend                          above
    look up by that value              attention.row_attention
                                       .RowAttention for single rows

    no stock argument: `ragged`, which the pass itself                passes/ragged.py,               end of the
    stock's `**kwargs` hand down to                                   prompt_pass.py,                 model's call:
    the attention function                                            side_by_side.py                 an argument

    argument `past_key_values`         attention.ragged_attention     passes/ragged.py:RaggedModel    end of the
    (`DynamicCache`)                   .RaggedPass or                 (compute, prompt)               pass: an
                                       attention.latent.LatentPass                                    argument

    arguments `past_key_values`        passes.side_by_side._Caches;   passes/side_by_side.py:         end of the
    (`EncoderDecoderCache`) and        an unused tensor, so that the  SideBySide.step                 step:
    `encoder_outputs`                  encoder does not run                                           arguments

    `keys` and `values` of the layers  tensors with one more token,   passes/side_by_side.py:         never
    of a request's own                 after a successful step        _Caches.keep
    `EncoderDecoderCache`

    `layers` of the body               passes.prompt_pass._Noted,     stock/body.py:                  end of _begin
    (`ModuleList`)                     then                           in_place_of_layers, entered by  and of
                                       passes.prompt_pass._Computed   passes/prompt_pass.py           finish's model
                                                                                                      call

    no stock code: a layer's or the    a greenlet, suspended at each  meeting.py: Coroutine,          end of the
    model's forward that reaches       call until it has been         used by prompts_together.py     forward
    routed experts, and with a single  computed with the calls of     and joined.py
    row also linears                   other passes

    no stock code: a forward hook on   a function that collects       stock/body.py:                  end of the
    the body                           hidden states                  hidden_states_of, entered by    pass
                                                                      passes/sequence.py,
                                                                      prompt_pass.py, ragged.py and
                                                                      program/recording/row_model.py

    the body, the attribute named      stock.computed_body            stock/computed_body.py:         after each
    `base_model_prefix`                ._ComputedBody                 computed_body, entered by       chunk of rows
                                                                      passes/head.py
"""
