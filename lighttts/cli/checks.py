"""What `doctor` looks at. Each check yields findings: fine, worth knowing, or a problem with what mends it."""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lighttts.cli.ask import ask_status
from lighttts.errors import LightTTSError
from lighttts.gateway.identity import read_identity
from lighttts.gateway.keys import check_access, read_keys
from lighttts.kernels import missing
from lighttts.transport.endpoints import connectable, listening

if TYPE_CHECKING:
    from lighttts.config import Config

PACKAGES = {
    "client": ("pyzmq", "msgpack", "numpy"),
    "audio": ("soundfile",),
    "server": ("pydantic", "pyyaml", "prometheus-client", "redis", "structlog"),
    "worker": ("torch", "tokenizers", "onnxruntime", "soxr", "wetext"),
    "gateway": ("av", "grpcio", "grpcio-tools", "python-multipart", "starlette", "uvicorn", "websockets"),
}
_SPARED = ("gateway",)
"""Extras that a machine may well be without."""
_MODULES = {
    "pyzmq": "zmq",
    "pyyaml": "yaml",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
    "grpcio": "grpc",
    "grpcio-tools": "grpc_tools",
}
FILES_BESIDE_REQUESTS = 256
"""Descriptors a broker needs beyond one for each client."""


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


class Finding(NamedTuple):
    """One line of the doctor's report; a problem's text says what mends it."""

    level: Level
    text: str


def python(version: tuple[int, ...] = tuple(sys.version_info[:3]), platform: str = sys.platform) -> Iterator[Finding]:
    """The interpreter's version and the system."""
    shown = ".".join(map(str, version))
    if version < (3, 11):
        yield Finding(Level.PROBLEM, f"Python {shown} is too old: use 3.11 or newer")
    elif platform != "linux":
        yield Finding(Level.PROBLEM, f"the daemons run on Linux, this is {platform}")
    else:
        yield Finding(Level.OK, f"Python {shown} on Linux")


def packages() -> Iterator[Finding]:
    """The packages of every extra, by importing them: a broken one is found too."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for extra, names in PACKAGES.items():
        broken = []
        for name in names:
            try:
                importlib.import_module(_MODULES.get(name, name))
            except (ImportError, OSError) as error:
                broken.append(f"{name} ({error})")
        install = "pip install lighttts" if extra == "client" else f"pip install 'lighttts[{extra}]'"
        if broken:
            level = Level.NOTE if extra in _SPARED else Level.PROBLEM
            yield Finding(level, f"packages of {extra} cannot be imported: {', '.join(broken)}; {install}")
        else:
            versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
            yield Finding(Level.OK, f"packages of {extra}: {versions}")


def model(directory: Path) -> Iterator[Finding]:
    """Every file of the model directory."""
    from lighttts.models.directory import check

    problems = check(directory)
    for problem in problems:
        yield Finding(Level.PROBLEM, problem)
    if not problems:
        yield Finding(Level.OK, f"model {directory} is whole")


def device(config: Config) -> Iterator[Finding]:
    """The device the workers run on."""
    import torch

    wanted = config.model.device
    driver = Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding(Level.OK, f"GPU: {names}; the workers use {wanted}")
        if wanted != "cpu":
            yield from compiling()
    elif wanted.startswith("cuda"):
        why = "torch is built without CUDA" if driver else "there is no NVIDIA driver"
        yield Finding(Level.PROBLEM, f"model.device is {wanted}, but {why}: install it, or set model.device to cpu")
    elif driver and wanted == "auto":
        yield Finding(Level.PROBLEM, "there is an NVIDIA driver, but torch cannot use it: install torch with CUDA")
    else:
        yield Finding(Level.OK, "no GPU: the workers run on the CPU")


def compiling() -> Iterator[Finding]:
    """Whether the kernels for a GPU can be compiled."""
    lacks = missing()
    if lacks:
        yield Finding(Level.PROBLEM, f"a GPU's kernels are compiled at a worker's first start, which needs {lacks}")
    else:
        yield Finding(Level.OK, "kernels for the GPU can be compiled")


def files(config: Config) -> Iterator[Finding]:
    """The number of open files: a broker that runs out of them is lost."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # daemons raise their own limit to the hard one
    needed = config.broker.max_requests + FILES_BESIDE_REQUESTS
    if most == resource.RLIM_INFINITY or most >= needed:
        yield Finding(Level.OK, f"open files: {most if most >= 0 else 'no limit'}")
    else:
        text = f"open files are limited to {most}, {config.broker.max_requests} clients need {needed}"
        yield Finding(
            Level.PROBLEM, f"{text}: raise the hard limit (LimitNOFILE=, limits.conf), or lower broker.max_requests"
        )


