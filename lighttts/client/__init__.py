"""The LightTTS client library: speech from text by way of a running broker.

Needs nothing but pyzmq, msgpack and numpy. Errors are the classes of `lighttts.errors`.
"""

from lighttts.client.aio import AsyncClient
from lighttts.client.aio_synthesis import AsyncSynthesis, AsyncTalk
from lighttts.client.sync import Client
from lighttts.client.synthesis import Synthesis, Talk
from lighttts.client.voices import RegisteredVoice

__all__ = ["AsyncClient", "AsyncSynthesis", "AsyncTalk", "Client", "RegisteredVoice", "Synthesis", "Talk"]
