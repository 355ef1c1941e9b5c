"""The README's Python, run as it stands but for the address and the voice."""

from __future__ import annotations

import numpy as np

from tests.docs.test_readme import README, blocks
from tests.system.stack import Stack


def test_the_example_of_the_client_runs(stack: Stack) -> None:
    (example,) = blocks(README, "python")
    example = example.replace("tcp://127.0.0.1:5570", stack.endpoint).replace('"heart"', '"tiny-voice"')
    played: list[np.ndarray] = []
    names: dict[str, object] = {"play": lambda chunk, rate: played.append(chunk)}
    exec(compile(example, "README.md", "exec"), names)
    assert sum(map(len, played)) > 0
    assert len(names["tokens"]) > 0  # type: ignore[arg-type]
