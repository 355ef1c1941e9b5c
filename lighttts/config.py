"""Configuration: one YAML file, every key overridable by environment and by flag, all of it validated.

Later sources win: built-in defaults, the file, ``LIGHTTTS_<SECTION>__<KEY>`` variables, ``--set section.key=value``
flags. An unknown key is an error that names the nearest known one. conf/lighttts.yaml shows every key with its default.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lighttts.errors import ConfigError
from lighttts.transport.endpoints import connectable

ENV_PREFIX = "LIGHTTTS_"
CONFIG_MAX_BYTES = 1 << 20
HOLDS_PASSWORD = "broker.state"
"""The key whose value no error shows."""

Port = Annotated[int, Field(ge=0, le=65535)]
Endpoint = Annotated[str, Field(pattern=r"^(tcp|ipc)://.+")]


CHECKOUT = Path(__file__).resolve().parents[1]


def _listed(value: object) -> object:
    """A list may be one text with commas, as the command line and the environment give it."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _network(address: str) -> str:
    """Raises `ValueError` for what is neither an address nor a network."""
    return str(ipaddress.ip_network(address))


Network = Annotated[str, AfterValidator(_network)]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(_listed)]


def _found(directory: Path) -> Path:
    """A relative path means the working directory, or else the checkout this package runs from."""
    return CHECKOUT / directory if not directory.exists() and (CHECKOUT / directory).exists() else directory


def _octal(mode: object) -> object:
    """YAML reads an unquoted 0600 as a number."""
    return f"{mode:04o}" if isinstance(mode, int) else mode


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class BrokerConfig(_Section):
    """lighttts-broker: where it listens, what it keeps and how much it admits."""

    clients: Endpoint = "tcp://127.0.0.1:5570"
    workers: Endpoint = "tcp://127.0.0.1:5571"
    results: Endpoint = "tcp://127.0.0.1:5572"
    state: Annotated[str, Field(pattern=r"^(memory|rediss?(\+sentinel)?|unix)://")] = "memory://"
    state_ttl_s: Annotated[float, Field(gt=0)] = 3600.0
    redis_breaker_failures: Annotated[int, Field(ge=1)] = 5
    redis_breaker_s: Annotated[float, Field(gt=0)] = 5.0
    max_requests: Annotated[int, Field(ge=1)] = 1024
    max_text: Annotated[int, Field(ge=1, le=100_000)] = 20_000
    max_credit: Annotated[int, Field(ge=1)] = 256
    client_requests: Annotated[int, Field(ge=1)] = 256
    client_requests_per_minute: Annotated[int, Field(ge=1)] = 6000
    slow_client_s: Annotated[float, Field(gt=0)] = 60.0
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    no_worker_s: Annotated[float, Field(ge=0)] = 10.0
    heartbeat_s: Annotated[float, Field(gt=0)] = 0.5
    expiry_s: Annotated[float, Field(gt=0)] = 2.5
    stall_s: Annotated[float, Field(gt=0)] = 2.2
    worker_breaker_failures: Annotated[int, Field(ge=1)] = 5
    worker_breaker_s: Annotated[float, Field(gt=0)] = 60.0
    voices_directory: Path | None = None
    voices: Annotated[int, Field(ge=0)] = 10_000
    voices_mb: Annotated[float, Field(ge=0)] = 4096.0
    client_voices: Annotated[int, Field(ge=0, le=500)] = 100
    client_voices_mb: Annotated[float, Field(ge=0)] = 256.0
    voice_cache_mb: Annotated[float, Field(ge=0)] = 64.0
    gateways: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    metrics_port: Port | None = 9570


class ConnectConfig(_Section):
    """Where workers and clients find the brokers, one or several; empty lists: at the addresses of section broker."""

    clients: Endpoints = ()
    workers: Endpoints = ()
    results: Endpoints = ()

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if len(self.workers) != len(self.results):
            raise ValueError("workers and results must name the same brokers, in the same order")
        return self


class SecurityConfig(_Section):
    """Who may connect."""

    keys: Path | None = None
    connections: Annotated[int, Field(ge=16)] = 4096
    ipc_mode: Annotated[Literal["0600", "0660"], BeforeValidator(_octal)] = "0600"
    allow_plain: bool = False


class ModelConfig(_Section):
    """The model directory and the device the GPU stages run on."""

    directory: Annotated[Path, AfterValidator(_found)] = Path("pretrained_models/lighttts-nano")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class EncodeConfig(_Section):
    """lighttts-encode: text and prompt audio."""

    concurrency: Annotated[int, Field(ge=1, le=1024)] = 4
    threads: Annotated[int, Field(ge=1)] = 1
    cache_mb: Annotated[float, Field(ge=0)] = 256.0
    cache_s: Annotated[float, Field(gt=0)] = 3600.0
    metrics_port: Port | None = 9571


