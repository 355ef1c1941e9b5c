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
