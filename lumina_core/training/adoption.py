"""A transformer that begins with another checkpoint's weights, of its own family or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..families import Model
from ..transformer import Transformer
from ..unirep import Vocabulary
from .dataset import CHUNK, Pool, picture_codes
from .examples import example
from .looking import LookBack, look_back, looks_back
from .sequences import Language

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
SEEN = 1200  # examples that tell which codes of two image tokenizers show the same


def same(part: str, mine: nn.Module, theirs: nn.Module) -> None:
    """Raises an `InputError` where a part of a checkpoint to start from has other shapes than the recipe."""
    own = mine.state_dict()
    for key, value in theirs.state_dict().items():
        _fitting(part, key, value, own)


def _fitting(part: str, key: str, value: torch.Tensor, mine: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The recipe's tensor that a tensor of the checkpoint to start from is for, of the same shape."""
    if key not in mine or mine[key].shape != value.shape:
        seen = tuple(mine[key].shape) if key in mine else "no such tensor"
        raise InputError(
            f"--start-from: '{key}' of the {part} has shape {tuple(value.shape)}; the recipe has {seen}."
        )
    return mine[key]


@torch.no_grad()
def adopt(
    transformer: Transformer,
    language: Language,
    earlier: Model,
    looking: Sequence[LookBack] = (),
    codes: torch.Tensor | None = None,
) -> None:
    """Takes over an earlier transformer's weights.

    Rows of tokens go by name, a new word is the mean of its pieces. `codes` (codes, earlier's codes) is given where the
    image tokenizers differ: how much of each earlier code stands in a new one (`codes_in`). A norm that the earlier
    heads shared is given to each; heads `looking` back replace what stood there.
    """
    mine, theirs = transformer.state_dict(), earlier.transformer.state_dict()
    own, shared = (t.config.model_parallel_size for t in (transformer, earlier.transformer))
    fresh = {key: value.clone() for key, value in mine.items() if "self_attn" in key}
    for key, value in theirs.items():
        if key in TABLES:
            continue
        if "_norm." in key and value.ndim == 2 and own % shared == 0:
            value = value.repeat_interleave(own // shared, 0)
        _fitting("transformer", key, value, mine).copy_(value)
    for token, rows in _matched(language, earlier, by_role=codes is not None):
        for key in TABLES:
            mine[key][token] = theirs[key][rows].mean(0)
    if codes is not None:
        known = earlier.vocabulary.code_ids
        for key in TABLES:
            mine[key][language.vocabulary.code_ids] = codes @ theirs[key][known].to(codes.dtype)
    if own > shared or codes is not None:
        _turn_heads(transformer, looking, fresh)


def _matched(language: Language, earlier: Model, by_role: bool) -> Iterator[tuple[int, list[int]]]:
    """Every token with the earlier checkpoint's tokens that it stands for; codes only where they go by name."""
    known, tokenizer = earlier.tokenizer.names(), language.tokenizer
    roles = dict(_roles(language.vocabulary, earlier.vocabulary)) if by_role else {}
    codes = set(language.vocabulary.code_ids.tolist()) if by_role else ()
    for name, token in tokenizer.names().items():
        if token in codes:
            continue
        if token in roles:
            rows = [roles[token]]
        else:
            rows = [known[name]] if name in known else earlier.tokenizer.encode(tokenizer.decode([token]))
        if rows:
            yield token, rows


def _roles(mine: Vocabulary, theirs: Vocabulary) -> Iterator[tuple[int, int]]:
    """Control tokens of two families that do the same; sizes meet where as many codes stand in a row."""
    for role in ("bos", "separator", "image_start", "image_end", "row_end", "placeholder"):
        yield getattr(mine, role), getattr(theirs, role)
    for units, token in mine.grid.items():
        at = theirs.grid.get(units * mine.latents_per_unit // theirs.latents_per_unit)
        if at is not None:
            yield token, at


def _turn_heads(transformer: Transformer, wanted: Sequence[LookBack], fresh: dict) -> None:
    """Turns heads to where they are to look; those that begin or cease to look back are new in every other way."""
    size, looking = transformer.config.head_dim, {(look.layer, look.head) for look in wanted}
    for number, layer in enumerate(transformer.model.layers):
        attention, key = layer.self_attn, f"model.layers.{number}.self_attn"
        for head in range(attention.heads):
            if looks_back(attention, head) == ((number, head) in looking):
                continue
            part = slice(head * size, (head + 1) * size)
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(attention, name).weight[part] = fresh[f"{key}.{name}.weight"][part]
            attention.o_proj.weight[:, part] = fresh[f"{key}.o_proj.weight"][:, part]
            for norm in (attention.q_norm, attention.k_norm):
                norm.weight[head], norm.bias[head] = 1.0, 0.0
    for look in wanted:
        look_back(transformer, look)


@torch.inference_mode()
def codes_in(
    earlier: Model, vq: nn.Module, vocabulary: Vocabulary, pools: Iterable[Pool], count: int = SEEN
) -> torch.Tensor:
    """How much of each code of an earlier checkpoint stands in each of `vq`'s, (codes, earlier's codes), rows sum to 1.

    Both image tokenizers see the same examples, each at the size at which it makes as many codes.
    """
    ratio = vocabulary.latents_per_unit / earlier.vocabulary.latents_per_unit
    shape = (len(vocabulary.code_ids), len(earlier.vocabulary.code_ids))
    meetings = torch.zeros(shape[0] * shape[1], dtype=torch.int64)
    kinds = dict(reversed(list(pools)))  # each at the size named first
    for kind, size in kinds.items():
        smaller = tuple(int(side * ratio) for side in size)
        for first in range(0, max(count // len(kinds), 1), CHUNK):
            numbers = range(first, first + CHUNK)
            here, there = (_codes_of(v, kind, numbers, s) for v, s in ((vq, size), (earlier.vq, smaller)))
            meetings += torch.bincount(here * shape[1] + there, minlength=len(meetings))
    table = meetings.view(shape)
    table[table.sum(1) == 0] = table.sum(0)  # a code that was not seen begins as the mean
    return table / table.sum(1, keepdim=True)


def _codes_of(vq: nn.Module, kind: str, numbers: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
    """Codes (n,) of all pictures of some examples, one behind the other."""
    pictures: list[np.ndarray] = []
    for n in numbers:
        e = example(kind, "train", n, size)
        pictures += (*e.given, *e.drawn)
    codes = picture_codes(vq, pictures)
    return torch.cat([codes[p.tobytes()].flatten() for p in pictures])
