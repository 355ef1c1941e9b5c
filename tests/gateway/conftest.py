"""One gateway before one stack of the tiny reference model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.process import Gateway
from tests.system.conftest import client, prompt_wav, stack
from tests.system.stack import Stack

__all__ = ["client", "prompt_wav", "stack"]


@pytest.fixture(scope="session")
def gateway(stack: Stack) -> Iterator[Gateway]:
    with Gateway(stack.endpoint) as running:
        yield running
