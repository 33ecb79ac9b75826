"""One program for each client, run by the interpreter that has the client.

    harness            the question, tool and schema of all programs; runs their checks, reports outcomes as JSON lines
    openai_chat, anthropic_messages, litellm_chat, langchain_chat     Python packages
    llm_program        the command `llm`
    opencode_program   the command `opencode`
    openai_node.mjs    OpenAI's package for Node, whose checks are written a second time

`scripts/try_clients/client_run.py` starts them as `python -m`. They import the standard library and their client only.
"""
