"""The public generation client: `GenerationClient` for threads, `AsyncGenerationClient` for asyncio.

    with GenerationClient() as client:
        for event in client.generate("Once upon a time", stopping=Stopping(max_new_tokens=32)):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

Both speak protos/zipmoe/v1/generation.proto to one router and raise the classes of `zipmoe.errors`.

    dialogue           a conversation: messages, tools, settings of the chat template
    parameters         a request: prompt, sampling, stopping, output
    event, completion  the answer: a stream of events, or collected into one value
    model              description of the router's model
    blocking, aio      the two clients
    connection         target, TLS and token
    wire, dialogue_wire  plain values to protocol buffers and back

The gateway, the load generator and the command line use these clients as other programs do.
"""

from zipmoe.client.aio import AsyncGenerationClient
from zipmoe.client.blocking import GenerationClient
from zipmoe.client.completion import Completion, complete, complete_all
from zipmoe.client.dialogue import ChatPrompt, Message, ToolCall, ToolUse
from zipmoe.client.event import (
    CallDelta,
    Event,
    Finished,
    FinishReason,
    PromptProgress,
    Started,
    Token,
    TokenLogprob,
    TokenText,
    Usage,
)
from zipmoe.client.model import Model
from zipmoe.client.parameters import Constraint, Output, Prompt, Sampling, Stopping

__all__ = [
    "AsyncGenerationClient",
    "CallDelta",
    "ChatPrompt",
    "Completion",
    "Constraint",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationClient",
    "Message",
    "Model",
    "Output",
    "Prompt",
    "PromptProgress",
    "Sampling",
    "Started",
    "Stopping",
    "Token",
    "TokenLogprob",
    "TokenText",
    "ToolCall",
    "ToolUse",
    "Usage",
    "complete",
    "complete_all",
]
