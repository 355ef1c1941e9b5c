"""The workers the broker knows: registration, credit, liveness, and the choice of one for a piece of work."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from lighttts.broker.breaker import Breaker, BreakerState
from lighttts.broker.outbox import Outbox
from lighttts.broker.requests import Request
from lighttts.transport.wire import MAX_VOICES, MAX_WORKERS, OLDEST, STAGES, VERSION, VERSIONS, Register, WorkerStatus

MOST_CREDIT = 1 << 20
ISOLATE_AFTER = 2
"""Lost workers after which a request gets a worker without another suspect."""
ROWS = 2000
"""Most workers told of in `Status`, whose size is limited."""


class WorkerState(enum.Enum):
    """`READY` takes work, `DRAINING` finishes what it has, `LEAVING` has said `Bye` and is awaited no longer."""

    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"


@dataclass(slots=True, eq=False)
class Worker:
    """One registration of one worker boot; times are monotonic seconds. `active`: requests it holds, by id."""

    hello: Register
    outbox: Outbox
    registered: float
    seen: float
    version: int = VERSION
    """Of the protocol, as it speaks it: what an older one has no words for it cannot be asked to do."""
    breaker: Breaker = field(default_factory=Breaker)
    """Open while it is avoided. It outlives the registration: a worker that dies and starts again is the same one."""
    state: WorkerState = WorkerState.READY
    credit: int = 0
    active: dict[str, Request] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    """Requests it was told to abort; their late frames need no further telling."""
    leave_by: float = 0.0
    progress: int = -1
    """As its last heartbeat said."""
    moved: float = 0.0
    """When its progress last changed, or it was last idle."""
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = self.hello.epoch

    def suspects(self) -> list[Request]:
        """The requests it holds that may be what their last worker died of."""
        return [request for request in self.active.values() if request.suspect(self.stage)]

    @property
    def condition(self) -> str:
        """Its state for people."""
        avoided = self.state is WorkerState.READY and self.breaker.state is not BreakerState.CLOSED
        return "avoided" if avoided else self.state.value

    @property
    def identity(self) -> bytes:
        return self.outbox.peer

    @property
    def name(self) -> str:
        return self.hello.worker

    @property
    def stage(self) -> str:
        return self.hello.stage


def _bearable(worker: Worker, suspect: Request) -> bool:
    """Whether `worker` may have `suspect` beside the suspects it has."""
    others, stage = worker.suspects(), worker.stage
    return not others or all(request.deaths[stage] < ISOLATE_AFTER for request in (suspect, *others))


class WorkerTable:
    """All registered workers, by routing id, by epoch and by stage; `failures` and `open_s` are their breakers'."""

    def __init__(self, now: float, failures: int, open_s: float) -> None:
        self._failures = failures
        self._open_s = open_s
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._by_identity: dict[bytes, Worker] = {}
        self._by_epoch: dict[int, Worker] = {}
        self._by_stage: dict[str, dict[bytes, Worker]] = {stage: {} for stage in STAGES}
        self._begun = now
        self._absent: dict[tuple[str, int, str], float | None] = {}
        self._styles: dict[str, set[str]] = {stage: {""} for stage in STAGES}
        """Those that workers of a stage have ever answered to."""
        self.sample_rate = 0
        """As the last worker that told one said; 0 before."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._by_identity.values()))

    def __len__(self) -> int:
        return len(self._by_identity)

    @property
    def full(self) -> bool:
        return len(self._by_identity) >= MAX_WORKERS

    def get(self, identity: bytes, epoch: int) -> Worker | None:
        """The worker of that routing id, if this is its epoch."""
        worker = self._by_identity.get(identity)
        return worker if worker and worker.epoch == epoch else None

    def by_epoch(self, epoch: object) -> Worker | None:
        """The worker of that epoch."""
        return self._by_epoch.get(epoch) if type(epoch) is int else None

    def same(self, identity: bytes, hello: Register, silent_since: float) -> list[Worker]:
        """The workers that a registration replaces.

        Those of its routing id or epoch, and one of its name that has not been heard since `silent_since`: a name may
        be used twice by mistake, so a talking namesake stays.
        """
        return [
            worker
            for worker in self
            if worker.identity == identity
            or worker.epoch == hello.epoch
            or (worker.name == hello.worker and worker.stage == hello.stage and worker.seen < silent_since)
        ]

    def add(self, worker: Worker, now: float) -> None:
        """Enters a worker that replaces none."""
        name = (worker.stage, worker.name)
        worker.breaker = self._breakers.setdefault(name, Breaker(self._failures, self._open_s))
        if len(self._breakers) > MAX_WORKERS:
            del self._breakers[next(iter(self._breakers))]
        self._by_identity[worker.identity] = worker
        self._by_epoch[worker.epoch] = worker
        self._by_stage[worker.stage][worker.identity] = worker
        self._styles[worker.stage].update(worker.hello.styles)
        if worker.hello.sample_rate:
            self.sample_rate = worker.hello.sample_rate
        self._note_presence(worker.stage, now)

    def remove(self, worker: Worker, now: float) -> None:
        """Takes a worker out."""
        del self._by_identity[worker.identity]
        del self._by_epoch[worker.epoch]
        del self._by_stage[worker.stage][worker.identity]
        self._note_presence(worker.stage, now)

    def grant(self, worker: Worker, credit: int) -> None:
        """Adds to what the worker may be sent."""
        if worker.state is WorkerState.READY:
            worker.credit = min(worker.credit + credit, MOST_CREDIT)

    def retire(self, worker: Worker, state: WorkerState, now: float) -> None:
        """Sends it no more work."""
        worker.state = state
        worker.credit = 0
        self._note_presence(worker.stage, now)

    def choose(self, stage: str, request: Request, now: float) -> Worker | None:
        """The worker with most granted credit, among equals the one with least in hand; None if there is none for
        `request`: its worker must know what it asks for and have its style, and if it has outlived two, it shares the
        next with no other suspect.

        One that failed time and again is taken only if there is no other, or to try it once more.
        """
        version, style = request.version(stage), request.style(stage)
        workers = self._by_stage[stage].values()
        free = [w for w in workers if w.credit > 0 and w.version >= version and style in w.hello.styles]
        if request.suspect(stage):
            free = [worker for worker in free if _bearable(worker, request)]
        free = [worker for worker in free if not worker.breaker.retry_after(now)] or free
        return max(free, key=lambda worker: (worker.credit, -len(worker.active)), default=None)

    def absent_since(self, stage: str, version: int = OLDEST, style: str = "") -> float | None:
        """Since when no worker of `stage` and `style` that speaks `version` or a newer one takes work; None while one
        does."""
        return self._absent.get((stage, version, style), self._begun)

    def lane(self, stage: str, style: str) -> str:
        """What stands for `style` where requests wait: the default style has a name and is the default besides."""
        mates = {name for w in self._by_stage[stage].values() if style in w.hello.styles for name in w.hello.styles}
        return "" if "" in mates else style

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles with a name that llm workers have ever answered to, sorted."""
        return tuple(sorted(filter(None, self._styles["llm"])))

    def voices(self) -> tuple[str, ...]:
        """The preset voices that the encode workers know, sorted."""
        names = {name for worker in self._by_stage["encode"].values() for name in worker.hello.voices}
        return tuple(sorted(names)[:MAX_VOICES])

    def offers(self, voice: str) -> bool:
        """Whether it is a preset voice."""
        return any(voice in worker.hello.voices for worker in self._by_stage["encode"].values())

    def count(self, stage: str) -> int:
        """Workers of `stage`."""
        return len(self._by_stage[stage])

    def rows(self, now: float) -> tuple[WorkerStatus, ...]:
        """One row for each worker (of the first `ROWS`), for `Status`."""
        return tuple(
            WorkerStatus(
                worker.name,
                worker.stage,
                worker.hello.model,
                worker.condition,
                worker.credit,
                len(worker.active),
                now - worker.registered,
                max(0.0, now - worker.seen),
            )
            for worker in itertools.islice(self, ROWS)
        )

    def _note_presence(self, stage: str, now: float) -> None:
        ready = [w for w in self._by_stage[stage].values() if w.state is WorkerState.READY]
        for style, version in itertools.product(self._styles[stage], VERSIONS):
            if any(w.version >= version and style in w.hello.styles for w in ready):
                self._absent[stage, version, style] = None
            elif self.absent_since(stage, version, style) is None:
                self._absent[stage, version, style] = now
