"""The picture shown while it is drawn."""

from __future__ import annotations

import logging
import time

from PIL import Image

from ..lumina_core import UNIT, LuminaError, Model, Prompt, RowFinished

log = logging.getLogger(__name__)


class Preview:
    """The first picture of a batch while it grows; decoded in strips, so a large picture costs no more memory."""

    ROWS, CONTEXT = 16, 4  # codes: rows of a strip, and rows above it that are decoded with it for its edge
    PAUSE, SHARE = 0.5, 10  # seconds between pictures, and that many times what a picture took

    def __init__(self, model: Model, most: int):
        """`most` is the longest side in pixels of what is shown."""
        self.model, self.most = model, most
        self.canvas: Image.Image | None = None
        self.seen = self.shown = 0  # rows that are there, and rows on the canvas
        self.next = 0.0
        self.works = True

    def strip(self, prompt: Prompt) -> tuple[int, int]:
        """Width and height in pixels of the most that is decoded at once."""
        width = prompt.units[1] if prompt.units else max(self.model.vocabulary.grid)
        return width * UNIT, (self.ROWS + self.CONTEXT) * self.model.vq.config.factor

    def update(self, event: RowFinished) -> Image.Image | None:
        """A picture for the screen, or None when it is too early for one; the whole picture is always shown.

        Where it cannot be made that is said once, and the drawing goes on without. A host's Cancel is passed on.
        """
        if not self.works:
            return None
        try:
            return self._picture(event)
        except (LuminaError, RuntimeError, ValueError, TypeError, OSError, MemoryError) as e:
            self.works, self.canvas = False, None
            log.warning(
                "Lumina-mGPT: no preview any more (%s); drawing goes on without", str(e).split("\n")[0]
            )
            return None

    def _picture(self, event: RowFinished) -> Image.Image | None:
        start = time.monotonic()
        codes, factor = event.codes[0], self.model.vq.config.factor
        if len(codes) <= self.seen:  # a new picture began
            self.canvas, self.shown = None, 0
        self.seen = len(codes)
        if start < self.next and len(codes) < event.shape[0]:
            return None
        if self.canvas is None:
            self.canvas = Image.new("RGB", (event.shape[1] * factor, event.shape[0] * factor), "#808080")
        while self.shown < len(codes):
            top = max(0, self.shown - self.CONTEXT)
            end = min(len(codes), self.shown + self.ROWS)
            strip = self.model.decode(codes[top:end])[(self.shown - top) * factor :]
            self.canvas.paste(Image.fromarray(strip), (0, self.shown * factor))
            self.shown = end
        picture = self.canvas.copy()
        picture.thumbnail((self.most, self.most))
        now = time.monotonic()
        self.next = max(start + self.PAUSE, now + self.SHARE * (now - start))
        return picture
