"""One broker that the worker serves: register there, grant it credit, beat, take its work, send results, drain, leave.

Seats share the engine and know nothing of each other: a broker that is away, silent or restarting costs its own work
only. Work and control come over a DEALER, results go over a PUSH.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lighttts import metrics
from lighttts.errors import ProtocolError
from lighttts.logs import get_logger
from lighttts.transport import wire
from lighttts.transport.reactor import Reactor
from lighttts.transport.transport import Sockets
from lighttts.transport.watch import Connection
from lighttts.workers.compute import Compute, ForgetVoice, Parcel
from lighttts.workers.connector import Address, Connector
from lighttts.workers.control import ControlLine
from lighttts.workers.membership import FAREWELL_TIMEOUT, Action, Event, Membership, State
from lighttts.workers.outbox import Outbox
from lighttts.workers.places import Places
from lighttts.workers.stage import Boot, Stage, work_of
from lighttts.workers.workload import Workload

LONG_STEP = 1.0
"""Seconds in one engine step after which the worker does not offer itself to a broker until the step has ended."""
_SHORTEST_BEAT = 0.01


@dataclass(frozen=True)
class Shared:
    """What the seats of a worker have in common."""

    stage: Stage
    boot: Boot
    sockets: Sockets
    reactor: Reactor
    compute: Compute
    places: Places


class Seat:
    """The membership of one broker, from `begin` until its state is `GONE`.

    `number` tells the seat from the worker's others; `changed` is called when its state has changed. Raises
    `ConfigError` on a malformed endpoint or without a usable key.
    """

    def __init__(self, number: int, address: Address, shared: Shared, changed: Callable[[], None]) -> None:
        self._address = address
        self._stage, self._boot, self._compute = shared.stage, shared.boot, shared.compute
        self._places, self._reactor = shared.places, shared.reactor
        self._changed = changed
        self._log = get_logger(stage=self._stage.name, worker=self._boot.worker, broker=address.workers)
        control, self._results = self._connect(shared.sockets)
        self._line = ControlLine(control)
        self._load = Workload(
            number,
            self._stage,
            self._compute,
            self._places,
            Outbox(self._results),
            later=self._reactor.after,
            changed=self._load_changed,
            log=self._log,
        )
        self._membership = Membership(time.monotonic())
        self._credit = 0
        self._settled_at: int | None = None
        self._waiting_told = False
        self._to_register = False

    def _connect(self, sockets: Sockets) -> tuple[Connector, Connector]:
        # No identity: a ROUTER that stood still takes a second connection with one for a duplicate, and is deaf to it.
        control = partial(sockets.watched_dealer, self._address.workers)
        results = partial(sockets.watched_push, self._address.results)
        return (
            Connector(self._reactor, sockets, control, self._control_event, self._log, self._received),
            Connector(self._reactor, sockets, results, self._results_event, self._log),
        )

    @property
    def state(self) -> State:
        """Where the membership stands."""
        return self._membership.state

    @property
    def interval(self) -> float:
        """Seconds between its beats."""
        return self._membership.interval

    @property
    def active(self) -> int:
        """Requests it holds."""
        return len(self._load)

    def begin(self) -> None:
        """Registers as soon as the broker is there, and beats from now on."""
        # The broker's silence counts from here: after this worker another one's model may have been loaded.
        self._membership = Membership(time.monotonic())
        self._register()
        self._tick()

    def on(self, event: Event) -> None:
        """Lets `event` happen to the membership."""
        before = self.state
        actions = self._membership.on(event, time.monotonic())
        if self.state is not before:
            self._log.info("worker state", was=before.value, now=self.state.value, why=event.name.lower())
        for action in actions:
            self._do(action)
        if self.state is not before:
            self._changed()

    def collect(self, parcels: Iterable[Parcel]) -> None:
        """Takes over and sends what the engine has made of its work."""
        self._load.collect(parcels)

    # ---- timers --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._check()
        if self.state is State.GONE:
            return
        if self._to_register:
            self._register()
        self._line.flush()
        self._beat()
        self._settle()
        self._reactor.after(self._membership.interval, self._tick)

    def _check(self) -> None:
        if not self._membership.silent(time.monotonic()):
            return
        if self.state is State.JOINING and not self._waiting_told:
            self._waiting_told = True
            self._log.warning("no answer from the broker, waiting for it", endpoint=self._address.workers)
        self.on(Event.SILENCE)

    # ---- actions of the membership -------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        match action:
            case Action.REGISTER:
                self._register()
            case Action.GRANT:
                self._credit = self._stage.capacity
                self._grant_credit()
                self._waiting_told = False
            case Action.ABANDON:
                self._load.abandon()
            case Action.DRAIN:
                self._line.send(wire.Drain(self._boot.epoch))
                self._settle()
            case Action.BYE:
                self._bye()
            case Action.END:
                pass

    def _register(self) -> None:
        # An engine that has not let go of what it had for this broker, or is stuck, is not ready for more; and work
        # whose results cannot leave would only hold it up.
        free = self._load.clean and self._compute.stuck_for() <= LONG_STEP
        self._to_register = not (free and self._results.connected)
        if self._to_register:
            self._line.void()
        else:
            self._credit = 0
            self._line.begin(self._boot.register())

    def _bye(self) -> None:
        self._line.send(wire.Bye(self._boot.epoch))
        self._reactor.after(FAREWELL_TIMEOUT * 1.1, self._check)
        if not self._line.clear:
            self._reactor.post(lambda: self.on(Event.SILENCE))

    # ---- to the broker -------------------------------------------------------------------------------------------

    def _beat(self) -> bool:
        """Sends a heartbeat; False if it had to be left out."""
        if self.state not in (State.READY, State.DRAINING):
            return False
        waiting = self._stage.waiting + self._places.waiting
        return self._line.beat(wire.Heartbeat(self._boot.epoch, self.active, waiting, self._compute.progress()))

    def _grant_credit(self) -> None:
        if self._credit and self.state is State.READY:
            self._line.send(wire.Grant(self._boot.epoch, self._credit))
            self._credit = 0

    def _settle(self) -> None:
        """Once drained, waits for the answer to one more beat before `Bye`.

        The broker answers it after it has read `Drain`: whatever it had sent before that is here by then, and the last
        results, which travel on the other socket, have had their turn.
        """
        if self.state is not State.DRAINING:
            return
        if not self._load.settled:
            self._settled_at = None
        elif self._settled_at is None:
            if self._beat():
                self._settled_at = self._line.beats
        elif self._line.answers >= self._settled_at:
            self.on(Event.SETTLED)

    def _load_changed(self) -> None:
        self._credit += self._load.freed()
        self._grant_credit()
        self._settle()

    # ---- connections ---------------------------------------------------------------------------------------------

    def _control_event(self, event: Connection) -> None:
        """A new connection may bring a new broker, and a lost one may have taken messages with it."""
        if event is Connection.MADE:
            self._line.flush()
        elif event is Connection.LOST:
            self._speak(wire.VERSION)
            self.on(Event.SILENCE)

    def _speak(self, version: int) -> None:
        if version != self._line.version:
            self._line.version = version
            self._load.speak(version)

    def _results_event(self, event: Connection) -> None:
        if event is Connection.LOST and self.state in (State.READY, State.DRAINING):
            self.on(Event.SILENCE)
        elif event is Connection.MADE and self._to_register:
            self._register()

    # ---- from the broker -----------------------------------------------------------------------------------------

    def _received(self, _peer: bytes, frames: list[bytes]) -> None:
        # A broker that takes no results is as good as silent, whatever it says: the engine, and others, wait for it.
        if not self._load.stands_still():
            self._membership.heard(time.monotonic())
        try:
            message = wire.decode(frames)
        except ProtocolError as error:
            self._refused("malformed", error.text)
            return
        match message:
            case wire.Tokens() | wire.MoreText():
                self._load.feed(message)
            case wire.Alive(epoch=self._boot.epoch):
                self._answered(message.known)
            case wire.EncodeWork() | wire.ConvertWork() | wire.CheckWork() | wire.TextWork():
                self._dispatched(message)
            case wire.GenerateWork() | wire.DecodeWork():
                self._dispatched(message)
            case wire.Forget():
                self._compute.submit(ForgetVoice(message))
            case wire.Abort():
                self._load.abort(message)
            case wire.Registered(epoch=self._boot.epoch):
                self._membership.agree(max(message.heartbeat_ms / 1000, _SHORTEST_BEAT), message.expiry_ms / 1000)
                self.on(Event.REGISTERED)
            case wire.Farewell(epoch=self._boot.epoch):
                self.on(Event.FAREWELL)
            case wire.Ping():
                pass
            case wire.Error():
                self._reported(message, wire.version_of(frames))
            case _:
                self._refused("unknown", f"{type(message).__name__} is not for this worker")

    def _reported(self, error: wire.Error, version: int) -> None:
        """An error; or an older broker, which answers a registration that it does not understand in its own version."""
        if self.state is State.JOINING and not error.request_id and version < self._line.version:
            self._log.info("the broker speaks an older version of the protocol", version=version)
            self._speak(version)
            self._register()
        else:
            self._log.error("the broker reports an error", code=error.code, text=error.text)

    def _answered(self, known: bool) -> None:
        self._line.answers += 1
        if known:
            self._settle()
        else:
            self.on(Event.FORGOTTEN)

    def _dispatched(self, message: wire.StageWork) -> None:
        # Work that crosses `Drain` on its way was sent against valid credit and is done. Work that crosses `Register`
        # is lost: the broker takes it for lost too.
        if self.state in (State.READY, State.DRAINING):
            self._load.take(message)
        else:
            self._load.refused("unregistered", work_of(message))

    def _refused(self, why: str, text: str) -> None:
        metrics.frames_refused.labels(self._stage.name, why).inc()
        self._log.warning("message of the broker refused", why=why, text=text)
