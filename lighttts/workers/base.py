"""What every worker does around its stage: register, grant credit, beat, take work, send results, abort, drain, leave.

Two threads. This one owns the sockets and never computes; `Compute` runs the stage and never touches a socket. Work and
control come over a DEALER, results go over a PUSH.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lighttts import metrics
from lighttts.errors import InternalError, LightTTSError, ProtocolError
from lighttts.logs import get_logger
from lighttts.notify import notify, watchdog_interval
from lighttts.transport import wire
from lighttts.transport.reactor import Reactor
from lighttts.transport.security import Proof
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from lighttts.transport.watch import Connection, connection_event
from lighttts.workers.compute import Compute
from lighttts.workers.control import ControlLine
from lighttts.workers.membership import FAREWELL_TIMEOUT, Action, Event, Membership, State
from lighttts.workers.outbox import Outbox
from lighttts.workers.report import Report
from lighttts.workers.stage import Boot, Stage, work_of
from lighttts.workers.workload import Workload

COMPUTE_STOP = 5.0
"""Seconds a leaving worker gives its engine to finish the step it is in."""
STUCK = 30.0
"""Seconds in one engine step after which the worker reports itself unhealthy."""
HIGH_WATER_MARK = 256
"""Messages a socket queues: bounds the audio that waits in memory for a slow broker."""
_SHORTEST_BEAT = 0.01


class Worker:
    """One worker's life, from `run` to the exit code it returns.

    `workers` and `results` are the broker's endpoints, `proof` what to prove there if they are tcp; `observe` is called
    at every beat to update gauges of the stage. Raises `ConfigError` on a malformed endpoint or without a usable key.
    """

    def __init__(
        self,
        stage: Stage,
        boot: Boot,
        *,
        workers: str,
        results: str,
        proof: Proof | None = None,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        self._stage = stage
        self._boot = boot
        self._endpoint = workers
        self._report = Report(stage, observe)
        self._log = get_logger(stage=stage.name, worker=boot.worker)
        self._sockets = Sockets(SocketOptions(high_water_mark=HIGH_WATER_MARK), proof)
        self._reactor = Reactor()
        try:
            self._line = self._connect(workers)
            outbox = Outbox(self._sockets.push(results))
        except LightTTSError:
            self._sockets.close()
            self._reactor.close()
            raise
        self._compute = Compute(stage, lambda: self._reactor.post(self._collect))
        later = self._reactor.after
        self._load = Workload(stage, self._compute, outbox, later=later, changed=self._load_changed, log=self._log)
        self._membership = Membership(time.monotonic())
        self._credit = 0
        self._settled_at: int | None = None
        self._waiting_told = False
        self._to_register = False
        self._exit_code = 0
        # Reentrant: a signal may come while this thread holds it.
        self._life = threading.RLock()
        self._ended = False
        self.hung = False
        """After `run`: the engine did not come back from its last step."""

    def _connect(self, endpoint: str) -> ControlLine:
        control, connection = self._sockets.watched_dealer(endpoint, self._boot.identity)
        self._reactor.add(control, self._received)
        self._reactor.add(connection, self._connection)
        return ControlLine(control)

    # ---- from any thread -----------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Drains and ends; asked again, ends at once. May be called from signal handlers."""
        self._tell(Event.TERMINATE)

    def stop(self) -> None:
        """Ends at once; work in hand is lost. May be called from signal handlers."""
        self._tell(Event.STOP)

    def _tell(self, event: Event) -> None:
        with self._life:
            if not self._ended:
                self._reactor.post(lambda: self._on(event))

    def health(self) -> tuple[bool, str]:
        """Whether the worker can serve, and a sentence about it."""
        state, stuck = self._membership.state, self._compute.stuck_for()
        if stuck > STUCK:
            return False, f"the engine has been in one step for {stuck:.0f} s"
        return state is State.READY, f"{state.value}, {len(self._load)} active"

    # ---- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serves until it is told to end; returns the process' exit code."""
        self._compute.start()
        self._register()
        self._tick()
        watchdog = watchdog_interval()
        if watchdog:
            self._reactor.every(watchdog, self._watch)
        try:
            self._reactor.run()
        finally:
            self.hung = not self._compute.stop(COMPUTE_STOP)
            self._sockets.close()
            with self._life:
                self._ended = True
            if not self.hung:
                self._reactor.close()
        self._log.info("worker ended", exit_code=self._exit_code)
        return self._exit_code

    def _on(self, event: Event) -> None:
        before = self._membership.state
        actions = self._membership.on(event, time.monotonic())
        if self._membership.state is not before:
            self._log.info("worker state", was=before.value, now=self._membership.state.value, why=event.name.lower())
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Action.REGISTER:
                self._register()
            case Action.GRANT:
                self._grant()
            case Action.ABANDON:
                self._load.abandon()
            case Action.DRAIN:
                self._drain()
            case Action.BYE:
                self._bye()
            case Action.END:
                self._reactor.stop()

    def _tick(self) -> None:
        self._check()
        if self._to_register:
            self._register()
        self._line.flush()
        self._beat()
        self._settle()
        self._report(self._membership.state, len(self._load))
        self._reactor.after(self._membership.interval, self._tick)

    def _check(self) -> None:
        if not self._membership.silent(time.monotonic()):
            return
        if self._membership.state is State.JOINING and not self._waiting_told:
            self._waiting_told = True
            self._log.warning("no answer from the broker, waiting for it", endpoint=self._endpoint)
        self._on(Event.SILENCE)

    def _watch(self) -> None:
        if self._compute.moved():
            notify("WATCHDOG=1")

    # ---- actions of the membership -------------------------------------------------------------------------------

    def _register(self) -> None:
        # An engine that has not let go of what it had, stuck perhaps, is not ready for more.
        self._to_register = self._compute.behind
        if self._to_register:
            return
        self._credit = 0
        self._line.begin(self._boot.register())

    def _grant(self) -> None:
        self._credit = self._stage.capacity
        self._grant_credit()
        self._waiting_told = False
        self._report(self._membership.state, len(self._load))

    def _drain(self) -> None:
        notify("STOPPING=1")
        self._line.send(wire.Drain(self._boot.epoch))
        self._settle()

    def _bye(self) -> None:
        notify("STOPPING=1")
        self._line.send(wire.Bye(self._boot.epoch))
        self._reactor.after(FAREWELL_TIMEOUT * 1.1, self._check)
        if not self._line.clear:
            self._reactor.post(lambda: self._on(Event.SILENCE))

    # ---- to the broker -------------------------------------------------------------------------------------------

    def _beat(self) -> bool:
        """Sends a heartbeat; False if it had to be left out."""
        if self._membership.state not in (State.READY, State.DRAINING):
            return False
        return self._line.beat(
            wire.Heartbeat(self._boot.epoch, len(self._load), self._stage.waiting, self._compute.progress())
        )

    def _grant_credit(self) -> None:
        if self._credit and self._membership.state is State.READY:
            self._line.send(wire.Grant(self._boot.epoch, self._credit))
            self._credit = 0

    def _settle(self) -> None:
        """Once drained, waits for the answer to one more beat before `Bye`.

        The broker answers it after it has read `Drain`: whatever it had sent before that is here by then, and the last
        results, which travel on the other socket, have had their turn.
        """
        if self._membership.state is not State.DRAINING:
            return
        if not self._load.settled:
            self._settled_at = None
        elif self._settled_at is None:
            if self._beat():
                self._settled_at = self._line.beats
        elif self._line.answers >= self._settled_at:
            self._on(Event.SETTLED)

    # ---- from the compute thread ---------------------------------------------------------------------------------

    def _collect(self) -> None:
        self._load.collect()
        if self._compute.broken:
            self._exit_code = InternalError.exit_code
            self._on(Event.BROKEN)

    def _load_changed(self) -> None:
        self._credit += self._load.freed()
        self._grant_credit()
        self._settle()

    def _connection(self, _peer: bytes, frames: list[bytes]) -> None:
        """A new connection may bring a new broker, and a lost one may have taken messages with it."""
        match connection_event(frames):
            case Connection.MADE:
                self._line.flush()
            case Connection.LOST:
                self._on(Event.SILENCE)
            case Connection.REFUSED | Connection.MISMATCHED:
                text = "the broker ended the handshake: it does not take this worker's key, or is restarting"
                self._log.warning(text, endpoint=self._endpoint)

    # ---- from the broker -----------------------------------------------------------------------------------------

    def _received(self, _peer: bytes, frames: list[bytes]) -> None:
        self._membership.heard(time.monotonic())
        try:
            message = wire.decode(frames)
        except ProtocolError as error:
            self._refused("malformed", error.text)
            return
        match message:
            case wire.Tokens():
                self._load.feed(message)
            case wire.Alive(epoch=self._boot.epoch):
                self._answered(message.known)
            case wire.EncodeWork() | wire.GenerateWork() | wire.DecodeWork():
                self._dispatched(message)
            case wire.Abort():
                self._load.abort(work_of(message))
            case wire.Registered(epoch=self._boot.epoch):
                self._registered(message)
            case wire.Farewell(epoch=self._boot.epoch):
                self._on(Event.FAREWELL)
            case wire.Ping():
                pass
            case wire.Error():
                self._log.error("the broker reports an error", code=message.code, text=message.text)
            case _:
                self._refused("unknown", f"{type(message).__name__} is not for this worker")

    def _registered(self, message: wire.Registered) -> None:
        self._membership.agree(max(message.heartbeat_ms / 1000, _SHORTEST_BEAT), message.expiry_ms / 1000)
        self._on(Event.REGISTERED)

    def _answered(self, known: bool) -> None:
        self._line.answers += 1
        if known:
            self._settle()
        else:
            self._on(Event.FORGOTTEN)

    def _dispatched(self, message: wire.EncodeWork | wire.GenerateWork | wire.DecodeWork) -> None:
        # Work that crosses `Drain` on its way was sent against valid credit and is done. Work that crosses `Register`
        # is lost: the broker takes it for lost too.
        if self._membership.state in (State.READY, State.DRAINING):
            self._load.take(message)
        else:
            self._load.refused("unregistered", work_of(message))

    def _refused(self, why: str, text: str) -> None:
        metrics.frames_refused.labels(self._stage.name, why).inc()
        self._log.warning("message of the broker refused", why=why, text=text)