class LLMConfig(_Section):
    """lighttts-llm: text tokens to speech tokens."""

    style: Annotated[str, Field(max_length=32)] = ""
    slots: Annotated[int, Field(ge=1, le=4096)] = 32
    max_length: Annotated[int, Field(ge=64)] = 4096
    prefill_tokens: Annotated[int, Field(ge=64)] = 4096
    step_ms: Annotated[float, Field(ge=0, le=20)] = 6.0
    threads: Annotated[int, Field(ge=1)] = 1
    metrics_port: Port | None = 9572


class DecodeConfig(_Section):
    """lighttts-decode: speech tokens to mel to audio."""

    streams: Annotated[int, Field(ge=1, le=4096)] = 64
    batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    engine: Literal["cuda-graph", "tensorrt"] = "cuda-graph"
    engine_cache: Path | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    metrics_port: Port | None = 9573


class GatewayConfig(_Section):
    """lighttts-gateway: HTTP and gRPC for those who do not speak ZeroMQ."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8080
    grpc_port: Port | None = None
    keys: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    cors_origins: Annotated[tuple[Origin, ...], BeforeValidator(_listed)] = ()
    proxies: Annotated[tuple[Network, ...], BeforeValidator(_listed)] = ()
    connections: Annotated[int, Field(ge=1)] = 1024

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both, or neither")
        return self

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The files of the certificate and of its key, if TLS is spoken."""
        return (self.tls_certificate, self.tls_key) if self.tls_certificate and self.tls_key else None


class LogConfig(_Section):
    """Logs of the daemons: JSON lines, or for people on a terminal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Config(_Section):
    """The whole configuration."""

    broker: BrokerConfig = BrokerConfig()
    connect: ConnectConfig = ConnectConfig()
    security: SecurityConfig = SecurityConfig()
    model: ModelConfig = ModelConfig()
    encode: EncodeConfig = EncodeConfig()
    llm: LLMConfig = LLMConfig()
    decode: DecodeConfig = DecodeConfig()
    gateway: GatewayConfig = GatewayConfig()
    log: LogConfig = LogConfig()

    @property
    def brokers(self) -> tuple[str, ...]:
        """Where clients find the brokers."""
        return self.connect.clients or (connectable(self.broker.clients),)

    @property
    def worker_brokers(self) -> tuple[tuple[str, str], ...]:
        """Where workers find them: for each the addresses for control and for results."""
        if not self.connect.workers:
            return ((connectable(self.broker.workers), connectable(self.broker.results)),)
        return tuple(zip(self.connect.workers, self.connect.results, strict=True))


def load_config(
    path: Path | None = None, *, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration from `path` (None: defaults), environment and ``section.key=value`` overrides.

    Raises `ConfigError` naming the source, the key and what it should be.
    """
    tree = _read_file(path) if path else {}
    source = f"configuration file {path}" if path else "configuration"
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            _assign(tree, name.removeprefix(ENV_PREFIX).lower().split("__"), value, f"environment variable {name}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as section.key=value")
        _assign(tree, key.split("."), value, f"--set {override}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def _read_file(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > CONFIG_MAX_BYTES:
            raise ConfigError(
                f"configuration file {path} is larger than {CONFIG_MAX_BYTES} bytes: is it the right file?"
            )
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} is not valid YAML: {error.reason} for UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not valid YAML{_where(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {path} must hold sections such as 'broker:' with keys under them")
    return {str(key): value for key, value in tree.items()}


def _where(error: yaml.YAMLError) -> str:
    """What is wrong, and in which line; not what it says there, which may be a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    return f", line {error.problem_mark.line + 1}: {error.problem}"


def _assign(tree: dict[str, object], path: list[str], text: str, source: str) -> None:
    if len(path) != 2:
        raise ConfigError(f"{source}: a key has the form section.key, for example broker.clients")
    section = tree.setdefault(path[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: section {path[0]!r} of the configuration file holds a value, not keys")
    try:
        section[path[1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if name == HOLDS_PASSWORD:
        return f"{name} is no address of a state store: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] != "extra_forbidden":
        return f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    near = difflib.get_close_matches(name, known_keys(), n=1, cutoff=0.0)
    return f"unknown key {name!r}; did you mean {near[0]!r}?"


def known_keys() -> list[str]:
    """Every ``section.key`` there is, and the section names."""
    sections = Config.model_fields
    keys = [f"{name}.{key}" for name, field in sections.items() for key in type(field.default).model_fields]
    return [*sections, *keys]
