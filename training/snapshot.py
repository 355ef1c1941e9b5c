"""Copy what a run has to show so far: finished weights, or else the averaged ones of its checkpoints as they would
ship.

python -m training.snapshot --run RUN --out RESULT
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch

from training.loop import export

FINISHED = ("flow.pt", "hift.pt", "llm.pt", "speaker.pt", "campplus.onnx", "tokenizer/encoder.pt")


def from_checkpoint(path: Path, out: Path) -> None:
    """The weights of a flow's or vocoder's checkpoint with the averaged parameters in place of the last ones."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    export(out, {**saved["model"], **saved["average"]})


def snapshot(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in FINISHED:
        source, target = run / name, out / Path(name).name
        checkpoint = run / f"{source.stem}-checkpoint.pt"
        if source.exists():
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                shutil.copy2(source, target.with_suffix(".new"))
                os.replace(target.with_suffix(".new"), target)
        elif checkpoint.exists() and name != "llm.pt":
            from_checkpoint(checkpoint, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    snapshot(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
