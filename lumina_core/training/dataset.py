"""Examples as token sequences, made once and kept: what upstream calls pre-tokenising."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError
from ..families.model import without_tf32
from ..files import write_state
from ..pickles import read_plain
from ..prompts import IGNORE
from .examples import Size, example
from .sequences import Language

Pool = tuple[str, Size]  # kind of example and panel size
CHUNK = 64  # examples whose pictures are encoded together


@dataclass(frozen=True, eq=False)
class Sequences:
    """All sequences of one pool, end to end: tokens, which of them are learned, and where each sequence begins."""

    tokens: np.ndarray  # int32
    learned: np.ndarray  # bool
    starts: np.ndarray  # int64, one more than there are sequences

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def item(self, number: int) -> tuple[list[int], list[int]]:
        """Tokens and labels of a sequence."""
        part = slice(self.starts[number], self.starts[number + 1])
        tokens = self.tokens[part]
        return tokens.tolist(), np.where(self.learned[part], tokens, IGNORE).tolist()


Dataset = dict[Pool, Sequences]


def pre_tokenise(
    vq: nn.Module,
    language: Language,
    counts: dict[Pool, int],
    folder: Path,
    report: Callable[[str], None],
    device: torch.device | str = "cpu",
) -> Dataset:
    """The training sequences of every pool; finished files in `folder` (one a size, for these counts) are used again.

    Kinds go through the scenes together, so a picture that several of them show is encoded once.
    """
    out: Dataset = {}
    for size in dict.fromkeys(size for _, size in counts):
        kinds = {kind: count for (kind, at), count in counts.items() if at == size}
        mark = zlib.crc32(repr(sorted(kinds.items())).encode())
        file = folder / f"{size[0]}x{size[1]}-{mark:08x}.pt"
        if not file.exists():
            tables = _tables(vq, language, kinds, size, report, device)
            write_state(file, tables)
        try:
            for kind, saved in read_plain(file).items():
                parts = (saved[name].numpy() for name in ("tokens", "learned", "starts"))
                out[kind, size] = Sequences(*parts)
        except (AttributeError, LookupError, TypeError) as e:
            raise CheckpointError(
                f"{file} holds no training sequences ({e!r}). Delete it to make it anew."
            ) from None
    return out


def _tables(
    vq: nn.Module,
    language: Language,
    kinds: dict[str, int],
    size: Size,
    report: Callable[[str], None],
    device,
) -> dict[str, dict[str, torch.Tensor]]:
    rows: dict[str, list[tuple[list[int], list[int]]]] = {kind: [] for kind in kinds}
    most = max(kinds.values())
    for first in range(0, most, CHUNK):
        items = [
            (kind, n, example(kind, "train", n, size))
            for kind, count in kinds.items()
            for n in range(first, min(first + CHUNK, count))
        ]
        codes = picture_codes(vq, [p for _, _, e in items for p in (*e.given, *e.drawn)], device)
        for kind, n, e in items:
            given = [codes[p.tobytes()] for p in e.given]
            drawn = [codes[p.tobytes()] for p in e.drawn]
            rows[kind].append(language.sequence(e, given, drawn, says_size=n % 10 != 3))
        if first // CHUNK % 10 == 0:
            report(f"encoding {size[0]}x{size[1]}: scene {first} of {most}")
    return {
        kind: {
            "tokens": torch.tensor([t for tokens, _ in parts for t in tokens], dtype=torch.int32),
            "learned": torch.tensor([label != IGNORE for _, labels in parts for label in labels]),
            "starts": torch.tensor([0, *np.cumsum([len(tokens) for tokens, _ in parts]).tolist()]),
        }
        for kind, parts in rows.items()
    }


@torch.inference_mode()
def picture_codes(vq: nn.Module, pictures: list[np.ndarray], device="cpu") -> dict[bytes, torch.Tensor]:
    """Codes (h, w) of pictures of one size, each picture encoded once, by the bytes of the picture."""
    unique = {p.tobytes(): p for p in pictures}
    codes = {}
    names = list(unique)
    for first in range(0, len(names), CHUNK):
        part = names[first : first + CHUNK]
        pixels = to_network(np.stack([unique[name] for name in part]))
        with without_tf32():
            codes |= zip(part, vq.encode(pixels.to(device)).cpu(), strict=True)
    return codes


def to_network(pictures: np.ndarray) -> torch.Tensor:
    """Bytes (B, H, W, 3) to floats (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1
