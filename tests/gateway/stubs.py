"""Clients of the gateway's gRPC door, made as its users make them: from its .proto files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tests.gateway.process import Gateway
from tests.system.stack import ROOT

sys.path.append(str(ROOT / "lighttts/gateway/rpc"))
messages, services = grpc.protos_and_services("lighttts.proto")
Speech = messages.SynthesizeRequest
Manner = messages.Manner
Heard = messages.Audio
TINY = Manner(voice="tiny-voice")


@contextmanager
def dialled(gateway: Gateway, **options: Any) -> Iterator[Any]:
    """A stub of lighttts.v1.Speech at `gateway`."""
    with grpc.insecure_channel(gateway.rpc, [(f"grpc.{name}", value) for name, value in options.items()]) as channel:
        yield services.SpeechStub(channel)


def told(error: grpc.RpcError) -> dict[str, str]:
    """The trailing metadata of a failed call."""
    return dict(error.trailing_metadata())
