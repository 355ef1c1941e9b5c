"""A broker whose speech costs nothing, as a process of its own: what is in front of it is what is measured.

It answers clients as the protocol says. A request's first frame comes at once, the others as they would be played.
"""

from __future__ import annotations

import heapq
import signal
import time
from multiprocessing.connection import Connection

import numpy as np
import zmq

from lighttts.transport import wire
from lighttts.transport.reactor import DRAIN_BUDGET
from lighttts.transport.transport import Sockets

RATE = 24_000
FRAMES = 12
FRAME_S = 0.25
VOICE = "voice"
_TOKENS = 6


class ScriptedBroker:
    """Serves on a free port."""

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._router = self._sockets.router("tcp://127.0.0.1:0")
        self.endpoint = self._router.endpoint
        self._due: list[tuple[float, str, int]] = []
        self._peers: dict[str, bytes] = {}
        self._samples = np.random.default_rng(1).integers(-9000, 9000, int(RATE * FRAME_S), dtype=np.int16)

    def serve(self) -> None:
        """Until it is killed."""
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        while True:
            wait = 1.0 if not self._due else max(0.0, self._due[0][0] - time.monotonic())
            poller.poll(wait * 1000)
            for peer, frames in self._router.receive(DRAIN_BUDGET):
                self._take(peer, wire.decode(frames))
            while self._due and self._due[0][0] <= time.monotonic():
                self._speak(*heapq.heappop(self._due))

    def _take(self, peer: bytes, message: wire.Message) -> None:
        match message:
            case wire.Hello():
                self._send(peer, wire.Welcome("scripted", "scripted", 20_000, 256, True))
            case wire.Synth():
                self._peers[message.request_id] = peer
                self._send(peer, wire.Accepted(message.request_id, RATE))
                self._speak(time.monotonic(), message.request_id, 0)
            case wire.Cancel():
                self._peers.pop(message.request_id, None)
            case wire.GetStatus():
                rows = tuple(wire.WorkerStatus(stage, stage, "nano", "ready", 99, 0, 1.0, 0.0) for stage in wire.STAGES)
                self._send(peer, wire.Status(message.query_id, "scripted", "memory", 1.0, 0, 0, 0, 0, rows))
            case wire.ListVoices():
                self._send(peer, wire.Voices(message.query_id, RATE, (VOICE,)))

    def _speak(self, at: float, request_id: str, seq: int) -> None:
        peer = self._peers.get(request_id)
        if peer is None:
            return
        last = seq == FRAMES - 1
        tokens, first = _TOKENS * (seq + 1), seq * len(self._samples)
        self._send(peer, wire.Audio(request_id, 0, 1, seq, 0, last, first, tokens, self._samples))
        if last:
            self._send(peer, wire.End(request_id, FRAMES, tokens, 1))
            del self._peers[request_id]
        else:
            heapq.heappush(self._due, (at + FRAME_S, request_id, seq + 1))

    def _send(self, peer: bytes, message: wire.Message) -> None:
        self._router.send(peer, wire.encode(message))


def run(pipe: Connection) -> None:
    """The process: tells its address."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    broker = ScriptedBroker()
    pipe.send(broker.endpoint)
    broker.serve()
