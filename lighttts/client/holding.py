"""A request in the hands of a caller: the same for the blocking and the asyncio face."""

from __future__ import annotations

from lighttts.client.loop import ClientLoop, Sink
from lighttts.client.receipt import Receipt
from lighttts.transport.wire import SpeechRequest


class Holding:
    """A request that is on its way as long as somebody holds this. Its events go to `sink`."""

    def __init__(self, client: object, loop: ClientLoop, asked: SpeechRequest, sink: Sink, retries: int) -> None:
        # A client that nobody refers to is closed.
        self._client = client
        self._loop = loop
        self._receipt = Receipt(asked)
        loop.open(asked, sink, retries)
        loop.cancel_with(self, asked.request_id)

    @property
    def request_id(self) -> str:
        """The request's id, as in the broker's log; retries have `.1`, `.2` and so on behind it."""
        return self._receipt.request_id

    @property
    def seed(self) -> int:
        """The seed that makes this audio again."""
        return self._receipt.seed

    @property
    def tokens(self) -> int:
        """Speech tokens (25 a second) behind the chunks taken so far; after the end, of the whole request, and with
        CosyVoice3 also those of long silence that were not spoken.
        """
        return self._receipt.tokens

    def close(self) -> None:
        """Cancels the request if it is not over; reading on raises `Cancelled`. Idempotent; waits for nothing."""
        if self._receipt.cancelled():
            self._loop.cancel(self.request_id)

    def cancel(self) -> None:
        """As `close`."""
        self.close()
