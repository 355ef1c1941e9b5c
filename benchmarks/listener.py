"""Hears a folder of 000.wav, 001.wav, ... with Whisper base and scores it against a file, one sentence a line.

Runs in the environment that `make listener` builds. Beam 5; both sides pass the English text normaliser of Whisper.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jiwer
from faster_whisper import WhisperModel
from whisper_normalizer.english import EnglishTextNormalizer


def main() -> None:
    """Prints each sentence that was heard differently, then the word error rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / ".listener/base")
    options = parser.parse_args()
    normalise = EnglishTextNormalizer()
    model = WhisperModel(str(options.model), device="cpu", compute_type="int8", cpu_threads=2)
    said, heard, missing = [], [], 0
    for index, line in enumerate(filter(None, map(str.strip, options.sentences.read_text().splitlines()))):
        wav = options.folder / f"{index:03d}.wav"
        said.append(normalise(line))
        if not wav.exists():
            missing += 1
            heard.append("")
            continue
        segments, _ = model.transcribe(
            str(wav), language="en", beam_size=5, without_timestamps=True, condition_on_previous_text=False
        )
        heard.append(normalise(" ".join(segment.text for segment in segments)))
        if said[-1] != heard[-1]:
            print(f"{index:03d} {said[-1]} | {heard[-1]}")
    print(f"WER {100 * jiwer.wer(said, heard):.2f}% on {len(said)} sentences, {missing} missing")


if __name__ == "__main__":
    main()
