"""Key folders for tests: a broker's, and those of the clients and workers that it lets in, or not."""

from __future__ import annotations

from pathlib import Path

from lighttts.transport.keyfiles import KeyFolder, Role, new_pair
from lighttts.transport.security import Proof


class Keyring:
    """A broker's key folder, and further folders beside it for those who connect."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broker = KeyFolder(path / "broker")
        self.broker.store(Role.BROKER, "local", new_pair())
        self.broker.make_lists()

    def stranger(self, role: Role, name: str) -> Proof:
        """Someone with a key of that role that the broker has never seen."""
        folder = KeyFolder(self._path / f"{role.value}-{name}")
        folder.store(role, name, new_pair())
        folder.store_broker_key(self.broker.broker_key())
        return Proof(folder, role)

    def admitted(self, role: Role, name: str) -> Proof:
        """Someone whose key the broker lets in."""
        proof = self.stranger(role, name)
        self.broker.allow(role, name, proof.folder.pair(role).public)
        return proof
