"""The sending side of a worker's control connection: nothing is lost or overtaken while the socket does not take it."""

from __future__ import annotations

from collections import deque

from lighttts.transport.transport import NO_TARGET, Delivery
from lighttts.transport.wire import VERSION, Heartbeat, Message, Register, encode
from lighttts.workers.connector import Sender


class ControlLine:
    """Control messages to the broker, in order, by `sender`; counts the heartbeats sent and answered."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._unsent: deque[Message] = deque()
        self.version = VERSION
        """Of the protocol, as the broker understands it."""
        self.beats = 0
        self.answers = 0

    @property
    def clear(self) -> bool:
        """Whether all has been sent."""
        return not self._unsent

    def void(self) -> None:
        """Forgets what was to be sent under the last registration."""
        self._unsent.clear()
        self.beats = self.answers = 0

    def begin(self, hello: Register) -> None:
        """Begins a registration."""
        self.void()
        self.send(hello)

    def send(self, message: Message) -> None:
        """Sends `message`, now or when the socket takes it."""
        self._unsent.append(message)
        self.flush()

    def beat(self, message: Heartbeat) -> bool:
        """Sends a heartbeat; False if it had to be left out, for a later one will do."""
        if self._unsent or self._sender.send(NO_TARGET, encode(message, self.version)) is not Delivery.SENT:
            return False
        self.beats += 1
        return True

    def flush(self) -> None:
        """Sends what the socket takes."""
        while self._unsent:
            if self._sender.send(NO_TARGET, encode(self._unsent[0], self.version)) is not Delivery.SENT:
                return
            self._unsent.popleft()
