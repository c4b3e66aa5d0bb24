"""Window decoding: several drafts are verified in one pass, in two lossless ways.

A pass is fed the newest token and the drafts behind it, and gives the scores of every place of the window. Places are
accepted from the front as long as the drafts before them held, so what is accepted was drawn in its true context.
Row ends and kept codes stand in the window as drafts that always hold. Each picture of a batch moves at its own pace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..unirep import Vocabulary
from .contexts import Contexts
from .events import Event, RowFinished, Sampling
from .logits import draw, gumbel, rekey, uniform
from .pace import Pace
from .painter import Painter

if TYPE_CHECKING:
    from ..prompts import Prompt

NOISE_KEPT = 1 << 22  # numbers of noise that a batch may keep, 16 MB


def painter_of(
    contexts: Contexts,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    pictures: range,
    shape: tuple[int, int],
) -> Painter:
    """The painter of the decoding mode that `sampling` asks for."""
    kind = {"ar": Painter, "jacobi": Jacobi, "coupled": Coupled}[sampling.decode]
    return kind(contexts, vocabulary, prompt, sampling, pictures, shape)


class WindowPainter(Painter):
    """What the window modes share: the line of codes and drafts, the pass, the count of what was accepted.

    `line` (pictures, places) holds codes, accepted ones in front and drafts behind; a row end is code number `row_end`.
    """

    def paint(self) -> Iterator[Event]:
        """As `Painter.paint`, in fewer passes."""
        pace = Pace.of(self.contexts, self.sampling)
        least = most = self.open_line()
        count = torch.full((len(self.line),), least, device=self.contexts.device)  # accepted, of each picture
        rows = self.codes.shape[1]
        while least < self.places - 1:  # the last place is a row end
            left = self.places - least
            with pace.timed() as window:
                # a recorded pass has its width; elsewhere a pass need not go beyond the end
                width = window if self.contexts.graphs is not None else min(window, left)
                count = (count + self.step(count, width, most)).clamp(max=self.places)
                counts = count.tolist()
            # the first row has no row above to draft from, and at the end there is less left than a window holds
            usual = least >= self.stride and left > window
            pace.note(min(counts) - least, usual)
            least, most = min(counts), max(counts)
            yield self.progress(least)
            if rows < least // self.stride:
                self.finite.check()
            while rows < least // self.stride:
                rows += 1
                self.codes = self.grid(rows)
                yield RowFinished(self.codes, self.shape)
        self.finite.check()
        if rows < self.shape[0]:
            self.codes = self.grid(self.shape[0])
            yield RowFinished(self.codes, self.shape)
        self.contexts.move(self.places - 2 - self.given)
        self.tail = self.ids[self.line[:, -2:]]
        yield self.progress(self.places + 1)

    def open_line(self) -> int:
        """Makes `line`, and gives how many places are accepted: those given, and one drawn from the prefill's state."""
        device = self.contexts.device
        self.row_end = len(self.code_ids)
        self.ids = torch.cat([self.code_ids, torch.tensor([self.vocabulary.row_end], device=device)])
        kept = self.codes.new_full((len(self.pictures), *self.shape), -1) if self.kept is None else self.kept
        # (pictures, places): what is set instead of drawn, row ends among it; -1 elsewhere
        self.fixed = F.pad(kept, (0, 1), value=self.row_end).flatten(1)
        noise = self.noise(slice(self.given, self.given + 1))[:, 0]
        code = draw(self.allowed(self.hidden, self.given), self.sampling.temperature, noise)
        self.line = code[:, None].repeat(1, self.places)  # the first draft everywhere
        rows = self.codes.shape[1]
        whole = rows * self.stride
        self.line[:, :whole].unflatten(1, (rows, self.stride))[:, :, :-1] = self.codes
        self.line[:, whole : self.given] = self.begun
        self.line = torch.where(self.fixed < 0, self.line, self.fixed)
        self.drafted = torch.full((len(self.line), 1), self.given + 1, device=device)
        return self.given + 1

    def step(self, count: torch.Tensor, window: int, most: int) -> torch.Tensor:
        """One pass: refines `line`; gives the places accepted (pictures,), from 1 to `window`."""
        newest, steps = count - 1, torch.arange(window, device=count.device)
        seen = (count[:, None] + steps).clamp(max=self.places - 1)  # the places whose scores the pass gives
        free = self.fixed.gather(1, seen) < 0
        drafts = self.drafts(seen, free)
        fed = torch.cat([self.line.gather(1, newest[:, None]), drafts[:, :-1]], 1)
        hidden = self.contexts.peek(self.ids[fed], newest - self.given, most - 1 - self.given)
        codes, held = self.verify(self.allowed(hidden, seen), seen, drafts)
        self.line.scatter_(1, seen, torch.where(free, codes, drafts))
        accepted = 1 + (held | ~free)[:, :-1].long().cumprod(1).sum(1)
        self.shift(accepted)
        return accepted

    def drafts(self, places: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """What stands at places (pictures, window); those that enter the window get their first draft."""
        fresh = (places >= self.drafted) & free
        self.drafted = torch.maximum(self.drafted, places[:, -1:] + 1)
        return torch.where(fresh, self.first_drafts(places), self.line.gather(1, places))

    def first_drafts(self, places: torch.Tensor) -> torch.Tensor:
        """A first draft for each place: the code above, in the first row the picture's first code."""
        return self.line.gather(1, (places - self.stride).clamp(min=0))

    def verify(
        self, scores: torch.Tensor, places: torch.Tensor, drafts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (pictures, window) of the places, and whether each draft held."""
        raise TypeError("a window mode says how it verifies")

    def shift(self, accepted: torch.Tensor) -> None:
        """Told by how many places the window moves on."""

    def keys_of(self, places: torch.Tensor) -> torch.Tensor:
        """Noise keys (pictures, window, 2) of places."""
        return self.keys.gather(1, (places - self.given)[..., None].expand(-1, -1, 2))

    def grid(self, rows: int) -> torch.Tensor:
        """Codes (pictures, rows, w) of the first rows of the line."""
        return self.line[:, : rows * self.stride].unflatten(1, (rows, self.stride))[:, :, :-1]


class Jacobi(WindowPainter):
    """Seed-exact: a draft holds if it is what plain decoding would draw there, with the noise of its place.

    With fixed noise drawing is a function of the context, and Jacobi iteration has plain decoding's picture as its
    only fixed point. Source: Wiggers & Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models", 2020.
    """

    def open_line(self) -> int:
        self.all_noise: torch.Tensor | None = None  # (pictures, places still to draw, codes)
        if self.sampling.temperature and self.keys.shape[:2].numel() * len(self.code_ids) <= NOISE_KEPT:
            self.all_noise = gumbel(self.keys, len(self.code_ids))
            pictures, places = self.keys.shape[:2]
            self.firsts = torch.arange(pictures, device=self.keys.device)[:, None] * places
        return super().open_line()

    def verify(
        self, scores: torch.Tensor, places: torch.Tensor, drafts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes = draw(scores, self.sampling.temperature, self.noise_of(places))
        return codes, codes == drafts

    def noise_of(self, places: torch.Tensor) -> torch.Tensor | None:
        """Noise (pictures, window, codes) of places; computed once where a picture's noise is small."""
        if self.sampling.temperature == 0:
            return None
        if self.all_noise is None:
            return gumbel(self.keys_of(places), len(self.code_ids))
        return F.embedding(self.firsts + places - self.given, self.all_noise.flatten(0, 1))


class Coupled(WindowPainter):
    """Speculative Jacobi with maximal coupling: another picture than plain decoding draws, of the same distribution.

    A draft x, drawn from q, holds with probability min(1, p(x) / q(x)), else it is redrawn from the rest of p above
    q. That is done at every place of the window, so drafts behind the first refusal follow the p of this pass, which
    is the q of the next. Sources: arXiv 2410.01699 (speculative Jacobi), 2510.24211 (coupling).
    """

    def open_line(self) -> int:
        self.passes = 0
        self.q: torch.Tensor | None = None  # (pictures, window, codes), what the drafts were drawn from
        return super().open_line()

    def first_drafts(self, places: torch.Tensor) -> torch.Tensor:
        """A first draft for each place, from the uniform distribution."""
        codes = len(self.code_ids)
        u = uniform(rekey(self.keys_of(places), -1), 1)[..., 0]
        return (u * codes).long().clamp(max=codes - 1)

    def verify(
        self, scores: torch.Tensor, places: torch.Tensor, drafts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.sampling.temperature == 0:
            p = torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
        else:
            p = (scores / self.sampling.temperature).softmax(-1)
        q = torch.full_like(p, 1 / p.shape[-1]) if self.q is None else self.q[:, : p.shape[1]]
        self.passes += 1
        keys = rekey(self.keys_of(places), self.passes)  # new noise in every pass
        draft = drafts.clamp(max=p.shape[-1] - 1)[..., None]
        accept = uniform(rekey(keys, 0), 1) * q.gather(-1, draft) < p.gather(-1, draft)
        rest = (p - q).clamp(min=0).log() + gumbel(keys, p.shape[-1])
        self.p = p
        return torch.where(accept, draft, rest.argmax(-1, keepdim=True))[..., 0], accept[..., 0]

    def shift(self, accepted: torch.Tensor) -> None:
        window = self.p.shape[1]
        moved = accepted[:, None] + torch.arange(window, device=accepted.device)
        kept = self.p.gather(1, moved.clamp(max=window - 1)[..., None].expand_as(self.p))
        self.q = torch.where((moved < window)[..., None], kept, 1 / self.p.shape[-1])
