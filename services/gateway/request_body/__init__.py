"""Bodies of OpenAI's requests: tables of fields, and how a body is read with them.

    value_readers     reads a JSON value of one type and range, or refuses it by name
    body_field        a row of a table: taken, neutral values only, or ignored; reads an object with a table
    other_servers     fields of llama.cpp, vLLM, SGLang, TGI, Ollama and others, and their values that change nothing
    answer_form       the form of an answer: JSON, a schema, an expression, a choice
    chat_tools        tools, the choice of one, and their calls
    chat_messages     the messages of a chat
    openai_fields     the tables of `/v1/chat/completions` and `/v1/completions`
    generation_body   whole bodies: JSON, the tables, and the conditions between fields

Called by `services/gateway/service.py`. A new parameter is a row in `openai_fields`.
"""
