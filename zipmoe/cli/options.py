"""Options of `zipmoe up`: the most used settings of the services, and the settings of the supervision.

`zipmoe plan` shares some of the options.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

_memory = partial(Option, rich_help_panel="Memory", show_default=False)
_compute = partial(Option, rich_help_panel="Computing", show_default=False)
_clients = partial(Option, rich_help_panel="Clients", show_default=False)

MemoryBudget = Annotated[str | None, _memory(metavar="SIZE", help="Ceiling over all three services, such as 4GiB.")]
ExpertMemory = Annotated[str | None, _memory(metavar="SIZE", help="Or: memory for experts alone.  [default: 1GiB]")]
CacheSlots = Annotated[
    str,
    Option(
        metavar="auto|rule|E:SM:TENSOR",
        help="How that is divided: as measured to be fastest, by a rule, or as given.",
        rich_help_panel="Memory",
    ),
]
Policy = Annotated[
    str | None, _memory(help="What is worth keeping: adaptive, zipmoe, lru, lfu, fifo or marking.  [default: adaptive]")
]
Scheduler = Annotated[str | None, _memory(help="In which order experts are fetched: block or fifo.  [default: block]")]
Prefetch = Annotated[str | None, _memory(help="Layers ahead of which experts are guessed: auto, or 0 to 4.")]
Fill = Annotated[str | None, _memory(help="Fill free expert slots without a request: idle or off.  [default: idle]")]
Trace = Annotated[Path | None, _memory(metavar="FILE", help="Record which experts every step uses.")]
KvTokens = Annotated[
    int | None,
    _memory(
        help="Tokens of KV cache over all running requests.  [default: with a budget, the model's context as far as a "
        "token takes at most 5 % longer; else 4096]"
    ),
]
KvCache = Annotated[
    str | None,
    _memory(
        help="Latent attention's: expanded, or latent: a fraction of the memory, slower steps.  [default: expanded]"
    ),
]
Dense = Annotated[
    str | None,
    _memory(
        help="Dense weights in memory on the CPU: bf16, losslessly compressed, or the faster one as measured (auto).  "
        "[default: auto]"
    ),
]
TensorForm = Annotated[
    str | None,
    _memory(
        help="Recovered experts on the CPU: bf16, or a losslessly compressed form from which the CPU multiplies (tile, "
        "nibble).  [default: the fastest as measured]"
    ),
]
MaxPromptTokens = Annotated[int | None, _memory(help="The longest prompt that is accepted.")]

Device = Annotated[str, Option(help="Where the router computes: cpu, cuda or auto.", rich_help_panel="Computing")]
Workers = Annotated[int | None, _compute(help="Threads that recover experts.")]
IoThreads = Annotated[int | None, _compute(help="Requests at the disk at the same time.")]
Threads = Annotated[int | None, _compute(help="torch's threads.")]
RowPass = Annotated[
    str | None,
    _compute("--pass", help="Decode steps of one request: recorded and replayed (auto), or eager.  [default: auto]"),
]
Speculate = Annotated[
    str | None,
    _compute(
        help="Drafted tokens of a request that one pass verifies: auto, off or a number. No token changes.  "
        "[default: auto]"
    ),
]

Listen = Annotated[
    str, Option(metavar="HOST:PORT", help="TCP address beside the socket; '' for none.", rich_help_panel="Clients")
]
InsecureListen = Annotated[
    bool, _clients("--insecure-listen", help="Allow an address that others can reach without TLS and a token.")
]
TlsCertificate = Annotated[Path | None, _clients(metavar="FILE", help="PEM certificate chain of the TCP port.")]
TlsKey = Annotated[Path | None, _clients(metavar="FILE", help="PEM private key of the TCP port.")]
TokenFile = Annotated[Path | None, _clients(metavar="FILE", help="File with the token that TCP clients have to show.")]
PrefillRows = Annotated[
    int | None, _clients(help="Prompt tokens that a step computes while others wait for their next token.")
]
ReuseAnswers = Annotated[
    bool,
    _clients(
        "--reuse-answers",
        help="Adopt cached keys and values whatever their bits, earlier answers' too: faster, not exact.",
    ),
]
TrustControlTokens = Annotated[
    bool,
    _clients(
        "--trust-control-tokens",
        help="Leave control tokens in messages of users and tools as they are, instead of making them text.",
    ),
]
MaxRunning = Annotated[int | None, _clients(help="Requests that are generated together.")]
MaxWaiting = Annotated[int | None, _clients(help="Requests that wait; one more is refused.")]
MaxWaitingTokens = Annotated[int | None, _clients(help="Prompt tokens of those that wait; more are refused.")]

Gateway = Annotated[bool, _clients("--gateway", help="Serve OpenAI's HTTP API as well; see `zipmoe gateway`.")]
GatewayPort = Annotated[
    int, Option(help="Port of that on 127.0.0.1; 0 takes any free one.", rich_help_panel="Clients", max=65535)
]

AllowOrigin = Annotated[
    list[str] | None,
    _clients(metavar="ORIGIN", help="Origin whose web pages may use the gateway; may be repeated, '*' for any."),
]
AllowHost = Annotated[
    list[str] | None,
    _clients(metavar="HOST", help="Host besides localhost that requests to the gateway may name; may be repeated."),
]

_operation = partial(Option, rich_help_panel="Operation")

RuntimeDir = Annotated[
    Path | None, _operation(metavar="DIR", envvar="ZIPMOE_RUNTIME_DIR", help="Where the services' sockets go.")
]
LogDir = Annotated[
    Path | None,
    _operation(metavar="DIR", help="Keep the logs here.  [default: in the runtime directory, until a clean end]"),
]
LogLevel = Annotated[str, _operation(help="debug, info, warning or error.")]
MetricsAddress = Annotated[str, _operation(help="Address of the Prometheus metrics.")]
MetricsPort = Annotated[
    int, _operation(help="First of three ports in a row, four with --gateway; 0 takes any free ones.")
]
StartTimeout = Annotated[float, _operation(metavar="SECONDS", help="All have to serve by then.")]
DrainTimeout = Annotated[float, _operation(metavar="SECONDS", help="Running requests may take so long at the end.")]
Verbose = Annotated[bool, _operation("--verbose", "-v", help="Show the services' logs.")]
