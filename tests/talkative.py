"""The tiny CosyVoice3 model with its stop tokens made unlikely.

Two of three ids that its head gives are stops, so with the random weights of the reference it says next to nothing.
Here the stops but for the end of speech have logits of zero, which are seldom among the likely ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from lighttts.models.directory import ModelDirectory

TINY = Path(__file__).parent / "golden" / "cosyvoice3-tiny"
SPEECH = 100
END_OF_SPEECH = SPEECH + 1


def talkative(folder: Path) -> Path:
    """A copy of the model as `folder`, which must not exist."""
    shutil.copytree(TINY, folder)
    weights = ModelDirectory.open(TINY).load_weights("llm.pt")
    head = weights["llm_decoder.weight"]
    end = head[END_OF_SPEECH].clone()
    head[SPEECH:] = 0.0
    head[END_OF_SPEECH] = end
    torch.save(weights, folder / "llm.pt")
    return folder


def hushed(folder: Path) -> Path:
    """A talkative copy in `folder` that is silent most of the time: two opposite rows of its head have large logits at
    nearly every step, and either belongs to several silent tokens, for none is drawn again so soon."""
    talkative(folder)
    weights = ModelDirectory.open(folder).load_weights("llm.pt")
    head = weights["llm_decoder.weight"]
    loud = 10 * head[1]
    head[:SPEECH] *= 3
    head[[1, 2, 28, 29, 55]] = torch.stack([loud, loud, -loud, -loud, loud])
    torch.save(weights, folder / "llm.pt")
    return folder
