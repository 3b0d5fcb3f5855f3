"""Plots as SVG, written by hand: panels side by side, lines over categories, ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from craterun.bench.report import PHASES, US, WHOLES, Percentiles, Report

COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#64748b", "#be123c", "#0891b2")
WIDTH, HEIGHT = 520, 380
_LEFT, _TOP, _BOTTOM, _RIGHT = 64, 66, 52, 34
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#334155}"
    ".title{font-size:15px;font-weight:600;fill:#0f172a}"
    ".grid{stroke:#e2e8f0;stroke-width:1}.axis{stroke:#94a3b8;stroke-width:1}"
)


def page(panels: Sequence[str]) -> str:
    """One SVG document with ``panels`` next to each other."""
    width = WIDTH * len(panels)
    body = "".join(
        f'<g transform="translate({WIDTH * number} 0)">{panel}</g>\n'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}">\n<style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>\n{body}</svg>\n'
    )


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 up to the first that is not below ``highest``."""
    rough = max(highest, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * n for n in range(math.ceil(highest / step - 1e-9) + 1)]


def lines(
    title: str, categories: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str
) -> str:
    """A panel: one line for each of ``series`` over evenly spaced ``categories``; None: a gap.

    :param label: what the categories are
    """
    highest = max((v for values in series.values() for v in values if v is not None), default=1.0)
    marks = ticks(highest)
    top = marks[-1] or 1.0

    def x(position: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (position + 0.5) / len(categories)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top

    parts = [_text(_LEFT, 24, title, "title")]
    for mark in marks:
        parts += [_line(_LEFT, y(mark), WIDTH - _RIGHT, y(mark), "grid")]
        parts += [_text(_LEFT - 8, y(mark) + 4, f"{mark:g}", anchor="end")]
    parts.append(_line(_LEFT, y(0), WIDTH - _RIGHT, y(0), "axis"))
    for position, category in enumerate(categories):
        parts.append(_text(x(position), y(0) + 18, category, anchor="middle"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 12, label, anchor="middle"))
    legend = float(_LEFT)
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x(p), y(v)) for p, v in enumerate(values) if v is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        parts.append(f'<rect x="{legend:.0f}" y="38" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(legend + 17, 48, name))
        legend += 36 + 7 * len(name)
    return "\n".join(parts)


def ranges(title: str, rows: Mapping[str, Percentiles], label: str) -> str:
    """A panel: for each of ``rows`` a bar up to p50, a line up to p90 and a dot at p99, to a
    logarithmic scale.
    """
    left = 96
    highest = max((row.p99 for row in rows.values()), default=1.0)
    decades = max(1, math.ceil(math.log10(max(highest, 1.0))))

    def x(value: float) -> float:
        # A value below 1 is drawn as 1.
        return left + (WIDTH - left - _RIGHT) * math.log10(max(value, 1.0)) / decades

    bottom = HEIGHT - _BOTTOM
    parts = [_text(left, 24, title, "title")]
    for decade in range(decades + 1):
        parts.append(_line(x(10.0**decade), _TOP - 8, x(10.0**decade), bottom, "grid"))
        parts.append(_text(x(10.0**decade), bottom + 18, f"{10**decade:,}", anchor="middle"))
    parts.append(_text((left + WIDTH - _RIGHT) / 2, HEIGHT - 12, label, anchor="middle"))
    height = (bottom - _TOP) / max(1, len(rows))
    for number, (name, row) in enumerate(rows.items()):
        middle = _TOP + height * (number + 0.5)
        colour = COLOURS[0] if name not in dict(WHOLES) else COLOURS[4]
        parts.append(_text(left - 8, middle + 4, name, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{middle - 6:.1f}" width="{x(row.p50) - left:.1f}" height="12" '
            f'rx="2" fill="{colour}"/>'
        )
        parts.append(
            f'<line x1="{x(row.p50):.1f}" y1="{middle:.1f}" x2="{x(row.p90):.1f}" '
            f'y2="{middle:.1f}" stroke="{colour}" stroke-width="3" opacity="0.5"/>'
        )
        parts.append(f'<circle cx="{x(row.p99):.1f}" cy="{middle:.1f}" r="3.5" fill="{colour}"/>')
    parts.append(_text(left, 48, "bar: median, line: to p90, dot: p99"))
    return "\n".join(parts)


def plot(report: Report) -> str:
    """``report`` as an SVG document: rates, and the phases at the best of them."""
    rates = {name: [level.rate(name) for level in report.levels] for name in report.contenders}
    best = report.best()
    names = [name for name, _ in PHASES + WHOLES if name in best.latency_us]
    return page([
        lines("containers per second", [str(v.jobs) for v in report.levels], rates, "at once"),
        ranges(
            f"one container's phases, {best.jobs} at once",
            {name: best.latency_us[name] for name in names},
            US,
        ),
    ])  # fmt: skip


def _text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'
