"""Generates on the router, and writes the answer in the client's dialect.

    answering          runs a request on the router and hands the events to a writer
    together           the prompts of one request, some at a time
    keep_alive         comments in streams that are silent
    token_texts        texts of token ids, for log-probabilities
    answer_writer      the contract of the writers
    choice_writer      OpenAI's chats and completions, streamed and whole
    shapes             the JSON of their choices
    answer_parts       reasoning, text and calls of an answer in their order, for the two dialects below
    responses_writer   OpenAI's responses
    messages_writer    Anthropic's messages

Called by `services/gateway/service.py`. A new dialect is a writer, a table of fields, and a row in
`services/gateway/dialects.py`.
"""
