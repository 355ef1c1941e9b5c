"""One process with both roles that share a GPU serves as two processes do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lighttts.client import Client
from tests.system.stack import Stack

TEXT = "The quick brown fox."


def test_a_process_with_both_roles_makes_the_audio_of_two_and_drains(tmp_path: Path) -> None:
    audio = []
    for name, daemons in (("two", ("broker", "encode", "llm", "decode")), ("one", ("broker", "encode", "gpu"))):
        (tmp_path / name).mkdir()
        stack = Stack(tmp_path / name)
        stack.start(*daemons)
        try:
            stack.wait_for_workers()
            with Client(stack.endpoint) as client:
                audio.append(client.synthesize(TEXT, seed=3).audio())
        finally:
            codes = stack.stop()
        assert set(codes.values()) == {0}
    assert len(audio[0]) > 0
    assert np.array_equal(*audio)
