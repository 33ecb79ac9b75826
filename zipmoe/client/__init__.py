"""The public generation client: `GenerationClient` for threads, `AsyncGenerationClient` for asyncio.

    with GenerationClient() as client:
        for event in client.generate("Once upon a time", stopping=Stopping(max_new_tokens=32)):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

Both speak protos/zipmoe/v1/generation.proto to one router and raise the classes of `zipmoe.errors`.
"""

from zipmoe.client.aio import AsyncGenerationClient
from zipmoe.client.blocking import GenerationClient
from zipmoe.client.completion import Completion, complete
from zipmoe.client.event import Event, Finished, FinishReason, Started, Token, TokenLogprob, Usage
from zipmoe.client.model import Model
from zipmoe.client.parameters import Message, Output, Prompt, Sampling, Stopping

__all__ = [
    "AsyncGenerationClient",
    "Completion",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationClient",
    "Message",
    "Model",
    "Output",
    "Prompt",
    "Sampling",
    "Started",
    "Stopping",
    "Token",
    "TokenLogprob",
    "Usage",
    "complete",
]
