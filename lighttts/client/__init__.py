"""The LightTTS client library: speech from text by way of a running broker.

Needs nothing but pyzmq, msgpack and numpy. Errors are the classes of `lighttts.errors`.
"""

from lighttts.client.aio import AsyncClient, AsyncSynthesis
from lighttts.client.sync import Client, Synthesis
from lighttts.client.voices import RegisteredVoice

__all__ = ["AsyncClient", "AsyncSynthesis", "Client", "RegisteredVoice", "Synthesis"]