def redis(config: Config) -> Iterator[Finding]:
    """The state store, if it is Redis."""
    url = config.broker.state
    if url.startswith("memory:"):
        yield Finding(Level.OK, "state is kept in memory: requests end with the broker")
        return
    try:
        from lighttts.cli.redis_check import findings
    except ImportError:
        return  # `packages` has told it
    yield from findings(url)


def api_keys(config: Config) -> Iterator[Finding]:
    """Who may use the gateway."""
    settings = config.gateway
    try:
        check_access(settings.host, settings.keys, plain=config.security.allow_plain)
        keys = read_keys(settings.keys) if settings.keys else None
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)
        return
    if keys is None:
        yield Finding(Level.OK, f"the gateway has no API keys: whoever reaches {settings.host} may use it")
    elif keys:
        yield Finding(Level.OK, f"{len(keys)} API key{'s' if len(keys) > 1 else ''} in {settings.keys}")
    else:
        text = f"{settings.keys} holds no API key, so that nobody may use the gateway"
        yield Finding(Level.PROBLEM, f"{text}: make one with `lighttts-cli api-keys add NAME`")


def certificate(config: Config) -> Iterator[Finding]:
    """Whether the gateway can speak TLS, if it is to."""
    if not config.gateway.tls:
        return
    try:
        read_identity(*config.gateway.tls)
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)
    else:
        yield Finding(Level.OK, f"the gateway's certificate: {config.gateway.tls_certificate}")


def ports(config: Config) -> Iterator[Finding]:
    """Whether a broker could listen; only asked while none runs."""
    wanted = {f"broker.{name}": getattr(config.broker, name) for name in ("clients", "workers", "results")}
    for name in ("broker", "encode", "llm", "decode"):
        port = getattr(config, name).metrics_port
        if port:
            wanted[f"{name}.metrics_port"] = f"tcp://127.0.0.1:{port}"
    taken = [f"{key} ({endpoint})" for key, endpoint in wanted.items() if listening(connectable(endpoint))]
    if taken:
        text = f"in use by another program: {', '.join(taken)}"
        yield Finding(Level.PROBLEM, f"{text}; stop it, or set other addresses")
    else:
        yield Finding(Level.OK, f"addresses are free: {', '.join(wanted.values())}")


def broker(address: str, keys: Path | None = None, *, alone: bool = True) -> Iterator[Finding]:
    """A running broker and its workers; `keys` is the folder of keys to ask it with. Not `alone`: others of a list
    are to go on with what it does."""
    try:
        status = ask_status(address, keys)
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)
        return
    yield Finding(Level.OK, f"broker {status.broker} answers at {address}")
    if status.store == "memory" and not alone:
        text = f"broker {status.broker} keeps its state in memory, so no other can go on with its requests"
        yield Finding(Level.PROBLEM, f"{text}: set broker.state to the Redis that all of them share")
    for stage in ("encode", "llm", "decode"):
        count = sum(worker.stage == stage and worker.state == "ready" for worker in status.workers)
        if count:
            yield Finding(Level.OK, f"{count} {stage} worker{'s' if count > 1 else ''} ready")
        else:
            yield Finding(Level.PROBLEM, f"no {stage} worker is ready: start lighttts-{stage}, or read its log")
