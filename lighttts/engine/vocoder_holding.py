"""What a row of the vocoder begins with: frames that its request had before."""

from __future__ import annotations

from dataclasses import dataclass

from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.hift import Generator
from lighttts.models.hift_stream import OVERLAP


@dataclass(frozen=True)
class Holding:
    """Of each hop that another follows, the last `unheard` frames are kept and computed again at the start of the next.

    CosyVoice2's vocoder keeps nothing else, and fades from the audio it made of them before to what it makes of them
    then. CosyVoice3's gives out no audio of them before, and keeps the `context` before them that its layers look back
    at: their columns are computed again too, and not heard again. With the published dimensions that is 37 frames a hop
    more to compute than with the pasts that `lighttts.models.causal_hift` keeps, which lie in 87 tensors a request.
    """

    unheard: int
    context: int

    @classmethod
    def of(cls, model: Generator) -> Holding:
        if isinstance(model, CausalHiFTGenerator):
            return cls(model.held_back, model.look_back)
        return cls(OVERLAP, 0)

    @property
    def frames(self) -> int:
        """Frames whose mel is kept, if the request has had so many."""
        return self.context + self.unheard

    @property
    def excited(self) -> int:
        """The first of them, whose excitation is kept; after these the phase is known."""
        return self.context or self.unheard

    @property
    def faded(self) -> int:
        """The first of them, whose audio is kept."""
        return 0 if self.context else self.unheard
