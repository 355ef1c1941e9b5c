"""The curve of latency against load as an SVG picture. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lighttts.bench.summary import PERCENTILES, Summary

WIDTH, HEIGHT, MARGIN = 720, 420, 60
COLOURS = dict(zip((f"p{p}" for p in PERCENTILES), ("#2a9d8f", "#e9c46a", "#f4a261", "#e63946"), strict=True))
TICKS = 5
FONT = 'font-family="sans-serif" font-size="12"'


def latency_curve(summaries: Sequence[Summary], unit: str) -> str:
    """First audio in milliseconds over the load (`unit`), a line for each percentile."""
    points = {
        name: [(summary.level, 1000 * summary.first_audio[name]) for summary in summaries if summary.first_audio]
        for name in COLOURS
    }
    most_x = _round(max((summary.level for summary in summaries), default=1.0))
    most_y = _round(max((y for line in points.values() for _, y in line), default=1.0))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(most_x, most_y, unit),
    ]
    for number, (name, line) in enumerate(points.items()):
        spots = [(_x(x, most_x), _y(y, most_y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[name]}"/>' for x, y in spots]
        parts.append(f'<text x="{MARGIN + 12}" y="{44 + 16 * number}" fill="{COLOURS[name]}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _round(most: float) -> float:
    """The end of an axis for numbers up to `most`, whose ticks are round numbers."""
    step = 10.0 ** math.floor(math.log10(max(most, 1e-9) / TICKS))
    return TICKS * next(step * size for size in (1, 2, 2.5, 5, 10, 20) if TICKS * step * size >= most)


def _axes(most_x: float, most_y: float, unit: str) -> list[str]:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    parts = [f'<path d="M{MARGIN},{MARGIN / 2} V{bottom} H{right}" fill="none" stroke="black"/>']
    for tick in range(TICKS + 1):
        x, y = tick * most_x / TICKS, tick * most_y / TICKS
        parts.append(f'<text x="{_x(x, most_x):.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
        parts.append(f'<text x="{MARGIN - 8}" y="{_y(y, most_y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">{escape(unit)}</text>')
    parts.append(f'<text x="{MARGIN}" y="{MARGIN / 2 - 8}">first audio, ms</text>')
    return parts


def _x(value: float, most: float) -> float:
    return MARGIN + value / most * (WIDTH - 2 * MARGIN)


def _y(value: float, most: float) -> float:
    return HEIGHT - MARGIN - value / most * (HEIGHT - 1.5 * MARGIN)
