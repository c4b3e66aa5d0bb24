"""One golden case: its files, and how a difference is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..documents import read_json, read_text
from ..families.base import Family, Source
from ..families.mgpt1 import Mgpt1
from ..families.mgpt2 import Mgpt2
from ..families.model import Model
from ..families.pure import Pure
from ..image import open_picture
from ..text import Tokenizer
from ..transformer import Transformer, TransformerConfig

FAMILIES: dict[str, Family] = {"lumina1": Mgpt1(), "lumina2": Mgpt2(), "pure": Pure()}
FAMILIES |= {family.id: family for family in FAMILIES.values()}


class Mismatch(Exception):
    """What came is not what was expected."""


class Skipped(Exception):
    """The case does not apply; the text says why."""


@dataclass(frozen=True)
class Case:
    """A case of an index, and the folder that all its paths are relative to."""

    folder: Path
    entry: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.entry["kind"]

    @property
    def family(self) -> Family:
        name = self.entry.get("family")
        if name not in FAMILIES:
            raise Mismatch(f"family {name!r} is none of {', '.join(FAMILIES)}")
        return FAMILIES[name]

    def has(self, role: str) -> bool:
        return role in self.entry["files"]

    def path(self, role: str) -> Path:
        return self.inside(self.entry["files"][role])

    def inside(self, relative: str) -> Path:
        """A path below the folder; a `Mismatch` where it leads out of it."""
        path = Path(os.path.normpath(self.folder / relative))
        if not path.is_relative_to(os.path.normpath(self.folder)):
            raise Mismatch(f"'{relative}' lies outside the folder of the cases")
        return path

    def json(self, role: str = "case") -> dict:
        path = self.path(role)
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' is missing")
        return read_json(path)

    def tensors(self, role: str = "tensors") -> dict[str, torch.Tensor]:
        return load_file(self.path(role))

    def tolerance(self, name: str, default: float) -> float:
        value = self.entry.get("tolerance", {}).get(name, default)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default

    def picture(self, relative: str) -> Image.Image:
        return open_picture(self.inside(relative))

    def pixels(self, relative: str) -> np.ndarray:
        """An RGB picture (H, W, 3) in bytes."""
        return np.asarray(self.picture(relative).convert("RGB"))

    def part(self, data: Mapping, name: str, *roles: str) -> Path:
        """A folder that the case file names, or else the one in which a file of the case lies."""
        if name in data:
            return self.inside(data[name])
        role = next((r for r in roles if self.has(r)), None)
        if role is None:
            raise Mismatch(f"the case names no '{name}'")
        return self.path(role).parent


def same(where: str, expected: Any, got: Any) -> None:
    """Raises a `Mismatch` unless both are equal; of two lists the first difference is told."""
    if expected == got:
        return
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        pairs = enumerate(zip(expected, got, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
        told = [short(x[at]) if at < len(x) else "nothing more" for x in (expected, got)]
        raise Mismatch(
            f"{where}[{at}]: expected {told[0]}, got {told[1]} (lengths {len(expected)}, {len(got)})"
        )
    raise Mismatch(f"{where}: expected {short(expected)}, got {short(got)}")


def near(where: str, expected: Any, got: Any, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Raises a `Mismatch` unless |got - expected| <= atol + rtol * |expected| everywhere; infinities must agree."""
    a = torch.as_tensor(expected).double()
    b = torch.as_tensor(got).detach().double().cpu()
    if a.shape != b.shape:
        raise Mismatch(f"{where}: expected shape {tuple(a.shape)}, got {tuple(b.shape)}")
    off = (b - a).abs() - (atol + rtol * a.abs())
    off = torch.where((a == b) & ~a.isfinite(), torch.zeros_like(off), off)
    bad = ~(off <= 0)
    if bad.any():
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise Mismatch(
            f"{where}{list(at) if at else ''}: expected {a[at].item():.8g}, got {b[at].item():.8g} "
            f"({int(bad.sum())} of {bad.numel()} beyond {atol:g} + {rtol:g} relative)"
        )


def near_bytes(where: str, expected: np.ndarray, got: np.ndarray, most: int = 0, share: float = 1.0) -> None:
    """Raises a `Mismatch` unless two byte pictures differ by at most `most`, in at most `share` of their values."""
    if expected.shape != got.shape:
        raise Mismatch(f"{where}: expected shape {expected.shape}, got {got.shape}")
    off = np.abs(expected.astype(int) - got.astype(int))
    if off.max(initial=0) > most:
        at = tuple(int(i) for i in np.argwhere(off > most)[0])
        raise Mismatch(f"{where}{list(at)}: expected {expected[at]}, got {got[at]} (at most {most} apart)")
    if (off > 0).mean() > share:
        raise Mismatch(f"{where}: {(off > 0).mean():.2%} of the values differ; at most {share:.2%} may")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json and, as a rule, tokenizer_config.json."""
    settings = folder / "tokenizer_config.json"
    options = read_json(settings) if settings.exists() else {}
    return Tokenizer(read_text(folder / "tokenizer.json"), options, str(folder / "tokenizer.json"))


def read_vq(family: Family, file: Path, wanted: bool = True) -> torch.nn.Module:
    """An image tokenizer in float32 from a file of tensors."""
    tensors = load_file(file)
    vq = family.vq_from_shapes({name: tuple(t.shape) for name, t in tensors.items()}, torch.nn)
    if vq is None:
        raise Mismatch(f"{file.name} is not recognised as an image tokenizer of {family.title}")
    own = vq.state_dict()
    vq.load_state_dict({name: t.float() for name, t in tensors.items() if name in own})
    return vq.eval().requires_grad_(False)


def read_transformer(weights: Path, config: Path) -> Transformer:
    """A transformer in float32 from a file of tensors and its config.json."""
    sizes = TransformerConfig.from_json(read_json(config), str(config))
    transformer = Transformer(sizes)
    transformer.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
    return transformer.eval()


def stand_in(vocab_size: int) -> Transformer:
    """A transformer without weights, for what needs only a vocabulary's size and no end of positions."""
    with torch.device("meta"):
        return Transformer(TransformerConfig(vocab_size, 2, 2, 1, 1, 1, 1 << 20))


def build_model(
    family: Family, tokenizer: Tokenizer, vq: torch.nn.Module, transformer: Transformer | None = None
) -> Model:
    """A model of parts; without a transformer, one for prompts only."""
    if transformer is None:
        transformer = stand_in(max(tokenizer.names().values()) + 1)
    source = Source(Path(), {"vocab_size": transformer.config.vocab_size}, tokenizer, {}, ())
    vocabulary = family.vocabulary(source, vq.config.n_embed)
    return Model("case", family, transformer, vq, tokenizer, vocabulary)
