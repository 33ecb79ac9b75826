"""Runs real client programs against the gateway, and prints a table of what each of them could do.

    python -m scripts.try_clients --clients VENV/bin/python [--node FOLDER] [--opencode PROGRAM] [--base-url URL]

`VENV` is an environment of its own with `pip install openai anthropic litellm langchain-openai llm`, `FOLDER` one with
`npm install openai`, and `PROGRAM` the binary of `npm install opencode-ai`. None of them is needed elsewhere. A client
that is not installed has a row that says so. Read in this order:

    isolated_network   runs the script anew in a network namespace that has loopback only
    served_model       the built-in model under a chat template with tools, served by `zipmoe up --gateway`
    call_demander      forwards requests and demands calls, for clients without a setting of `tool_choice`
    client_table       the clients: their programs and environments
    client_run         runs the program of a client; its outcomes
    outcome_table      the table as text
    programs/          the programs, which run with the interpreter of the client
"""
