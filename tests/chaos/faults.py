"""What goes wrong: each fault as what does it and what undoes it, and when it strikes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lighttts.client import Client
from lighttts.transport.wire import Status
from tests.chaos.cluster import CLIENTS, Cluster, until
from tests.chaos.rolling import restart_all
from tests.chaos.streams import Takes
from tests.system.stack import STAGES

MIDDLE = 0.4
END = 0.8
"""Share of all audio heard, for components that have no work of their own to be caught in the middle of."""
SLOW = "reads nothing"
ROLLING = "restarted in turn"
MOMENTS = ("before first audio", "mid-stream", "near the end")


def _send(number: signal.Signals) -> Callable[[Cluster, str], None]:
    return lambda cluster, name: cluster.signal(name, number)


def _break(how: str) -> Callable[[Cluster, str], None]:
    return lambda cluster, name: cluster.break_engine(name, how)


def _stall(cluster: Cluster, name: str) -> None:
    for link in cluster.links(name):
        link.stall()


def _cut(cluster: Cluster, name: str) -> None:
    for link in cluster.links(name):
        link.cut()


def _drop(cluster: Cluster, name: str) -> None:
    for link in cluster.links(name):
        link.drop()


def _mend(cluster: Cluster, name: str) -> None:
    for link in cluster.links(name):
        link.mend()


@dataclass(frozen=True)
class Fault:
    """`strike` begins it. `undo`, if it can end by itself, ends it while the streams still run: what the component had
    in hand then comes too late, and must be refused. `leaves_dead`: the process has to be started anew afterwards."""

    strike: Callable[[Cluster, str], None]
    undo: Callable[[Cluster, str], None] | None = None
    leaves_dead: bool = True


FAULTS = {
    "killed": Fault(_send(signal.SIGKILL)),
    "stopped": Fault(_send(signal.SIGSTOP), _send(signal.SIGCONT), leaves_dead=False),
    "hangs in compute": Fault(_break("hang")),
    "aborts": Fault(_break("abort")),
    "link stalls": Fault(_stall, _mend, leaves_dead=False),
    "link cut": Fault(_cut, _mend, leaves_dead=False),
    "link drops": Fault(_drop, leaves_dead=False),
    ROLLING: Fault(lambda cluster, name: restart_all(cluster), leaves_dead=False),
    SLOW: Fault(lambda cluster, name: None, leaves_dead=False),
}


class Cell(NamedTuple):
    """One square of the matrix."""

    fault: str
    component: str
    moment: str

    def __str__(self) -> str:
        return f"{self.component} {self.fault}, {self.moment}"


def cells() -> list[Cell]:
    """The whole matrix. What a component cannot suffer, or not then, is not in it: encode has no middle and no end."""
    workers = [
        Cell(fault, stage, moment)
        for moment in MOMENTS
        for fault in FAULTS
        if fault not in (SLOW, ROLLING, "link drops")
        for stage in STAGES
        if stage != "encode" or moment == MOMENTS[0]
    ]
    others = [
        Cell(fault, component, moment)
        for component, faults in (("redis", ("stopped", "killed")), ("client", ("killed", SLOW)))
        for fault in faults
        for moment in (MOMENTS if component == "redis" else MOMENTS[1:2])
    ]
    brokers = [Cell(fault, "broker", moment) for fault in ("killed", "stopped") for moment in MOMENTS]
    links = [Cell(fault, CLIENTS, MOMENTS[1]) for fault in ("link drops", "link stalls")]
    return [*workers, *others, *brokers, *links, Cell(ROLLING, "all daemons", "steady load")]


class Watch:
    """Tells when the moment of a cell has come."""

    def __init__(self, cluster: Cluster, cell: Cell, takes: Takes, whole: int, client: Client) -> None:
        self._cluster, self._cell, self._takes, self._whole, self._client = cluster, cell, takes, whole, client
        self._most = 0

    def wait(self) -> None:
        """Returns at the moment. Raises `AssertionError` when it has passed unnoticed."""
        until(self._come, "the streams do not come as far")

    def _come(self) -> bool:
        assert not self._takes.over, "the streams were over before the fault struck"
        moment, name = self._cell.moment, self._cell.component
        held = self._held(self._client.status()) if name in STAGES else 0
        self._most = max(self._most, held)
        if moment == MOMENTS[0]:
            return held > 0 or name not in STAGES
        share = self._takes.heard / self._whole
        if name not in STAGES:
            return share >= (MIDDLE if moment == MOMENTS[1] else END)
        assert held or not self._most, f"{name} had finished before the fault struck"
        if moment == MOMENTS[1]:
            return held > 0 and all(take.heard for take in self._takes.all)
        return 0 < held < self._most

    def _held(self, status: Status) -> int:
        row = self._cluster.row(status, self._cell.component)
        return row.active if row else 0
