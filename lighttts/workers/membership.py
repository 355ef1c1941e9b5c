"""A worker's membership of the broker as a table: what it has agreed with the broker, what changes that, what follows.

Registration is a clean slate for both sides. A worker that registers again (the broker restarted, gave the worker up,
or fell silent) drops all work and grants its whole capacity anew; the broker takes whatever such a worker still had for
lost. So neither side ever has to guess what the other remembers. The epoch stays that of the boot.

No socket and no clock here: the caller tells the time and performs the actions.
"""

from __future__ import annotations

import enum

from lighttts.errors import InternalError

REGISTER_RETRY = 1.0
"""Seconds without an answer after which `Register` is sent again."""
JOIN_INTERVAL = 0.1
"""Seconds between looks at the connection while there is no broker."""
FAREWELL_TIMEOUT = 2.0
"""Seconds a leaving worker waits for `Farewell`."""


class State(enum.Enum):
    """`JOINING` waits for the broker, `READY` takes work, `DRAINING` finishes it, `LEAVING` has said `Bye`."""

    JOINING = "waiting for the broker"
    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"
    GONE = "gone"


class Event(enum.Enum):
    """What happens to a worker."""

    REGISTERED = enum.auto()
    FORGOTTEN = enum.auto()
    """The broker does not know this worker."""
    SILENCE = enum.auto()
    """Nothing was heard of the broker for longer than the state allows, or its connection broke."""
    TERMINATE = enum.auto()
    """Asked to end: the first time by draining, the second time at once."""
    STOP = enum.auto()
    """Asked to end at once."""
    BROKEN = enum.auto()
    """The engine cannot go on."""
    SETTLED = enum.auto()
    """Drained: all work is done and the broker has taken note."""
    FAREWELL = enum.auto()


class Action(enum.Enum):
    """What the worker does on a transition."""

    REGISTER = enum.auto()
    GRANT = enum.auto()
    """Grant the whole capacity."""
    ABANDON = enum.auto()
    """Drop all work, send nothing more of it."""
    DRAIN = enum.auto()
    BYE = enum.auto()
    END = enum.auto()


_S, _E, _A = State, Event, Action
_REJOIN = (_S.JOINING, (_A.ABANDON, _A.REGISTER))
_QUIT = (_S.LEAVING, (_A.ABANDON, _A.BYE))
_END = (_S.GONE, (_A.END,))

TRANSITIONS: dict[tuple[State, Event], tuple[State, tuple[Action, ...]]] = {
    (_S.JOINING, _E.REGISTERED): (_S.READY, (_A.GRANT,)),
    (_S.JOINING, _E.SILENCE): (_S.JOINING, (_A.REGISTER,)),
    (_S.JOINING, _E.TERMINATE): (_S.LEAVING, (_A.BYE,)),
    (_S.JOINING, _E.STOP): (_S.LEAVING, (_A.BYE,)),
    (_S.JOINING, _E.BROKEN): (_S.LEAVING, (_A.BYE,)),
    (_S.READY, _E.FORGOTTEN): _REJOIN,
    (_S.READY, _E.SILENCE): _REJOIN,
    (_S.READY, _E.TERMINATE): (_S.DRAINING, (_A.DRAIN,)),
    (_S.READY, _E.STOP): _QUIT,
    (_S.READY, _E.BROKEN): _QUIT,
    (_S.DRAINING, _E.FORGOTTEN): _QUIT,
    (_S.DRAINING, _E.SILENCE): _QUIT,
    (_S.DRAINING, _E.TERMINATE): _QUIT,
    (_S.DRAINING, _E.STOP): _QUIT,
    (_S.DRAINING, _E.BROKEN): _QUIT,
    (_S.DRAINING, _E.SETTLED): (_S.LEAVING, (_A.BYE,)),
    (_S.LEAVING, _E.FAREWELL): _END,
    (_S.LEAVING, _E.SILENCE): _END,
    (_S.LEAVING, _E.TERMINATE): _END,
    (_S.LEAVING, _E.STOP): _END,
    (_S.LEAVING, _E.BROKEN): (_S.LEAVING, ()),
}

_ANY_TIME = frozenset({_E.REGISTERED, _E.FORGOTTEN, _E.FAREWELL})
"""Events made by messages: one that comes late or twice changes nothing."""


class Membership:
    """State of one worker's membership. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.state = State.JOINING
        self.interval = JOIN_INTERVAL
        """Seconds between calls of `tick`."""
        self._beat = 1.0
        self._expiry = 5.0
        self._heard = now
        self._ticked = now
        self._history: list[str] = []

    def on(self, event: Event, now: float) -> tuple[Action, ...]:
        """The actions that `event` calls for. Raises `InternalError` with the history when it cannot happen now."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            if event in _ANY_TIME or self.state is State.GONE:
                return ()
            raise InternalError(f"worker cannot take {event.name} while {self.state.value}: {' '.join(self._history)}")
        self._history = [*self._history[-15:], f"{self.state.name}-{event.name}->{after[0].name}"]
        self.state = after[0]
        self._heard = now
        self.interval = JOIN_INTERVAL if self.state in (State.JOINING, State.LEAVING) else self._beat
        return after[1]

    def agree(self, heartbeat: float, expiry: float) -> None:
        """Takes over the broker's intervals in seconds, from `Registered`."""
        self._beat, self._expiry = heartbeat, expiry

    def heard(self, now: float) -> None:
        """A message of the broker has arrived."""
        if self.state in (State.READY, State.DRAINING):
            self._heard = now

    def silent(self, now: float) -> bool:
        """Whether `SILENCE` is due; to be asked at every tick."""
        # A worker that was itself stopped for a while has messages waiting and must not blame the broker.
        if self.state in (State.READY, State.DRAINING) and now - self._ticked > self.interval + self._expiry / 2:
            self._heard = now
        self._ticked = now
        return now - self._heard > self._patience()

    def _patience(self) -> float:
        if self.state is State.JOINING:
            return REGISTER_RETRY
        return FAREWELL_TIMEOUT if self.state is State.LEAVING else self._expiry
