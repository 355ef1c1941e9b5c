"""What workers say on their control connection, and which of them are lost."""

from __future__ import annotations

from collections.abc import Callable

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import error_frames
from lighttts.broker.instructions import Reply
from lighttts.broker.outbox import Budget, Channel, Outbox
from lighttts.broker.takeover import Takeover
from lighttts.broker.workers import Worker, WorkerState
from lighttts.errors import Overloaded, ProtocolError
from lighttts.transport.wire import (
    Alive,
    Bye,
    Drain,
    Farewell,
    Grant,
    Heartbeat,
    Message,
    Ping,
    Register,
    Registered,
    decode,
    encode,
    version_of,
)

LEAVE_GRACE_S = 0.5
"""Seconds that results of a worker which has said `Bye` may still be on their way: they come by another connection."""
BACKLOG_BYTES = 256 << 20
"""Most that waits for a worker that does not read, before it is given up."""
PROBE_BEATS = 1.2
"""Missed heartbeats after which the broker looks whether a worker's connection stands."""
LONGEST_TURN_S = 1.0
"""Seconds between two ticks above which this process, not its workers, was silent."""
NAMESAKE_BEATS = 2.0
"""Missed heartbeats after which a worker gives way to another of its name."""


class Control:
    """Registration, credit and liveness of workers."""

    def __init__(self, board: Board, dispatcher: Dispatcher, takeover: Takeover) -> None:
        self._board = board
        self._step = board.step
        self._settings = board.settings
        self._workers = board.workers
        self._dispatcher = dispatcher
        self._takeover = takeover
        self._ticked = board.started
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Grant: self._grant,
            Heartbeat: self._heartbeat,
            Drain: self._drain,
            Bye: self._bye,
        }

    def receive(self, identity: bytes, frames: list[bytes], now: float) -> None:
        """Handles one message from the workers' socket; what is no message of a worker is answered with an `Error`."""
        try:
            message = decode(frames)
        except ProtocolError as error:
            self._refuse(identity, "malformed", error)
            return
        if isinstance(message, Register):
            self._register(identity, message, version_of(frames), now)
        elif isinstance(message, Grant | Heartbeat | Drain | Bye):
            self._known(identity, message, now)
        else:
            text = f"{type(message).__name__} is not a message of a worker"
            self._refuse(identity, "wrong_role", ProtocolError(f"{text}: clients connect to another address"))

    def lose(self, worker: Worker, why: str, now: float, *, died: bool) -> None:
        """The worker is gone: others take over what it had in hand. `died`: of what, nobody knows."""
        self._workers.remove(worker, now)
        if worker.state is WorkerState.READY or worker.active:
            self._step.log(
                "warning", "worker lost", worker=worker.name, stage=worker.stage, why=why, requests=len(worker.active)
            )
        worker.outbox.clear()
        self._takeover.lost(worker, now, died=died)

    def gone(self, identity: bytes, now: float) -> None:
        """No connection of that routing id is left."""
        for worker in self._workers:
            if worker.identity == identity:
                self.lose(worker, "its connection closed", now, died=True)

    def tick(self, now: float) -> None:
        """Gives up workers that are silent, that have left, or that do not read."""
        self._forgive_own_silence(now)
        for worker in self._workers:
            if worker.state is WorkerState.LEAVING:
                if not worker.active or now >= worker.leave_by:
                    self._part(worker, now)
            elif now - worker.seen > self._settings.expiry_s:
                self.lose(worker, f"not heard for {now - worker.seen:.1f} s", now, died=True)
            elif worker.active and now - worker.moved > self._settings.stall_s:
                self.lose(worker, f"its engine has not moved for {now - worker.moved:.1f} s", now, died=True)
            elif worker.outbox.size > BACKLOG_BYTES:
                self.lose(worker, "it does not read what it is sent", now, died=True)
            elif now - worker.seen > PROBE_BEATS * self._settings.heartbeat_s:
                self._answer(worker.identity, Ping(worker.epoch))

    def _forgive_own_silence(self, now: float) -> None:
        """Time in which this process did not run is no silence of the workers."""
        paused = now - self._ticked
        self._ticked = now
        if paused > min(LONGEST_TURN_S, self._settings.expiry_s / 2):
            for worker in self._workers:
                worker.seen += paused
                worker.moved += paused

    # ---- messages ------------------------------------------------------------------------------------------------

    def _register(self, identity: bytes, hello: Register, version: int, now: float) -> None:
        silent_since = now - NAMESAKE_BEATS * self._settings.heartbeat_s
        for old in self._workers.same(identity, hello, silent_since):
            self.lose(old, "it registered anew", now, died=False)
        if self._workers.full:
            self._refuse(identity, "full", Overloaded(f"the broker has {len(self._workers)} workers and takes no more"))
            return
        outbox = Outbox(Channel.WORKERS, identity, Budget(BACKLOG_BYTES))
        worker = Worker(hello, outbox, registered=now, seen=now, version=version, moved=now)
        self._workers.add(worker, now)
        beat, expiry = (round(1000 * seconds) for seconds in (self._settings.heartbeat_s, self._settings.expiry_s))
        self._dispatcher.send(worker, Registered(hello.epoch, self._board.name, beat, expiry))
        self._step.log("info", "worker registered", worker=worker.name, stage=worker.stage, model=hello.model)

    def _known(self, identity: bytes, message: Grant | Heartbeat | Drain | Bye, now: float) -> None:
        worker = self._workers.get(identity, message.epoch)
        if worker:
            worker.seen = now
            self._handlers[type(message)](worker, message, now)
        else:
            parted = isinstance(message, Bye)
            self._answer(identity, Farewell(message.epoch) if parted else Alive(message.epoch, known=False))

    def _grant(self, worker: Worker, message: Grant, now: float) -> None:
        self._workers.grant(worker, message.credit)
        self._dispatcher.run(worker.stage, now)

    def _heartbeat(self, worker: Worker, message: Heartbeat, now: float) -> None:
        if message.progress != worker.progress:
            worker.progress, worker.moved = message.progress, now
        self._answer(worker.identity, Alive(message.epoch, known=True))

    def _drain(self, worker: Worker, message: Drain, now: float) -> None:
        self._workers.retire(worker, WorkerState.DRAINING, now)
        self._step.log("info", "worker drains", worker=worker.name, stage=worker.stage, requests=len(worker.active))

    def _bye(self, worker: Worker, message: Bye, now: float) -> None:
        self._workers.retire(worker, WorkerState.LEAVING, now)
        worker.leave_by = now + LEAVE_GRACE_S
        if not worker.active:
            self._part(worker, now)

    def _part(self, worker: Worker, now: float) -> None:
        self._step.log("info", "worker left", worker=worker.name, stage=worker.stage)
        self.lose(worker, "it was stopped", now, died=False)
        self._answer(worker.identity, Farewell(worker.epoch))

    # ---- answers -------------------------------------------------------------------------------------------------

    def _answer(self, identity: bytes, message: Message) -> None:
        self._step.add(Reply(Channel.WORKERS, identity, encode(message)))

    def _refuse(self, identity: bytes, why: str, error: ProtocolError | Overloaded) -> None:
        self._board.refusals.add(why, error.text)
        self._step.add(Reply(Channel.WORKERS, identity, error_frames("", error)))
