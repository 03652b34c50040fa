"""A picture: one figure against the bytes of the blocks, and the front of what nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 460, 70, 30, 60, 60
COLOURS = {"share": "#2a9d8f", "drop": "#c9702b", "nothing": "#b8405e", "bits": "#6f63ad"}
TOLD = {"share": "shared", "drop": "layers left out", "nothing": "from nothing", "bits": "fewer bits"}

Point = tuple[str, str, float, float]  # name, kind, share of the bytes, figure


def front(points: Sequence[Point], more: bool) -> list[Point]:
    """Those that no other beats with as few bytes, by bytes."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (p[2], -p[3] if more else p[3])):
        if not out or (p[3] > out[-1][3] if more else p[3] < out[-1][3]):
            out.append(p)
    return out


def picture(title: str, unit: str, original: float, points: Sequence[Point], more: bool) -> str:
    """An SVG, readable on white and on dark."""
    if not points:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>\n'
    ys = [p[3] for p in points] + [original]
    low, high = min(ys), max(ys)
    room = 0.08 * (high - low or 1)
    x0, x1 = 0.0, 1.05 * max(p[2] for p in points)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low + room) / (high - low + 2 * room) * (HEIGHT - TOP - BOTTOM)

    grey = 'fill="none" stroke="#8a938f"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">',
        f"<title>{escape(title)}: {escape(unit)} against bytes</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fbfaf7"/>',
        _text(24, 30, f"{title}: {unit}, against the bytes of the blocks", 16),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" {grey}/>',
        f'<path d="M{LEFT} {py(original):.1f}H{WIDTH - RIGHT}" {grey} stroke-dasharray="4 4"/>',
        _text(WIDTH - RIGHT, py(original) - 5, "original", 12, "end"),
    ]
    for i in range(5):
        y = low + i * (high - low) / 4
        out.append(_text(LEFT - 8, py(y) + 4, f"{y:.3g}", 12, "end"))
    step = 0.1
    for i in range(1, int(x1 / step) + 1):
        out.append(_text(px(i * step), HEIGHT - BOTTOM + 18, f"{100 * i * step:.0f} %", 12, "middle"))
    best = front(points, more)
    way = " ".join(f"{px(p[2]):.1f},{py(p[3]):.1f}" for p in best)
    out.append(f'<polyline points="{way}" {grey} stroke-width="1.5"/>')
    named = {p[:3] for p in best}
    for p in points:
        kind = "drop" if p[0].startswith("drop") else p[1]
        tip = f"<title>{escape(p[0])}: {p[3]:.4g} at {p[2]:.1%}</title>"
        out.append(f'<circle cx="{px(p[2]):.1f}" cy="{py(p[3]):.1f}" r="5" fill="{COLOURS[kind]}">{tip}</circle>')
        if p[:3] in named:
            out.append(_text(px(p[2]) - 8, py(p[3]) - 8, p[0], 11, "end"))
    for i, (kind, told) in enumerate(TOLD.items()):
        x = LEFT + 150 * i
        out.append(
            f'<circle cx="{x}" cy="{HEIGHT - 16}" r="5" fill="{COLOURS[kind]}"/>{_text(x + 10, HEIGHT - 12, told, 12)}'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#1d2a2c">{escape(text)}</text>'
    )
