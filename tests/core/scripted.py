"""A stand-in for a transformer that says what a script says, and the small vocabulary it speaks."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from lumina_core import PictureFinished, Sampling, TextPiece, generate
from lumina_core.cache import KVCache
from lumina_core.prompts import Prompt
from lumina_core.unirep import Vocabulary

GREEDY = Sampling(cfg=1.0, temperature=0.0, image_top_k=0, text_top_k=0, decode="ar")
V = Vocabulary(
    bos=0,
    separator=1,
    separator_name="<sep>",
    image_start=2,
    image_end=3,
    row_end=4,
    placeholder=5,
    grid={n: 10 + n for n in range(1, 9)},
    code_ids=torch.arange(30, 46),
    latents_per_unit=2,
)
SIZE = 60
PROMPT = Prompt("mgpt1", "case", (0, 50, 51, 1), "text_then_image")
CODES = torch.arange(4).view(2, 2)
SMALL = V.encode(CODES)  # a 32x32 picture: 10 tokens
WIDE = V.encode(torch.arange(8).view(2, 4))


class Scripted:
    """Stands for a transformer that says `answer` behind the prompt, and keeps what it was fed."""

    def __init__(self, answer, prompt=PROMPT, positions=256, masked=False):
        self.config = SimpleNamespace(
            max_position_embeddings=positions, vocab_size=SIZE, mask_image_logits=masked
        )
        self.model = SimpleNamespace(
            embed_tokens=SimpleNamespace(weight=torch.zeros(1)), norm=SimpleNamespace(weight=torch.zeros(1))
        )
        self.next = [*prompt.tokens, *answer, *[SIZE - 1] * positions]
        self.fed: list[tuple[int, int, list[int]]] = []  # row, first position, tokens

    def new_cache(self, rows, capacity, device, dtype):
        return KVCache(1, rows, capacity, 1, 1, device=device, dtype=dtype)

    def cache_nbytes(self, rows, capacity, dtype):
        return KVCache.nbytes(1, rows, capacity, 1, 1, dtype)

    def parts(self, device):
        return None

    def __call__(self, tokens, start=0, cache=None, rows=slice(None), length=None, parts=None):
        first = rows.start or 0
        starts = [start] * len(tokens) if isinstance(start, int) else start.tolist()
        self.fed += [(first + r, starts[r], tokens[r].tolist()) for r in range(len(tokens))]
        ahead = [[self.next[s + i + 1] for i in range(tokens.shape[1])] for s in starts]
        return F.one_hot(torch.tensor(ahead), SIZE).float() * 9

    def scores(self, hidden):
        return hidden

    def head(self, ids, device, dtype):
        return lambda hidden: hidden[..., ids]


def answer(script, sampling=GREEDY, prompt=PROMPT, **options):
    said = Scripted(script, prompt, **options)
    events = list(generate(said, V, prompt, sampling))
    return said, events


def drawn(events):
    return [e.grid.codes for e in events if isinstance(e, PictureFinished)]


def words(events):
    return [t for e in events if isinstance(e, TextPiece) for t in e.tokens]
