"""Sampling: the plain engine, its events and settings."""

from .engine import generate
from .events import (
    MODES,
    AnswerFinished,
    Event,
    PictureFinished,
    Progress,
    RowFinished,
    Sampling,
    TextPiece,
)

__all__ = [
    "MODES",
    "MODES",
    "AnswerFinished",
    "Event",
    "PictureFinished",
    "Progress",
    "RowFinished",
    "Sampling",
    "TextPiece",
    "generate",
]
