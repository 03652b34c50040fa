"""One picture as SVG: few groups of points against a logarithmic axis. Readable on white and on dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
.cw-panel { fill: #fbfaf7; stroke: #d8d4c9; }
.cw-ink { fill: #1d2a2c; } .cw-soft { fill: #55635f; } .cw-grid { stroke: #e3dfd5; } .cw-axis { stroke: #9aa49f; }
.cw-task { fill: none; stroke: #b9b4a6; stroke-width: 1.2; } .cw-mean { fill: none; stroke: #6d7975; stroke-width: 2; }
.cw-0 { --c: #2a9d8f; } .cw-1 { --c: #c9702b; } .cw-2 { --c: #6f63ad; } .cw-3 { --c: #b8405e; }
.cw-dot { fill: var(--c); fill-opacity: .5; stroke: var(--c); stroke-width: 1.4; }
.cw-big { fill: var(--c); stroke: #fbfaf7; stroke-width: 2.5; } .cw-bar { stroke: var(--c); stroke-width: 1.4; }
@media (prefers-color-scheme: dark) {
  .cw-panel { fill: #1f2729; stroke: #3a4547; } .cw-ink { fill: #e8efec; } .cw-soft { fill: #b4c0bb; }
  .cw-grid { stroke: #2f393b; } .cw-axis { stroke: #75827f; } .cw-task { stroke: #55615f; }
  .cw-mean { stroke: #a9b5b0; }
  .cw-0 { --c: #45c1b1; } .cw-1 { --c: #ef9a58; } .cw-2 { --c: #a79be6; } .cw-3 { --c: #ef7d98; }
  .cw-big { stroke: #1f2729; }
}"""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Dot:
    """One measurement. group: its colour (a method). line: what it is joined by (a task). low, high: error bar.
    key: names the row of a table that it belongs to; facts: what hovering shows, a line each."""

    group: str
    line: str
    x: float
    y: float
    low: float
    high: float
    key: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scatter:
    """Shares (0 to 1) against a size: every dot with its error bar, and one large mark per group for its mean.

    The mean stands at its own place (the geometric mean of x); dots of one group have nearly the same x and are moved
    apart sideways so that they can be told apart. Colours go by the order of `groups`, at most four. A group in `alone`
    has one dot, which stands where it is, and no mean.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    groups: Sequence[str]
    dots: Sequence[Dot]
    labels: dict[str, str] = field(default_factory=dict)  # per group, a second line under its mean's number
    alone: Sequence[str] = ()
    width: int = 920
    height: int = 520

    def svg(self) -> str:
        left, right, top, bottom = 74, 96, 140, 58
        w, h = self.width, self.height
        lines = list(dict.fromkeys(d.line for d in self.dots))
        centre = {g: _log_mean([d.x for d in self.dots if d.group == g]) for g in self.groups}
        lo, hi = math.log10(min(centre.values())), math.log10(max(centre.values()))
        room = max(0.28 * (hi - lo), 0.3)
        x0, x1 = lo - room, hi + room
        y0 = max(0.0, math.floor(10 * min(d.low for d in self.dots) - 0.2) / 10)
        y1 = min(1.0, math.ceil(10 * max(d.high for d in self.dots)) / 10)

        def px(v: float) -> float:
            return left + (math.log10(v) - x0) / (x1 - x0) * (w - left - right)

        def py(v: float) -> float:
            return h - bottom - (v - y0) / (y1 - y0) * (h - top - bottom)

        aside = {t: (i - (len(lines) - 1) / 2) * 15 for i, t in enumerate(lines)}
        at = {
            (d.group, d.line): (px(centre[d.group]) + aside[d.line] * (d.group not in self.alone), py(d.y))
            for d in self.dots
        }
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="cw-figure" viewBox="0 0 {w} {h}" role="img" '
            f'aria-labelledby="cw-t cw-d" font-family="{FONT}">',
            f'<title id="cw-t">{escape(self.title)}</title>',
            f'<desc id="cw-d">{escape(self.description)}</desc>',
            f"<style>{STYLE}\n</style>",
            f'<rect class="cw-panel" x="1" y="1" width="{w - 2}" height="{h - 2}" rx="12"/>',
            _text(24, 34, self.title, "cw-ink", 17, weight=650),
        ]
        for i in range(round(y0 * 10), round(y1 * 10) + 1):
            y = py(i / 10)
            out.append(_line("cw-grid", left, w - right, y, y))
            out.append(_text(left - 10, y + 4.5, f"{10 * i} %", "cw-soft", 13, "end"))
        for power in range(math.floor(x0), math.ceil(x1) + 1):
            for m in (1, 2, 5):
                v = m * 10.0**power
                if x0 <= math.log10(v) <= x1:
                    x, long = px(v), 7 if m == 1 else 4
                    out.append(_line("cw-axis", x, x, h - bottom, h - bottom + long))
                    if m == 1:
                        out.append(_text(x, h - bottom + 22, compact(v), "cw-soft", 13, "middle"))
        out.append(_line("cw-axis", left, w - right, h - bottom, h - bottom))
        out.append(_text((left + w - right) / 2, h - 14, self.x_label, "cw-soft", 13, "middle"))
        out.append(_text(24, 54, self.y_label, "cw-soft", 13))
        ends = []
        for line in lines:
            way = [at[g, line] for g in self.groups if (g, line) in at]
            out.append(f'<polyline class="cw-task" points="{_points(way)}"/>')
            ends.append((way[-1][1], line))
        for y, line in _apart(ends, 15):
            out.append(_text(w - right + 8, y + 4.5, line, "cw-soft", 13))
        share = {g: _mean([d.y for d in self.dots if d.group == g]) for g in self.groups}
        means = {g: (px(centre[g]), py(share[g])) for g in self.groups if g not in self.alone}
        for d in self.dots:
            x, y = at[d.group, d.line]
            colour = list(self.groups).index(d.group) % 4
            tip = escape("\n".join(d.facts))
            out.append(
                f'<g class="cw-{colour} cw-hover" data-key="{escape(d.key)}"><title>{tip}</title>'
                f"{_line('cw-bar', x, x, py(d.low), py(d.high))}"
                f'<circle class="cw-dot" cx="{x:.1f}" cy="{y:.1f}" r="4.6"/></g>'
            )
        out.append(f'<polyline class="cw-mean" points="{_points(list(means.values()))}"/>')
        for (x, g), i in zip(_apart([(px(centre[g]), g) for g in self.groups], 118), range(len(self.groups))):
            if g in means:
                cx, cy = means[g]
                out.append(f'<g class="cw-{i % 4}"><circle class="cw-big" cx="{cx:.1f}" cy="{cy:.1f}" r="10"/></g>')
            line = next(d.line for d in self.dots if d.group == g)
            told = f"{line if g in self.alone else 'mean'} {100 * share[g]:.1f} %"
            out.append(self._name(x, 88, g, told, self.labels.get(g, "")))
        return "\n".join([*out, "</svg>"]) + "\n"

    def _name(self, x: float, y: float, group: str, mean: str, more: str) -> str:
        colour = list(self.groups).index(group) % 4
        left = x - 4.4 * len(group) - 14
        parts = [
            f'<g class="cw-{colour}"><circle class="cw-dot" cx="{left:.1f}" cy="{y - 5:.1f}" r="5"/></g>',
            _text(x, y, group, "cw-ink", 15, "middle", 650),
            _text(x, y + 18, mean, "cw-ink", 13.5, "middle"),
            _text(x, y + 34, more, "cw-soft", 12.5, "middle") if more else "",
        ]
        return "".join(parts)


def compact(n: float) -> str:
    """1,234 as "1.2 kB": bytes with an SI prefix and two or three figures."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log_mean(values: Sequence[float]) -> float:
    return math.exp(_mean([math.log(v) for v in values]))


def _points(way: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in way)


def _apart(ends: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """The same labels from top to bottom, each at least `least` under the one before."""
    out: list[tuple[float, str]] = []
    for y, name in sorted(ends):
        out.append((max(y, out[-1][0] + least) if out else y, name))
    return out


def _line(look: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{look}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, look: str, size: float, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
