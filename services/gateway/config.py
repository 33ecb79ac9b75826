"""Settings of a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from zipmoe.process.config import ServiceConfig
from zipmoe.process.web_names import parse_host, parse_origin


class GatewayConfig(ServiceConfig):
    """The gateway: OpenAI's and Anthropic's HTTP API in front of a router."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe gateway")

    listen: str = Field("127.0.0.1:8080", description="host:port for HTTP clients; port 0 takes any free one")
    insecure_listen: bool = Field(False, description="allow an address that others can reach without an API key")
    tls_certificate: Path | None = Field(None, description="PEM certificate chain; HTTPS then")
    tls_key: Path | None = Field(None, description="PEM private key")
    api_key_file: Path | None = Field(None, description="file with the API key that clients have to show")
    allow_origin: list[Annotated[str, AfterValidator(parse_origin)]] = Field(
        [], description="origin whose web pages may use the gateway, or '*' for any; may be repeated"
    )
    allow_host: list[Annotated[str, AfterValidator(parse_host)]] = Field(
        [],
        description="host that requests may name besides localhost, where there is no API key, or '*' for any; may be "
        "repeated",
    )
    router: str | None = Field(
        None, description="gRPC target of the router (without it: its socket in the run directory)"
    )
    router_token_file: Path | None = Field(None, description="file with the token that the router asks for")
    router_tls_ca: Path | None = Field(None, description="PEM file of the authority of the router's certificate")
    model_name: str | None = Field(
        None, min_length=1, description="what clients call the model (without it: the store's name)"
    )
    max_open_requests: int = Field(256, ge=1, le=65536, description="requests at a time; one more is refused")
    max_connections: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="connections at a time; idle ones make room (without it: 1024, or fewer if few files may be open)",
    )
    idle_timeout_s: float = Field(75.0, gt=0, le=86400, description="life of a connection without a request")
    max_request_bytes: ByteSize = Field(ByteSize(4 << 20), ge=1024, description="the longest body that is read")
    body_timeout_s: float = Field(30.0, gt=0, le=3600, description="time that a client gets to send its body")
    request_timeout_s: float | None = Field(
        None, gt=0, description="deadline of a whole answer (without it: none but the client's patience)"
    )
    keep_alive_s: float = Field(
        10.0, gt=0, le=3600, description="silence of a stream, queued or computing, after which it gets a comment"
    )
    metrics_port: int = Field(9104, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")
    drain_timeout_s: float = Field(30.0, ge=0, le=3600, description="time that running requests get at shutdown")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key belong together")
        return self
