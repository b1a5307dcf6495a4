"""The pipeline's timeline as an SVG picture: one row a stage, one box a forward or backward pass."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from training.planning.schedule import Played

WIDTH, ROW, LEFT, TOP = 1000, 26, 64, 44
COLOURS = {"forward": "#5b8def", "backward": "#f2a65a", "reduce": "#a58fc4", "step": "#7c9a7e"}
NUMBERED_FROM = 14
"""Pixels from which on a box has its micro-batch's number in it."""


def write_timeline(path: Path, played: Played, title: str) -> None:
    """Draw the micro-batches that were played one by one; a longer step repeats its middle."""
    shown = max(span.end for span in played.spans)
    scale = (WIDTH - LEFT - 10) / shown
    stroke = 'stroke="#fff" stroke-width="0.5"'
    stages = len(played.busy)
    height = TOP + stages * ROW + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="14" fill="#222">{escape(title)}</text>',
    ]
    for index, (kind, colour) in enumerate(COLOURS.items()):
        left = LEFT + 130 * index
        parts.append(
            f'<rect x="{left}" y="26" width="12" height="10" fill="{colour}"/><text x="{left + 17}" y="36" fill="#222">{kind}</text>'
        )
    for stage in range(stages):
        y = TOP + stage * ROW
        parts.append(f'<text x="4" y="{y + 17}" fill="#222">stage {stage}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{WIDTH - LEFT - 10}" height="{ROW - 4}" fill="#eeeeee"/>')
    for span in played.spans:
        x, y, width = LEFT + span.start * scale, TOP + span.stage * ROW + 2, (span.end - span.start) * scale
        if width < 0.05:
            continue
        parts.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 4}" fill="{COLOURS[span.kind]}" {stroke}/>')
        if width >= NUMBERED_FROM and span.kind in ("forward", "backward"):
            parts.append(f'<text x="{x + width / 2:.2f}" y="{y + 15}" text-anchor="middle" font-size="10">{span.micro_batch + 1}</text>')
    parts.append(f'<text x="{LEFT}" y="{height - 10}" fill="#222">0</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{height - 10}" text-anchor="end" fill="#222">{shown:.3g} s</text></svg>')
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
