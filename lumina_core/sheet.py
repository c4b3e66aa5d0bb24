"""A contact sheet: labelled pictures in a grid, enlarged without smoothing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE = 12, 14


def contact_sheet(cells: Sequence[tuple[np.ndarray, str]], columns: int, cell: int = 256) -> Image.Image:
    """One RGB picture of (picture (H, W, 3) in bytes, label) pairs, each fitted into a square of `cell` pixels."""
    font = ImageFont.load_default(12)
    labels = [textwrap.wrap(label, cell // 7) for _, label in cells]
    high = cell + MARGIN + LINE * max(len(lines) for lines in labels)
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, rows * (high + MARGIN) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((picture, _), lines) in enumerate(zip(cells, labels, strict=True)):
        left, top = MARGIN + i % columns * (cell + MARGIN), MARGIN + i // columns * (high + MARGIN)
        height, width = picture.shape[:2]
        scale = (
            max(1, cell // max(height, width)) if max(height, width) <= cell else cell / max(height, width)
        )
        size = (round(width * scale), round(height * scale))
        shown = Image.fromarray(picture).resize(
            size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        )
        sheet.paste(shown, (left + (cell - size[0]) // 2, top + (cell - size[1]) // 2))
        pen.rectangle((left - 1, top - 1, left + cell, top + cell), outline=(200, 200, 200))
        pen.multiline_text((left, top + cell + 4), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet
