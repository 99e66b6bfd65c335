"""The time of a step against its floor, as a small SVG made of nothing but text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw", "points", "write"]

WIDTH, HEIGHT, EDGE = 640, 400, 64
COLOURS = ("#1b6ca8", "#c8553d", "#2f9e44", "#7b2d8b")

Points = Mapping[str, list[tuple[int, float, float]]]
"""By model: slots, milliseconds of a step, and the least that it could take."""


def points(files: Iterable[Path]) -> dict[str, list[tuple[int, float, float]]]:
    """What result files say about steps."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for file in files:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["results"]
        steps = [value for name, value in results.items() if name.startswith("steps, ") and isinstance(value, dict)]
        part = file.name.split("-")[1]
        made = sorted((each["slots"], each["step ms"], each["floor ms"]) for each in steps)
        if made:
            found[part] = made
    return found


def draw(models: Points, title: str) -> str:
    """The picture: a line of what was measured, and a broken one of the floor, for each model."""
    every = [point for those in models.values() for point in those]
    right = max(slots for slots, _, _ in every) * 1.05
    top = max(max(step, floor) for _, step, floor in every) * 1.1

    def x(slots: float) -> float:
        return EDGE + slots / right * (WIDTH - 2 * EDGE)

    def y(ms: float) -> float:
        return HEIGHT - EDGE - ms / top * (HEIGHT - 2 * EDGE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{EDGE}" y="24" font-size="14">{_safe(title)}</text>',
        f'<path d="M{EDGE} {EDGE}V{HEIGHT - EDGE}H{WIDTH - EDGE}" fill="none" stroke="#444"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 20}" text-anchor="middle">slots</text>',
        f'<text x="16" y="{EDGE - 12}">ms a step (broken: the least possible)</text>',
    ]
    parts += [
        f'<text x="{x(slots):.1f}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{slots}</text>'
        for slots in sorted({slots for slots, _, _ in every})
    ]
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<text x="{EDGE - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        parts.append(f'<path d="M{EDGE} {y(value):.1f}H{WIDTH - EDGE}" stroke="#ddd"/>')
    for number, (name, those) in enumerate(models.items()):
        colour = COLOURS[number % len(COLOURS)]
        for place, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
            line = " ".join(f"{x(point[0]):.1f},{y(point[place]):.1f}" for point in those)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for slots, step, floor in those:
            parts.append(f'<circle cx="{x(slots):.1f}" cy="{y(step):.1f}" r="3.5" fill="{colour}"/>')
            label = f"{step:.2f} ({floor / step:.0%})"
            parts.append(f'<text x="{x(slots):.1f}" y="{y(step) - 8:.1f}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="{WIDTH - EDGE + 6}" y="{y(those[-1][1]):.1f}" fill="{colour}">{_safe(name)}</text>')
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def write(folder: Path, name: str, models: Points, title: str) -> Path | None:
    """Draws it into ``folder``, if there is anything to draw."""
    if not models:
        return None
    path = folder / f"{name}.svg"
    path.write_text(draw(models, title), encoding="utf-8")
    return path


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
