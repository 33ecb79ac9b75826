"""Settings of a router."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from zipmoe.errors import InvalidRequest
from zipmoe.process.budgeted import BudgetedConfig
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.policies.registry import DEFAULT_POLICY, policy_names
from zipmoe.serving.drafts import MOST_DRAFTS


class RouterConfig(BudgetedConfig):
    """The router: attention, gating and experts of one model; the service that clients talk to."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe router", env_prefix_target="all", populate_by_name=True)

    listen: str = Field("127.0.0.1:50051", description="host:port for clients beside the UNIX socket; empty for none")
    insecure_listen: bool = Field(False, description="allow an address that others can reach without TLS and a token")
    tls_certificate: Path | None = Field(None, description="PEM certificate chain of the TCP port")
    tls_key: Path | None = Field(None, description="PEM private key of the TCP port")
    token_file: Path | None = Field(None, description="file with the token that TCP clients have to show")
    decoder: list[str] = Field(
        [], description="gRPC target of a decoder; may be repeated (without it: the socket in the run directory)"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="torch's threads (without it: torch's own choice)")
    linear: Literal["auto", "torch"] = Field(
        "auto", description="bf16 linears on the CPU: the kernels where they have torch's bits (auto), or torch alone"
    )
    row_pass: Literal["auto", "eager"] = Field(
        "auto",
        alias="pass",
        description="decode steps of one request: recorded at the start and replayed where every bit is equal (auto), "
        "or the model's own code for every token (eager)",
    )
    speculate: Literal["auto", "off"] | int = Field(
        "auto",
        description="drafted tokens of a request that one pass verifies: as many as pay (auto), none (off), or up to "
        f"this number, at most {MOST_DRAFTS}; no token changes",
    )
    policy: str = Field(DEFAULT_POLICY, description=f"what is worth keeping in memory: {', '.join(policy_names())}")
    scheduler: Literal["block", "fifo"] = Field(
        "block", description="in which order a layer's experts are fetched: by measured costs, or as they come"
    )
    prefetch: str = Field("auto", description="layers ahead of which experts are guessed and read: auto, or 0 to 4")
    fill: Literal["idle", "off"] = Field(
        "idle", description="fill free expert slots while there is no request (idle), or only with what is needed (off)"
    )
    trace: Path | None = Field(None, description="record which experts every step uses, as JSON lines")
    metrics_port: int = Field(9103, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")
    max_running: int = Field(16, ge=1, le=4096, description="requests that are generated together")
    max_waiting: int = Field(64, ge=0, le=65536, description="requests that wait to be admitted; one more is refused")
    max_waiting_tokens: int = Field(
        65536, ge=1, description="prompt tokens of the requests that wait; a request with more is refused"
    )
    prefill_rows: int = Field(
        512, ge=1, le=1 << 20, description="prompt tokens that a step computes while others wait for their next token"
    )
    reuse_answers: bool = Field(
        False, description="adopt cached keys and values whatever their bits, earlier answers' too; faster, not exact"
    )
    trust_control_tokens: bool = Field(
        False,
        description="leave control tokens in messages of users and tools as they are, instead of making them text",
    )
    start_check: Literal["auto", "off"] = Field(
        "auto", description="compare passes with stock's before the first request (once a store and machine), or not"
    )
    fetch_timeout_s: float = Field(120.0, gt=0, le=3600, description="longest wait for one expert, in seconds")
    constraint_timeout_s: float = Field(
        10.0, gt=0, le=600, description="longest time to compile the schema or expression of a constrained answer"
    )
    drain_timeout_s: float = Field(30.0, ge=0, le=3600, description="time that running requests get at shutdown")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key belong together")
        if self.max_prompt_tokens > self.kv_tokens:
            raise ValueError(f"--max-prompt-tokens {self.max_prompt_tokens} is more than --kv-tokens {self.kv_tokens}")
        if len(set(self.decoder)) != len(self.decoder):
            raise ValueError("--decoder names an endpoint twice")
        if isinstance(self.speculate, int) and not 1 <= self.speculate <= MOST_DRAFTS:
            raise ValueError(f"--speculate {self.speculate} is not auto, off or in 1 to {MOST_DRAFTS}")
        if self.policy not in policy_names():
            raise ValueError(f"--policy {self.policy} is none of {', '.join(policy_names())}")
        try:
            GuessControl(self.prefetch)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return self
