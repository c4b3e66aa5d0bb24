"""From scores to a code or token: guidance, top-k, temperature, draw. Pure functions on float32 tensors.

Order, as upstream: guidance, constraint (the caller passes only the scores that may be drawn), top-k, temperature.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_WORD = (1 << 64) - 1


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on raw scores."""
    return uncond + scale * (cond - uncond)


def keep_top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Scores below the k-th largest of their row become -inf; ties with it stay. k of 0 or less keeps all."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores
    best = scores.topk(k, dim=-1, sorted=False).values  # sorting them would cost more than the rest
    return scores.masked_fill(scores < best.amin(-1, keepdim=True), float("-inf"))


def entropy(scores: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, (...), of softmax(scores) over the last dimension; -inf scores count nothing."""
    p = scores.softmax(-1)
    return -(p * torch.log(p + 1e-10)).sum(-1)


def top_k_of_entropy(nats: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """How many scores PURE keeps where the entropy is so high: a logistic curve from `low` to `high`, int64."""
    wide = torch.float32 if nats.device.type == "mps" else torch.float64
    curve = low + (high - low) / (1 + torch.exp(5 - nats.to(wide).clamp(0, 10)))
    return curve.round().long().clamp(low, high)  # in whole numbers: a nan would stay one, and be no index


def keep_by_entropy(scores: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """`keep_top` with each row's own k from its own entropy. Source: upstream PURE's image top-k."""
    k = top_k_of_entropy(entropy(scores), low, high).clamp(max=scores.shape[-1])
    best = scores.topk(min(high, scores.shape[-1]), dim=-1).values
    threshold = best.gather(-1, k[..., None] - 1)
    return scores.masked_fill(scores < threshold, float("-inf"))


def decayed(scale: float, after_start: int, units: tuple[int, int]) -> float:
    """Upstream 2.0's guidance scale of the next token, from the one before it; never below 4.

    `after_start` ids stand after the image start. The divisor takes the (height, width) in grid units for half of
    the codes a side; it is a quarter of their number, so the scale is down at 4 after a few tokens.
    """
    return max(4.0, scale * (1 - after_start / (2 * units[0] * 2 * units[1])))


def draw(scores: torch.Tensor, temperature: float, noise: torch.Tensor | None) -> torch.Tensor:
    """Index drawn from softmax(scores / temperature) by the Gumbel trick; the largest score at temperature 0."""
    if temperature == 0 or noise is None:
        return scores.argmax(-1)
    return (scores / temperature + noise).argmax(-1)


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words that name the noise of one position (splitmix64, Steele et al. 2014)."""
    x = ((seed & _WORD) * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    x ^= x >> 31
    return x & _MASK, x >> 32


def _mix(x: torch.Tensor) -> torch.Tensor:
    # A 32-bit integer hash, in place; products wrap, and a mask makes the signed shift a logical one.
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x45D9F3B3
    x ^= (x >> 16) & 0xFFFF
    return x


def rekey(keys: torch.Tensor, stream: int) -> torch.Tensor:
    """Keys (..., 2) of another stream of noise at the same places."""
    first, second = noise_key(stream, 0)  # as numbers: a tensor of them would have a graphics card wait
    mixed = torch.stack([keys[..., 0] ^ first, keys[..., 1] ^ second], -1)
    return _mix(mixed.to(torch.int32)).long() & _MASK


def uniform(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform noise (..., count), above 0 and below 1, for keys (..., 2): a function of key and index alone.

    A counter-based generator, as Philox is (Salmon et al. 2011): noise of a position needs no history, so it does not
    depend on batch, order or decoding mode, and is the same on every device.
    """
    keys = keys.to(torch.int32)  # the low 32 bits
    index = torch.arange(count, device=keys.device, dtype=torch.int32) * 0x3C6EF373
    x = _mix(index + keys[..., :1])
    x = _mix(x ^ keys[..., 1:])
    # Small values keep full float32 precision; as noise for a draw they are the ones that win.
    return (((x.long() & _MASK).float() + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)


def gumbel(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Gumbel noise (..., count) for keys (..., 2)."""
    return uniform(keys, count).neg_().log1p_().neg_().log_().neg_()
