"""The LightTTS client library: speech from text by way of a running broker.

Needs nothing but pyzmq, msgpack and numpy. Errors are the classes of `lighttts.errors`.
"""

from lighttts.client.aio import AsyncClient, AsyncSynthesis
from lighttts.client.sync import Client, Synthesis

__all__ = ["AsyncClient", "AsyncSynthesis", "Client", "Synthesis"]
