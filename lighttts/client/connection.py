"""The one connection of a client: to which broker, in which protocol version, and whether it is heard. Pure.

OFFLINE --made--> GREETING (Hello is sent) --Welcome--> READY
GREETING --the broker answers in an older version--> GREETING (Hello is sent in that)
GREETING, READY --lost--> OFFLINE
any --another broker has its turn, silence, no workers--> LEFT (what still comes counts for nothing) --opened--> OFFLINE
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from lighttts.client.absence import Absence
from lighttts.client.brokers import Brokers
from lighttts.client.events import Connect, Instruction, Send
from lighttts.client.silence import ALONE, AMONG_OTHERS, Silence
from lighttts.errors import LightTTSError
from lighttts.transport.schema import Buffer
from lighttts.transport.wire import OLDEST, VERSION, Hello, Welcome, version_of


class Link(enum.Enum):
    """The connection's state."""

    OFFLINE = enum.auto()
    GREETING = enum.auto()
    READY = enum.auto()
    LEFT = enum.auto()


class Connection:
    """Connects to one of `brokers` after the other. `hello` introduces the client; `emit` takes the instructions."""

    def __init__(self, brokers: Brokers, absence: Absence, hello: Hello, emit: Callable[[Instruction], None]) -> None:
        self.link = Link.OFFLINE
        self.version = VERSION
        self._brokers = brokers
        self._absence = absence
        self._hello = hello
        self._emit = emit
        self._silence = Silence(ALONE if brokers.alone else AMONG_OTHERS)

    @property
    def endpoint(self) -> str:
        """The broker that a connection is open to, or is to be."""
        return self._brokers.endpoint

    @property
    def due(self) -> float:
        """When the next broker has its turn, if this one does not answer; see also `silence_due`."""
        return self._brokers.due

    def absent(self, now: float) -> LightTTSError:
        """Why no broker answers."""
        return self._absence.error(now)

    # ---- what becomes of it ----

    def opened(self) -> None:
        """What `Connect` asked for is done: whatever comes now is of the new connection."""
        self.link = Link.OFFLINE

    def unopened(self, now: float) -> None:
        """It could not be done."""
        self.opened()
        self._brokers.mismatched(now)

    def made(self, now: float) -> None:
        """There is a connection: the client introduces itself."""
        if self.link is not Link.LEFT:
            self.version = VERSION
            self._greet(now)

    def refused(self, now: float, *, for_good: bool = False) -> None:
        """The broker does not let this client in; `for_good`: and libzmq does not try this connection again."""
        if self.link is Link.LEFT:
            return
        self._absence.refused(self.endpoint, now)
        if for_good:
            self._brokers.mismatched(now)

    def lost(self, now: float) -> None:
        """The connection is lost."""
        self.link = Link.OFFLINE
        if self._brokers.lost(now):
            self._leave()

    def welcomed(self, message: Welcome, now: float) -> bool:
        """The broker has answered. True if requests may be sent from now on."""
        if self.link is not Link.GREETING:
            return False
        if self._brokers.welcomed(message.ready, now):
            self._leave()
            return False
        self.link = Link.READY
        return True

    def unfit(self, now: float) -> bool:
        """The broker has no workers for a request. True if it is left for another."""
        if self.link is not Link.READY or not self._brokers.unfit(now):
            return False
        self._leave()
        return True

    def speaks_older(self, frames: Sequence[Buffer], now: float) -> bool:
        """Whether `frames`, an error that answers `Hello`, come from an older broker; it is greeted again as such."""
        version = version_of(frames)
        if self.link is not Link.GREETING or not OLDEST <= version < self.version:
            return False
        self.version = version
        self._greet(now)
        return True

    # ---- time ----

    def heard(self, now: float) -> bool:
        """Something has come, or silence before `now` does not count. True if `silence_due` is earlier than before."""
        return self._silence.heard(now)

    @property
    def silence_due(self) -> float:
        """When to call `mind_silence`, while the broker owes an answer."""
        return self._silence.due

    def mind_silence(self, now: float) -> str:
        """Greets a broker that has been silent; gives it up after more of that, and then says so in words."""
        if not self._silence.greeted:
            self._silence.greeted = True
            self._emit(Send(self._hello))
            return ""
        why = f"the broker at {self.endpoint} has not answered for {self._silence.patience.lost:g} s: is it stuck?"
        if self._brokers.silent(now):
            self._leave()
        return why

    def tick(self, now: float) -> None:
        """Goes on to the next broker if this one's time is up."""
        if self._brokers.tick(now):
            self._leave()

    def _greet(self, now: float) -> None:
        self.link = Link.GREETING
        self._silence.heard(now)
        self._emit(Send(self._hello))

    def _leave(self) -> None:
        self.link = Link.LEFT
        self._emit(Connect(self.endpoint))
