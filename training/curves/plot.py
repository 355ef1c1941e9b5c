"""Draws the loss curves of this folder: `python training/curves/plot.py` writes curves.svg beside its tables."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
CURVES = {
    "tokenizer": ("phone", "mel", "accuracy"),
    "speaker": ("loss", "accuracy"),
    "llm": ("speech", "held_out", "guided"),
    "flow": ("flow", "prior"),
    "hift": ("spectral", "pitch"),
}
POINTS = 150
SMOOTHING = 0.8


def read(path: Path) -> dict[str, list[float]]:
    """The columns of a table."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def smooth(values: list[float]) -> list[float]:
    """An exponential moving average, from the first value on."""
    means = values[:1]
    for value in values[1:]:
        means.append(SMOOTHING * means[-1] + (1 - SMOOTHING) * value)
    return means


def main() -> None:
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 8})
    figure, axes = plt.subplots(1, len(CURVES), figsize=(15, 2.6), layout="constrained")
    for axis, (name, columns) in zip(axes, CURVES.items(), strict=True):
        table = read(FOLDER / f"{name}.csv")
        for column in columns:
            measured = [(t, value) for t, value in zip(table["seconds"], table[column], strict=True) if value > 0]
            seconds, values = zip(*measured, strict=True)
            every = max(1, len(measured) // POINTS)
            axis.plot(seconds[::every], smooth(list(values))[::every], label=column, linewidth=1)
        axis.set(title=name, xlabel="seconds", yscale="log")
        axis.legend(frameon=False)
    figure.savefig(FOLDER / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
