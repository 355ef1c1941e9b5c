"""Word error rate of the bundled voice: 120 sentences through `lighttts-cli synth`, heard by Whisper base.

Start a stack first (`lighttts-cli up`), build the listener once (`make listener`), then:

    python benchmarks/wer.py [--broker tcp://127.0.0.1:5570] [--out .run/wer]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Synthesises and scores; returns the listener's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", default="tcp://127.0.0.1:5570")
    parser.add_argument("--voice", default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sentences", type=Path, default=ROOT / "benchmarks/dev_sentences.txt")
    parser.add_argument("--out", type=Path, default=ROOT / ".run/wer")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.wav"):
        old.unlink()
    sentences = [line.strip() for line in options.sentences.read_text().splitlines() if line.strip()]
    common = ["--broker", options.broker, "--seed", str(options.seed), "--quiet"]
    common += ["--voice", options.voice] if options.voice else []

    def synthesise(numbered: tuple[int, str]) -> None:
        index, text = numbered
        command = [ROOT / "bin/lighttts-cli", "synth", "-o", options.out / f"{index:03d}.wav", *common, "--", text]
        subprocess.run([str(part) for part in command], check=True)

    with ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(synthesise, enumerate(sentences)), 1):
            print(f"\r{done}/{len(sentences)} sentences", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    listener = [ROOT / ".listener/venv/bin/python", ROOT / "benchmarks/listener.py", options.out, options.sentences]
    return subprocess.run([str(part) for part in listener]).returncode


if __name__ == "__main__":
    sys.exit(main())
