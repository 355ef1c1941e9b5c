"""A program may run the gateway inside itself and hold its own code generated from the same .proto."""

from __future__ import annotations

from lighttts.gateway.rpc.protos import Service
from tests.gateway.stubs import messages


def test_the_gateways_messages_are_not_those_of_generated_code_in_the_same_process() -> None:
    service = Service("lighttts.proto", "lighttts.v1.Speech")
    ours = service.kinds["SynthesizeRequest"]
    assert ours is not messages.SynthesizeRequest
    assert ours.FromString(messages.SynthesizeRequest(text="hello").SerializeToString()).text == "hello"
