"""The client needs pyzmq, msgpack and numpy, and nothing else that is not in the standard library."""

from __future__ import annotations

import subprocess
import sys

from tests.client.fake_broker import FakeBroker

FORBIDDEN = (
    "torch",
    "redis",
    "transformers",
    "structlog",
    "pydantic",
    "yaml",
    "uvloop",
    "soundfile",
    "prometheus_client",
    "onnxruntime",
    "grpc",
    "google",
)

PROGRAM = """
import asyncio, sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not in a bare install")

FORBIDDEN = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Forbid())

import lighttts.client
from lighttts.client import AsyncClient, Client

with Client(sys.argv[1]) as client:
    assert client.synthesize("Hello.").audio().size

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        assert (await client.synthesize("Hello.").audio()).size

asyncio.run(main())
print("spoken")
"""


def test_both_clients_speak_in_a_bare_install() -> None:
    with FakeBroker() as broker:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, broker.endpoint, ",".join(FORBIDDEN)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("spoken\n", "")
