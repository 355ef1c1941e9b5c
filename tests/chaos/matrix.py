"""The matrix of faults: what goes wrong x where x when, each time under eight streams that must not notice.

    python -m tests.chaos.matrix [--only TEXT] [--list] [--json FILE]

Every cell breaks one component of a running stack (real processes, real Redis) while eight requests are spoken, and
compares each one's audio sample by sample with that of an undisturbed run. Prints a line for each cell, and exits with
1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from lighttts.client import Client
from lighttts.errors import LightTTSError, Unavailable, UnknownRequest
from tests.chaos.cluster import BROKERS, CLIENTS, Cluster, speaker, until
from tests.chaos.faults import FAULTS, ROLLING, SLOW, Cell, Watch, cells
from tests.chaos.rolling import SteadyLoad
from tests.chaos.streams import STREAMS, TEXT, FloatArray, Takes, difference
from tests.system.stack import STAGES

FINISH_S = 60.0
"""Seconds a cell's streams have to end; they take about 5 undisturbed."""
NOTICE_S = 15.0
"""Seconds within which the broker must have taken a broken worker's requests from it."""
STREAM_TIMEOUT_S = 30.0
SPEAKER_SEED = 7
ALLOWED: dict[str, type[LightTTSError]] = {"broker": UnknownRequest, "redis": Unavailable}
"""Typed errors that a request may end in that was not accepted yet when the fault struck."""


@dataclass
class Outcome:
    """What became of a cell's streams. `whole`: complete and equal to the reference; `errors`: typed, by code.

    `takeover_s`: until the broken worker had no request any more. `gap_s`: longest wait of a stream for its next audio
    from the fault on. `refused`: late results that the broker turned away.
    """

    cell: Cell
    whole: int = 0
    streams: int = STREAMS
    errors: dict[str, int] | None = None
    takeover_s: float | None = None
    gap_s: float = 0.0
    refused: int = 0
    lost: str = ""

    @property
    def verdict(self) -> str:
        """`ok`; `error`: ended in typed errors where the promise allows them; or `LOST`."""
        if self.lost:
            return "LOST"
        return "error" if self.errors else "ok"

    def line(self) -> str:
        """The cell as a row of the printed table."""
        takeover = "-" if self.takeover_s is None else f"{self.takeover_s:.2f}"
        notes = self.lost or ", ".join(f"{count} {code}" for code, count in (self.errors or {}).items())
        cell = self.cell
        return (
            f"{cell.component:<12}{cell.fault:<18}{cell.moment:<20}{self.verdict:<7}"
            f"{self.whole}/{self.streams:<4}{takeover:>8}{self.gap_s:>8.2f}{self.refused:>8}  {notes}".rstrip()
        )


HEADER = f"{'where':<12}{'what':<18}{'when':<20}{'':<7}{'whole':<6}{'takeover':>8}{'gap':>8}{'refused':>8}"


