"""Seeds of a request's sentences."""

from __future__ import annotations

import hashlib
import struct

_NUMBERS = struct.Struct("<QQ")


def sentence_seed(seed: int, sentence: int) -> int:
    """The seed (63 bits) that sentence number `sentence` of a request with `seed` is sampled and vocoded with.

    The first sentence's is the request's own, so that a request of one sentence is what its seed says. Later ones must
    not repeat its noise: theirs are 63 bits of the BLAKE2b hash of both numbers.
    """
    if sentence == 0:
        return seed
    digest = hashlib.blake2b(_NUMBERS.pack(seed, sentence), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
