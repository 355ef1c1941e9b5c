"""With keys a client is whoever has the key, on however many connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.transport import Sockets
from tests.broker.harness import synth
from tests.broker.peers import Peer, RunningApp
from tests.transport.keys import Keyring


@pytest.mark.parametrize(("guarded", "second"), [(True, "overloaded"), (False, "")])
def test_connections_with_the_same_key_share_a_quota(tmp_path: Path, guarded: bool, second: str) -> None:
    keys = Keyring(tmp_path)
    anna, bob = (keys.admitted(Role.CLIENT, name) if guarded else None for name in ("anna", "bob"))
    with (
        RunningApp(keys=keys.broker if guarded else None, client_requests=1) as running,
        Sockets(None, anna) as hers,
        Sockets(None, bob) as his,
    ):
        first, other, stranger = (Peer(sockets, running.endpoints.clients) for sockets in (hers, hers, his))
        assert refusal(first, "r1") == ""
        assert refusal(other, "r2") == second
        assert refusal(stranger, "r3") == ""


def refusal(peer: Peer, request_id: str) -> str:
    """The code a request is refused with, empty if it is not."""
    peer.say(synth(request_id), wire.Cancel("unknown"))
    error = peer.hear(wire.Error)
    if error.request_id == "unknown":
        return ""
    assert (error.request_id, peer.hear(wire.Error).request_id) == (request_id, "unknown")
    return error.code
