"""Renders conversations into prompts, and reads reasoning and tool calls in the text of answers.

Read in this order:

    chat_request        a conversation as the chat template gets it: turns, tools, variables
    conversation_renderer  renders by the checkpoint's chat template; mends refused forms of conversations
    refused_forms       other forms of a conversation, for templates that refuse its own
    template_fit        the forms of message contents that a template takes, found by trial
    control_tokens      breaks up special tokens that a user or a tool has written
    stored_template     template and added tokens of a store, read without transformers
    answer_formats      which rows of the two tables hold for a chat template
    reasoning_formats   table: markers around reasoning, and the parser for them
    call_formats        table: formats of tool calls, each with its parser
    hermes_calls, mistral_calls, llama_calls, xml_calls  parsers of the other rows
    harmony_channels    parser of channels: reasoning, tool calls and text in one
    json_call           reads a tool call that is written as a JSON object, while it arrives
    marker_window       finds markers in streamed characters
    answer_pieces       pieces of an answer: text, reasoning, tool calls; contract of the parsers

Parsers take characters one by one, so the cuts between deltas change nothing. Called by `services/router/engine`: by
its intake and its answer reader, and by `zipmoe inspect`.
"""
