"""What the parts of the core share: the settings, the tables, the memory budgets and the step being made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lighttts.broker.instructions import Step
from lighttts.broker.outbox import Budget
from lighttts.broker.pace import Pace
from lighttts.broker.quota import KEYED, Quotas, by_connection
from lighttts.broker.refusals import Refusals
from lighttts.broker.requests import RequestTable
from lighttts.broker.workers import WorkerTable
from lighttts.config import BrokerConfig
from lighttts.errors import Forbidden

PROMPT_BYTES = 512 << 20
"""Most prompt audio held for requests that the encode stage has not finished."""
OUTPUT_BYTES = 1 << 30
"""Most output held for clients that have not granted credit for it."""

SERVED = "api/"
"""How the owners begin that a gateway acts for: no key of a client is called so."""


@dataclass(slots=True)
class Board:
    """One broker's shared state. `name`: its own; `store`: kind of its state store; `started`: monotonic seconds.

    `who`: what a client's routing id stands for: the key it has proved (`KEYED` and its name), or the connection.

    `durable`: the state store answers when a new request's record is safe, and `Accepted` waits for that.
    """

    settings: BrokerConfig
    name: str
    store: str
    durable: bool
    started: float
    who: Callable[[bytes], bytes] = by_connection
    step: Step = field(default_factory=Step)
    requests: RequestTable = field(default_factory=RequestTable)
    prompts: Budget = field(default_factory=lambda: Budget(PROMPT_BYTES))
    output: Budget = field(default_factory=lambda: Budget(OUTPUT_BYTES))
    stopping: bool = False
    workers: WorkerTable = field(init=False)
    refusals: Refusals = field(init=False)
    quotas: Quotas = field(init=False)
    pace: Pace = field(init=False)

    def stranger(self, client: bytes, owner: bytes) -> bool:
        """Whether a request of `owner` (as `who` tells) is none of `client`'s: it was begun with another key."""
        return owner.startswith(KEYED) and self.who(client) != owner

    def owner(self, client: bytes, claimed: str) -> str:
        """Whose voices a client means: its key's, nobody's without keys, or of those it serves the one it claims.

        Raises `Forbidden` when it may not act for others.
        """
        who = self.who(client)
        key = who.removeprefix(KEYED).decode() if who.startswith(KEYED) else ""
        if not claimed:
            return key
        if key and key not in self.settings.gateways:
            raise Forbidden(f"the key {key!r} may not act for others: name it in broker.gateways if it is a gateway's")
        return f"{SERVED}{claimed}"

    def __post_init__(self) -> None:
        self.workers = WorkerTable(self.started, self.settings.worker_breaker_failures, self.settings.worker_breaker_s)
        self.refusals = Refusals(self.step, self.started)
        self.quotas = Quotas(self.settings.client_requests, self.settings.client_requests_per_minute, self.who)
        self.pace = Pace(self.started)
