"""A daemon that speaks the broker's protocol on the endpoint of `--set broker.clients=...`, in place of the broker.

SCRIPT=hold accepts requests without answering them, STORY names a pipe that is told "asked" when one comes, MISSING a
stage without workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from lighttts.transport.wire import STAGES, Synth
from tests.client.fake_broker import FakeBroker, Handler, Message, accept_only, serve


def main() -> int:
    settings = dict(flag.split("=", 1) for flag in sys.argv if "=" in flag)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    stages = tuple(stage for stage in STAGES if stage != os.environ.get("MISSING"))
    with FakeBroker(settings["broker.clients"], stages=stages, script={Synth: told(handler())}):
        ended.wait()
    return 0


def handler() -> Handler:
    return accept_only if os.environ.get("SCRIPT") == "hold" else serve


def told(inner: Handler) -> Handler:
    def outer(broker: FakeBroker, peer: bytes, message: Message) -> None:
        inner(broker, peer, message)
        if "STORY" in os.environ:
            with open(os.environ["STORY"], "w") as story:
                story.write("asked\n")

    return outer
