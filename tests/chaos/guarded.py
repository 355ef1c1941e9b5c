"""A whole stack whose broker listens on tcp, where everybody proves a key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lighttts.client import Client
from lighttts.errors import LightTTSError
from lighttts.transport.keyfiles import KeyFolder, KeyPair, Role, new_pair
from tests.chaos.cluster import until
from tests.system.stack import STAGES, Stack
from tests.transport.keys import Keyring

ENDS = ("clients", "workers", "results")


class GuardedStack(Stack):
    """`addresses`: host and port of each socket of the broker. `client_keys`: the key folder of an allowed client.

    `pairs`: the keys of an allowed client and worker by role, and of a `stranger`, who is not allowed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, settings=["log.format=json"])
        keyring = Keyring(folder)
        workers = keyring.admitted(Role.WORKER, "ours").folder
        self.client_keys = keyring.admitted(Role.CLIENT, "ours").folder.path
        self.broker_pair = keyring.broker.pair(Role.BROKER)
        self.pairs: dict[str, KeyPair] = {
            "client": KeyFolder(self.client_keys).pair(Role.CLIENT),
            "worker": workers.pair(Role.WORKER),
            "stranger": new_pair(),
        }
        self.addresses: dict[str, tuple[str, int]] = {}
        self._keys = {"broker": keyring.broker.path, **dict.fromkeys(STAGES, workers.path)}

    def command(self, name: str) -> list[str]:
        """With keys; the broker chooses its ports, and the others are told."""
        ends = {end: f"tcp://{host}:{port}" for end, (host, port) in self.addresses.items()}
        where = [f"broker.{end}={ends.get(end, 'tcp://127.0.0.1:0')}" for end in ENDS]
        settings = [*where, f"security.keys={self._keys[name]}"]
        return [*super().command(name), *(part for setting in settings for part in ("--set", setting))]

    def start(self, *names: str) -> None:
        """Starts the broker before the others."""
        if not names:
            super().start("broker")
            until(self._listens, "the broker does not listen")
        super().start(*(names or STAGES))

    def _listens(self) -> bool:
        ready = [json.loads(line) for line in self.log("broker").splitlines() if '"event": "ready"' in line]
        for end in ENDS if ready else ():
            host, _, port = ready[-1][end].removeprefix("tcp://").partition(":")
            self.addresses[end] = host, int(port)
        if ready:
            self.endpoint = ready[-1]["clients"]
        return bool(ready)

    def wait_for_workers(self, stages: Iterable[str] = STAGES) -> None:
        """Returns when these stages have registered."""

        def registered() -> bool:
            try:
                with Client(self.endpoint, keys=self.client_keys, connect_timeout=1.0) as client:
                    ready = {row.stage for row in client.status().workers if row.state == "ready"}
            except LightTTSError:
                return False
            return ready >= set(stages)

        until(registered, "the workers do not register")
