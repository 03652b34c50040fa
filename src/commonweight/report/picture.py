"""Curves as one SVG: against bytes, on a logarithmic axis, or against whole numbers; the metric on the left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .figure import FONT, STYLE, compact

COLOURS = 4


class Line(NamedTuple):
    """points: (bytes or a number, metric), the first growing."""

    name: str
    points: Sequence[tuple[float, float]]


def picture(
    title: str, lines: Sequence[Line], x_label: str, y_label: str, width: int = 920, height: int = 440,
    stages: Sequence[str] = (),
) -> str:  # fmt: skip
    """The lines over a common axis; a line without points is left out. Hovering shows each point.

    stages: names of the whole numbers from 0 on, which stand below in place of bytes."""
    lines = [line for line in lines if line.points]
    every = [p for line in lines for p in line.points]
    lo, hi = at(min(x for x, _ in every), stages), at(max(x for x, _ in every), stages)
    lo, hi = lo - 0.05 * max(0.5, hi - lo), hi + 0.05 * max(0.5, hi - lo)
    below, above = min(y for _, y in every), max(y for _, y in every)
    step = nice((above - below) / 5 or abs(above) / 5 or 1.0)
    y0, y1 = math.floor(below / step) * step, (math.floor(above / step) + 1) * step
    left, right, top, bottom = 74, 30, 84 + 20 * ((len(lines) - 1) // 3), 56

    def px(x: float) -> float:
        return left + (at(x, stages) - lo) / (hi - lo) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cw-figure" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="{FONT}">',
        f"<style>{STYLE}\n.cw-way {{ fill: none; stroke: var(--c); stroke-width: 2; }}</style>",
        f'<rect class="cw-panel" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12"/>',
        f'<text class="cw-ink" x="24" y="34" font-size="17" font-weight="650">{escape(title)}</text>',
    ]
    for k in range(round((y1 - y0) / step) + 1):
        y = py(y0 + k * step)
        out.append(f'<line class="cw-grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(label(left - 10, y + 4.5, f"{y0 + k * step:.4g}", "end"))
    for v, told in ticks(lo, hi, stages):
        out.append(label(px(v), height - bottom + 22, told, "middle"))
        x, y = f"{px(v):.1f}", height - bottom
        out.append(f'<line class="cw-axis" x1="{x}" x2="{x}" y1="{y}" y2="{y + 6}"/>')
    out.append(label((left + width - right) / 2, height - 12, x_label, "middle"))
    for i, line in enumerate(lines):
        way = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line.points)
        row, place = divmod(i, 3)
        dots = "".join(
            f'<g class="cw-hover"><title>{escape(line.name)}\n{shown(x, stages)}: {y_label} {y:.4f}</title>'
            f'<circle class="cw-dot" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.6"/></g>'
            for x, y in line.points
        )
        x, y = 24 + 290 * place, 58 + 20 * row
        out.append(
            f'<g class="cw-{i % COLOURS}"><polyline class="cw-way" points="{way}"/>{dots}'
            f'<circle class="cw-dot" cx="{x + 5}" cy="{y - 4}" r="5"/>{label(x + 16, y, line.name)}</g>'
        )
    return "\n".join([*out, "</svg>"])


def at(x: float, stages: Sequence[str]) -> float:
    return x if stages else math.log10(max(1, x))


def shown(x: float, stages: Sequence[str]) -> str:
    return escape(stages[round(x)]) if stages else compact(x)


def ticks(lo: float, hi: float, stages: Sequence[str]) -> list[tuple[float, str]]:
    """(where, what stands there)."""
    if stages:
        return [(i, name) for i, name in enumerate(stages) if lo <= i <= hi]
    every = [m * 10.0**power for power in range(math.floor(lo), math.ceil(hi) + 1) for m in (1, 2, 5)]
    return [(v, compact(v)) for v in every if lo <= math.log10(v) <= hi]


def nice(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="cw-soft" x="{x:.1f}" y="{y:.1f}" font-size="13" text-anchor="{anchor}">{escape(text)}</text>'
