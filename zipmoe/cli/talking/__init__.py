"""Verbs that use a running router: generate and chat.

    router_target        options that name the router; opens a client
    prompt_source        reads prompts: text, file, stdin, token ids
    answer               prints an answer as text or as JSON
    generation_options   options of `zipmoe generate` and `zipmoe chat`
    generate             `zipmoe generate`: streams one answer
    conversation         keeps a conversation within the context length
    chat                 `zipmoe chat`: an interactive conversation

The verbs call the router through `zipmoe.client`. `zipmoe.cli.__main__` registers the verbs; `zipmoe.cli.showing` calls
`answer`, and `zipmoe.cli.benching.bench_serve` shares `router_target`.
"""
