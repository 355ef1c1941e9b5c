"""What a request costs the broker: milliseconds of its CPU time, with the text whole and with the text in pieces.

One process plays client and workers, who answer at once; the broker and Redis are processes of their own. A request has
15 words. It becomes 60 speech tokens in frames of 4, and four chunks of audio, whichever way its text comes; in pieces,
each word is written when the ids of those before have come back, so that no two are encoded together, and a sentence
without tokens and without audio ends it.

    python -m benchmarks.broker_text [--requests N] [--at-once N] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from typing import NamedTuple

import numpy as np

from benchmarks.rig import EPOCHS, UNBOUNDED, Plan, broker, cpu_s, redis_server, send
from lighttts.transport import wire
from lighttts.transport.reactor import DRAIN_BUDGET
from lighttts.transport.transport import Sockets

WORDS, FRAMES, FRAME, CHUNKS = 15, 15, 4, 4
SAMPLES = FRAMES * FRAME * 960 // CHUNKS
NONE = np.zeros(0, np.int32)
NO_VOICE = (NONE, np.zeros((0, wire.MEL_BINS), np.float32), np.zeros(wire.EMBEDDING_SIZE, np.float32))


class Figure(NamedTuple):
    requests_per_second: float
    cpu_ms: float
    """Of the broker, for each request."""


class Rig:
    """The client and one worker of each stage. `whole`: whether texts come whole."""

    def __init__(self, sockets: Sockets, endpoints: tuple[str, str, str], whole: bool, at_once: int) -> None:
        clients, workers, results = endpoints
        self._whole = whole
        self._push = sockets.push(results)
        self._client = sockets.dealer(clients, b"client")
        self._workers = {stage: sockets.dealer(workers, stage.encode()) for stage in wire.STAGES}
        for stage, link in self._workers.items():
            send(link, wire.Register(stage, EPOCHS[stage], stage, "", "", 24000, ("voice",)))
            send(link, wire.Grant(EPOCHS[stage], at_once))
        send(self._client, wire.Hello("bench", "bench"))
        self.ended = 0
        self._heard: dict[str, int] = {}
        self._begun = 0

    def run(self, requests: int, at_once: int) -> None:
        """Has so many requests served."""
        self.ended = self._begun = 0
        while self.ended < requests:
            while self._begun < min(requests, self.ended + at_once):
                self._ask()
            for link in (self._client, *self._workers.values()):
                for _, frames in link.receive(DRAIN_BUDGET):
                    self._answer(wire.decode(frames))
            time.sleep(0.0002)

    def _ask(self) -> None:
        self._begun += 1
        name = f"request-{self._whole}-{time.monotonic_ns()}"
        text, pieces = ("word " * WORDS, "") if self._whole else ("", "interleaved")
        send(self._client, wire.Synth(name, text, "voice", "", 0, 1.0, "audio", "s16", 0, 256, b"", pieces=pieces))
        if pieces:
            self._write(name)

    def _write(self, name: str) -> None:
        """The next word, or the end behind the last."""
        seq = self._heard[name] = self._heard.get(name, -1) + 1
        if seq <= WORDS:
            send(self._client, wire.Piece(name, seq, "word ") if seq < WORDS else wire.Finish(name, seq))

    def _answer(self, message: wire.Message) -> None:
        match message:
            case wire.EncodeWork():
                lengths, ids = ((), NONE) if message.pieces else ((WORDS,), np.zeros(WORDS, np.int32))
                named = (message.request_id, message.attempt, EPOCHS["encode"])
                self._result(wire.Encoded(*named, lengths, "key", ids, NONE, NONE, *NO_VOICE, pieces=message.pieces))
                self._free("encode")
            case wire.TextWork():
                count = len(message.text.split())
                used = len(message.text) if message.flush else 0
                named = (message.request_id, message.attempt, EPOCHS["encode"])
                self._result(wire.EncodedText(*named, (count,), message.flush, used, np.zeros(count, np.int32)))
                self._free("encode")
                self._write(message.request_id)
            case wire.GenerateWork() if not message.pieces:
                self._generate(message.request_id, message.attempt, 0)
            case wire.MoreText() if message.final and not message.last:
                self._generate(message.request_id, message.attempt, 0)
            case wire.MoreText() if message.last:
                name = message.request_id
                self._result(wire.Tokens(name, message.attempt, EPOCHS["llm"], FRAMES, 1, True, True, NONE))
                self._free("llm")
            case wire.Tokens():
                self._decode(message)
            case wire.End():
                send(self._client, wire.EndAck(message.request_id))
                self._heard.pop(message.request_id, None)
                self.ended += 1
            case wire.Error() | wire.StageFailed():
                raise RuntimeError(f"{message}")

    def _generate(self, name: str, attempt: int, sentence: int) -> None:
        for seq in range(FRAMES):
            final = seq == FRAMES - 1
            ids = np.zeros(FRAME, np.int32)
            self._result(wire.Tokens(name, attempt, EPOCHS["llm"], seq, sentence, final, final and self._whole, ids))
        if self._whole:
            self._free("llm")

    def _decode(self, message: wire.Tokens) -> None:
        """Audio when a quarter of the tokens has come."""
        name, done = message.request_id, message.seq + 1
        chunk = done * CHUNKS // FRAMES - 1
        if done <= FRAMES and chunk != message.seq * CHUNKS // FRAMES - 1:
            last = self._whole and chunk == CHUNKS - 1
            samples = np.zeros(SAMPLES, np.int16)
            self._result(wire.Audio(name, 0, EPOCHS["decode"], chunk, 0, last, chunk * SAMPLES, done * FRAME, samples))
        if message.last:
            self._free("decode")
        if message.last and not self._whole:
            tokens = FRAMES * FRAME
            self._result(
                wire.Audio(name, 0, EPOCHS["decode"], CHUNKS, 1, True, CHUNKS * SAMPLES, tokens, np.zeros(0, np.int16))
            )

    def _free(self, stage: str) -> None:
        """A place at a worker is free again."""
        send(self._workers[stage], wire.Grant(EPOCHS[stage], 1))

    def _result(self, message: wire.Message) -> None:
        send(self._push, message)


def measure(state: str, whole: bool, requests: int, at_once: int) -> Figure:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=broker, args=(there, Plan(0, at_once, 0, state=state)), daemon=True)
    process.start()
    sockets = Sockets(UNBOUNDED)
    try:
        rig = Rig(sockets, here.recv(), whole, at_once)
        rig.run(at_once, at_once)
        assert process.pid
        cpu, began = cpu_s(process.pid), time.monotonic()
        rig.run(requests, at_once)
        cpu, seconds = cpu_s(process.pid) - cpu, time.monotonic() - began
        return Figure(requests / seconds, 1000 * cpu / requests)
    finally:
        process.terminate()
        process.join()
        sockets.close()


def main() -> None:
    """Measures, then prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with redis_server() as url:
        figures = {
            name: measure(url, whole, options.requests, options.at_once)
            for name, whole in (("whole", True), (f"{WORDS} pieces", False))
        }
    if options.json:
        print(json.dumps({name: figure._asdict() for name, figure in figures.items()}))
        return
    print(f"{'text':<12}{'requests/s':>12}{'CPU ms/request':>16}")
    for name, figure in figures.items():
        print(f"{name:<12}{figure.requests_per_second:>12.0f}{figure.cpu_ms:>16.2f}")


if __name__ == "__main__":
    main()
