"""Runs requests on the model: one thread, one step after the other.

    request                         `Request` and the events that are emitted for it
    intake                          validates a gRPC request and makes a `GenerationSpec` of it
    conversation_intake             conversations of gRPC as chat templates take them
    grammars                        compiles the grammars of constrained answers, within limits
    engine                          the model thread: submit, cancel, drain, loss of the decoders
    stepper                         runs the planner's steps on the model; errors, deadlines, metrics
    generation                      one request on the model thread: sampler, text, stop conditions
    passes                          contract of a forward pass (`StepModel`); next two: its implementations
    shared_passes, joined_passes    KV pages and shared passes; a cache per request and passes that meet
    mtp_drafts                      drafts by layers for multi-token prediction, from the rows of shared passes
    start_check                     compares the passes with stock's before the first request
    step_setup                      makes planner, step model and stepper from the router's settings
    queue_progress                  tells requests their place in the queue and how much of the prompt is computed
    answer_reader                   separates reasoning and tool calls from the text of answers
    event_stream                    hands events from the model thread to the asyncio loop

`services/router/boot.py` builds the engine; `services/router/service.py` submits requests to it.
"""
