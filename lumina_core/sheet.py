"""A contact sheet: labelled cells of one or several pictures, in sections, enlarged without smoothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 1332  # pixels of the sheet
TALL = 192  # about the height of a picture
MARGIN, GAP, ARROW = 28, 20, 28  # around the sheet, between cells, between what was given and what was drawn
LINE, BOLD = 16, 18  # heights of a line of text and of a title
INK, SOFT, FRAME, ACCENT = (34, 34, 40), (110, 110, 120), (216, 216, 222), (196, 84, 30)


@dataclass(frozen=True, eq=False)
class Cell:
    """Pictures (H, W, 3) in bytes, the first `given` of them given; what was said about them, and what was written."""

    title: str
    said: str
    pictures: tuple[np.ndarray, ...]
    given: int = 0
    written: str = ""


@dataclass(frozen=True, eq=False)
class Section:
    """Cells under one heading."""

    title: str
    cells: Sequence[Cell]


class _Laid:
    """A cell with the size it takes."""

    def __init__(self, cell: Cell):
        self.cell = cell
        self.shown = [_enlarged(picture) for picture in cell.pictures]
        arrow = ARROW if 0 < cell.given < len(self.shown) else 0
        gaps = 4 * max(0, len(self.shown) - 1 - bool(arrow)) + arrow
        self.width = max(TALL, sum(p.width for p in self.shown) + gaps)
        self.tall = max((p.height for p in self.shown), default=0)
        chars = self.width // 7
        self.said, self.written = (textwrap.wrap(text, chars) for text in (cell.said, cell.written))
        self.high = self.tall + 8 + BOLD + LINE * (len(self.said) + len(self.written))

    def draw(self, sheet: Image.Image, left: int, top: int, tall: int) -> None:
        """Pictures side by side, their lower edges `tall` below the top; the words beneath."""
        pen, x = ImageDraw.Draw(sheet), left
        for n, picture in enumerate(self.shown):
            if n and n == self.cell.given:
                x += ARROW - 4
                y = top + tall - self.tall // 2
                pen.polygon([(x - 17, y - 7), (x - 17, y + 7), (x - 7, y)], fill=ACCENT)
            y = top + tall - picture.height
            sheet.paste(picture, (x, y))
            pen.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
            x += picture.width + 4
        y = top + tall + 6
        pen.text((left, y), self.cell.title, fill=INK, font=_font(14))
        y += BOLD
        for lines, colour in ((self.said, SOFT), (self.written, ACCENT)):
            for line in lines:
                pen.text((left, y), line, fill=colour, font=_font(12))
                y += LINE


def contact_sheet(sections: Sequence[Section]) -> Image.Image:
    """One RGB picture of all sections, their cells from left to right in rows as wide as the sheet."""
    rows = [(s.title if first else "", row) for s in sections for first, row in _rows(s.cells)]
    heights = [_height(row) + GAP + (44 if title else 0) for title, row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights) + 2 * MARGIN - GAP), "white")
    top = MARGIN
    for (title, row), height in zip(rows, heights, strict=True):
        y = top
        if title:
            pen = ImageDraw.Draw(sheet)
            pen.text((MARGIN, y), title, fill=INK, font=_font(22))
            pen.line((MARGIN, y + 31, WIDTH - MARGIN, y + 31), fill=FRAME)
            y += 44
        left, tall = MARGIN, max(cell.tall for cell in row)
        for cell in row:
            cell.draw(sheet, left, y, tall)
            left += cell.width + GAP
        top += height
    return sheet


def _rows(cells: Sequence[Cell]) -> Iterator[tuple[bool, list[_Laid]]]:
    """Rows of cells, and whether each is the first."""
    row: list[_Laid] = []
    first, room = True, WIDTH - 2 * MARGIN
    for cell in map(_Laid, cells):
        if row and sum(c.width + GAP for c in row) + cell.width > room:
            yield first, row
            row, first = [], False
        row.append(cell)
    if row:
        yield first, row


def _height(row: Sequence[_Laid]) -> int:
    """Pixels that a row takes: its tallest picture and its longest words."""
    return max(cell.tall for cell in row) + max(cell.high - cell.tall for cell in row)


def _enlarged(picture: np.ndarray) -> Image.Image:
    """The picture a whole number of times as large, about `TALL` pixels high."""
    height, width = picture.shape[:2]
    times = max(1, round(TALL / height))
    return Image.fromarray(picture).resize((width * times, height * times), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