class Matrix:
    """Runs cells, one after another, against one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        with Client(cluster.endpoint, timeout=STREAM_TIMEOUT_S) as client:
            takes = Takes(client)
            assert takes.finish(FINISH_S)
        assert not any(take.error for take in takes.all), takes.all[0].error
        self._references: list[FloatArray] = [take.audio for take in takes.all]
        self._whole = sum(map(len, self._references))
        cluster.settle()

    def run(self, cell: Cell) -> Outcome:
        """Runs one cell and mends what it broke."""
        outcome = Outcome(cell)
        if cell.fault == ROLLING:
            return self._roll(outcome)
        refused = self._cluster.refused()
        endpoints = self._cluster.linked_endpoints if cell.component == CLIENTS else self._cluster.endpoints
        with self._client(endpoints) as client:
            ninth = self._ninth() if cell.component == "client" else None
            takes = Takes(client)
            try:
                if ninth:
                    self._break_client(cell, takes, ninth)
                else:
                    self._strike(cell, takes, outcome)
            except AssertionError as error:
                outcome.lost = str(error)
            if not takes.finish(FINISH_S):
                outcome.lost = f"streams have not ended after {FINISH_S:g} s"
            self._judge(outcome, takes)
        self._repair(outcome)
        if cell.component not in BROKERS:
            outcome.refused = self._cluster.refused() - refused
        return outcome

    def _client(self, endpoints: list[str]) -> Client:
        """A client of the first broker, which knows both: it begins with any of them."""
        broker = f"-{self._cluster.processes['broker'].pid}"
        while True:
            client = Client(endpoints, timeout=STREAM_TIMEOUT_S)
            if client.status().broker.endswith(broker):
                return client
            client.close()

    def _roll(self, outcome: Outcome) -> Outcome:
        with SteadyLoad(self._cluster.endpoints, self._references, STREAM_TIMEOUT_S) as load:
            try:
                FAULTS[ROLLING].strike(self._cluster, outcome.cell.component)
            except AssertionError as error:
                outcome.lost = str(error)
        outcome.whole, outcome.streams = load.whole, load.spoken
        outcome.lost = outcome.lost or load.lost
        self._repair(outcome)
        return outcome

    # ---- the fault -------------------------------------------------------------------------------------------------

    def _strike(self, cell: Cell, takes: Takes, outcome: Outcome) -> None:
        fault, name = FAULTS[cell.fault], cell.component
        with Client(self._cluster.endpoint) as watcher:
            Watch(self._cluster, cell, takes, self._whole, watcher).wait()
            struck = time.monotonic()
            fault.strike(self._cluster, name)
            if name in STAGES:
                until(lambda: self._relieved(watcher, name), "the broker does not give the worker up", NOTICE_S)
                outcome.takeover_s = time.monotonic() - struck
        if fault.undo:
            if name == "redis":
                takes.finish(FINISH_S)
            elif name == "broker" and not fault.leaves_dead:
                until(lambda: self._taken_over(takes), "the other broker takes nothing over", NOTICE_S)
            fault.undo(self._cluster, name)
        takes.finish(FINISH_S)
        outcome.gap_s = max(take.waited(struck) for take in takes.all)

    def _taken_over(self, takes: Takes) -> bool:
        with Client(self._cluster.endpoints[1]) as client:
            return takes.over or client.status().active > 0

    def _relieved(self, watcher: Client, name: str) -> bool:
        row = self._cluster.row(watcher.status(), name)
        return row is None or not row.active

    def _ninth(self) -> subprocess.Popen[bytes]:
        """A ninth stream, in another process, that has heard its first audio."""
        process = speaker(self._cluster, TEXT, SPEAKER_SEED)
        assert process.stdout is not None
        assert process.stdout.peek(1), "the ninth client hears nothing"  # type: ignore[attr-defined]
        return process

    def _break_client(self, cell: Cell, takes: Takes, process: subprocess.Popen[bytes]) -> None:
        """Breaks the ninth client; the eight must not notice. If all it did was not to read, it still hears it all."""
        self._cluster.processes[cell.component] = process
        try:
            FAULTS[cell.fault].strike(self._cluster, cell.component)
            takes.finish(FINISH_S)
            if cell.fault == SLOW:
                assert process.stdout is not None
                heard, whole = len(process.stdout.read()) // 2, len(self._references[SPEAKER_SEED])
                assert process.wait(FINISH_S) == 0, "the client that did not read ended badly"
                assert heard == whole, f"the client that did not read heard {heard} samples of {whole}"
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
            del self._cluster.processes[cell.component]

    # ---- afterwards ------------------------------------------------------------------------------------------------

    def _judge(self, outcome: Outcome, takes: Takes) -> None:
        errors: Counter[str] = Counter()
        for seed, (take, reference) in enumerate(zip(takes.all, self._references, strict=True)):
            unheard = not len(take.audio)
            if take.error and unheard and isinstance(take.error, ALLOWED.get(outcome.cell.component, ())):
                errors[take.error.code] += 1
            elif take.error:
                outcome.lost = outcome.lost or f"stream {seed}: {take.error.code}: {take.error.text}"
            elif take.ended is not None and (what := difference(take.audio, reference)):
                outcome.lost = outcome.lost or f"stream {seed}: {what}"
            elif take.ended is not None:
                outcome.whole += 1
        outcome.errors = dict(errors)

    def _repair(self, outcome: Outcome) -> None:
        cell, fault = outcome.cell, FAULTS[outcome.cell.fault]
        if cell.component != "client":
            if fault.undo and outcome.lost:
                fault.undo(self._cluster, cell.component)
            if fault.leaves_dead:
                self._cluster.replace(cell.component)
        try:
            self._cluster.settle()
        except AssertionError as error:
            outcome.lost = outcome.lost or str(error)


def run(chosen: list[Cell], folder: Path) -> list[Outcome]:
    """Runs cells on one cluster in `folder` and prints each as it ends."""
    outcomes = []
    with Cluster(folder) as cluster:
        matrix = Matrix(cluster)
        print(HEADER, flush=True)
        for cell in chosen:
            outcomes.append(matrix.run(cell))
            print(outcomes[-1].line(), flush=True)
    return outcomes


def main() -> int:
    """Runs the matrix, or the cells whose name has a text in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help='cells with TEXT in their name: "llm killed"')
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there too")
    options = parser.parse_args()
    chosen = [cell for cell in cells() if options.only in str(cell)]
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(chosen, Path(folder))
    counts = Counter(outcome.verdict for outcome in outcomes)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"{len(outcomes)} cells in {time.monotonic() - began:.0f} s: {told}")
    if options.json:
        rows = [{**asdict(outcome), "cell": outcome.cell._asdict(), "verdict": outcome.verdict} for outcome in outcomes]
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if counts["LOST"] else 0


if __name__ == "__main__":
    sys.exit(main())
