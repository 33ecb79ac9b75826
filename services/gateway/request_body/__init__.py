"""Bodies of requests: tables of fields, and how a body is read with them.

    value_readers     reads a JSON value of one type and range, or refuses it by name
    body_field        a row of a table: taken, neutral values only, or ignored; reads an object with a table
    other_servers     fields of llama.cpp, vLLM, SGLang, TGI, Ollama and others, and their values that change nothing
    shared_fields     the fields that all dialects share
    answer_form       the form of an answer: JSON, a schema, an expression, a choice
    chat_tools        tools, the choice of one, and their calls
    generation_body   a request in the terms of `zipmoe.client`, from the translated fields of any dialect
    chat_messages, openai_fields, openai_body     `/v1/chat/completions` and `/v1/completions`
    turns             turns of a conversation from the items of the two dialects below
    response_items, response_body                 `/v1/responses`
    message_blocks, message_body                  `/v1/messages`
    tokenize_body     `/tokenize` and `/detokenize`

Called by `services/gateway/dialects.py` and `tokenizing.py`. A new parameter is a row in `shared_fields`, or in the
table of its dialect. All tables translate to the same names, so `generation_body` knows one set of parameters.
"""
