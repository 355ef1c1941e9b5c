"""The tiny models with all stop tokens but the end of speech made unlikely.

With the random weights of the reference, CosyVoice2's may end a text at its first token: the end of speech is not drawn
that early, but other stops are. Two of three ids that CosyVoice3's head gives are stops, so it says next to nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from lighttts.models.directory import ModelDirectory

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "cosyvoice3-tiny"
SPEECH = 100
END_OF_SPEECH = SPEECH + 1


def talkative(folder: Path) -> Path:
    """A copy of CosyVoice3's as `folder`, which must not exist; the other stops have logits of zero, which are seldom
    among the likely ones."""
    shutil.copytree(TINY, folder)
    weights = ModelDirectory.open(TINY).load_weights("llm.pt")
    head = weights["llm_decoder.weight"]
    end = head[END_OF_SPEECH].clone()
    head[SPEECH:] = 0.0
    head[END_OF_SPEECH] = end
    torch.save(weights, folder / "llm.pt")
    return folder


def talkative2(folder: Path) -> Path:
    """A copy of CosyVoice2's as `folder`, which must not exist; the other stops are never drawn, and the end of speech
    soon after it may be: 0.6 s of speech or more for two words."""
    tiny = GOLDEN / "cosyvoice2-tiny"
    shutil.copytree(tiny, folder)
    weights = ModelDirectory.open(tiny).load_weights("llm.pt")
    weights["llm_decoder.bias"][SPEECH] += 3.0
    weights["llm_decoder.bias"][SPEECH + 1 :] = -100.0
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
