"""The Chameleon decoder: Llama-like, per-head q/k LayerNorm, optional swin norm; built from injected `ops`.

Names of parameters are those of the released files. Source: arXiv 2405.09818, upstream `model/modeling_chameleon.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .cache import KVCache
from .errors import CheckpointError
from .fused import lay_together, multiply, product, products, side_by_side
from .norms import HeadNorm, RMSNorm, head_norm

LARGEST, MOST_LAYERS = 1 << 24, 512  # far beyond any checkpoint: what a configuration may ask for
BETWEEN = {"rms_norm_eps": (0.0, 1.0), "rope_theta": (1.0, 1e12), "dropout": (0.0, 1.0)}
ROTARY_STEP = 4096  # positions that the rotary tables grow by


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants; field names are those of `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    model_parallel_size: int = 1
    swin_norm: bool = False
    dropout: float = 0.0
    mask_image_logits: bool = False  # codes cannot be drawn: the checkpoint writes text only

    @classmethod
    def from_json(cls, config: Mapping, source: str = "config.json") -> TransformerConfig:
        """Reads the fields from a parsed `config.json`; a missing or odd one is a `CheckpointError` naming it."""
        values = {}
        for name, field in cls.__dataclass_fields__.items():
            value = config.get(name)
            if value is None and name == "num_key_value_heads":
                value = config.get("num_attention_heads")
            if value is None:
                if field.default is field.default_factory:
                    raise CheckpointError(f"{source} lacks '{name}', which a Lumina-mGPT checkpoint has.")
                continue
            kind = {"int": int, "float": (int, float), "bool": bool}[field.type]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise CheckpointError(f"{source}: '{name}' is {value!r}; a {field.type} is expected.")
            low, high = BETWEEN.get(name, (1, MOST_LAYERS if name == "num_hidden_layers" else LARGEST))
            if kind is not bool and not low <= value <= high:
                raise CheckpointError(f"{source}: '{name}' is {value!r}; it may be from {low} to {high}.")
            values[name] = value
        return cls(**values)

    def __post_init__(self):
        heads, kv, shards = self.num_attention_heads, self.num_key_value_heads, self.model_parallel_size
        if self.hidden_size % heads or self.head_dim % 2 or heads % kv or heads % shards or kv % shards:
            raise CheckpointError(
                f"The transformer sizes do not fit together: hidden_size {self.hidden_size}, {heads} heads, "
                f"{kv} key-value heads, model_parallel_size {shards}."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Rotary:
    """Rotary angles of positions, looked up in tables that are computed once in float32 and grow as they must."""

    def __init__(self, head_dim: int, theta: float):
        self.head_dim, self.theta = head_dim, theta
        self.tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def __call__(
        self, positions: torch.Tensor, length: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin (n, 1, head_dim) of positions (n,) below `length`, for `rotate`."""
        key = (positions.device, dtype)
        table = self.tables.get(key)
        if table is None or len(table) < length:
            table = self.tables[key] = self._table(-(-length // ROTARY_STEP) * ROTARY_STEP, *key)
        return table.index_select(0, positions).unbind(1)

    def _table(self, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """(length, 2, 1, head_dim)."""
        with torch.inference_mode(False), torch.no_grad():  # the same table serves training
            steps = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32)
            places = torch.arange(length, device=device, dtype=torch.float32)
            angles = places[:, None] * self.theta ** (-steps / self.head_dim)
            cos, sin = angles.cos(), angles.sin()
            table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
            return table[:, :, None].to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + d/2) of the last dimension; the first half of `sin` is negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@dataclass(frozen=True)
class Reach:
    """Where a pass of R rows of T tokens writes and what it sees: shared by all layers."""

    tokens: tuple[int, int]  # R, T
    cos: torch.Tensor
    sin: torch.Tensor
    cache: KVCache | None
    rows: slice  # rows of the cache that take part
    places: torch.Tensor | None  # where the cache is written (R * T,)
    length: int  # keys looked at
    mask: torch.Tensor | None  # (R, 1, T, length), added to the scores; None: plain causal


class Attention(nn.Module):
    """The weights of attention; see `Parts`."""

    def __init__(self, cfg: TransformerConfig, ops, **where):
        super().__init__()
        d, heads, kv, bias = (
            cfg.head_dim,
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.attention_bias,
        )
        self.heads, self.kv_heads = heads, kv
        self.q_proj = ops.Linear(cfg.hidden_size, heads * d, bias=bias, **where)
        self.k_proj = ops.Linear(cfg.hidden_size, kv * d, bias=bias, **where)
        self.v_proj = ops.Linear(cfg.hidden_size, kv * d, bias=bias, **where)
        self.o_proj = ops.Linear(heads * d, cfg.hidden_size, bias=bias, **where)
        self.q_norm = HeadNorm(cfg.model_parallel_size, heads, d, **where)
        self.k_norm = HeadNorm(cfg.model_parallel_size, kv, d, **where)

    def norms(self, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias (heads + kv_heads, head_dim), float32, of the norm of queries and keys side by side."""

        def one_a_head(norm: HeadNorm, leaf: str) -> torch.Tensor:
            return getattr(norm, leaf).to(device, torch.float32).repeat_interleave(norm.repeat, 0)

        both = (self.q_norm, self.k_norm)
        return tuple(torch.cat([one_a_head(norm, leaf) for norm in both]) for leaf in ("weight", "bias"))


class MLP(nn.Module):
    """The weights of the gated MLP; see `Parts`."""

    def __init__(self, cfg: TransformerConfig, ops, **where):
        super().__init__()
        self.gate_proj = ops.Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias, **where)
        self.up_proj = ops.Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias, **where)
        self.down_proj = ops.Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.mlp_bias, **where)


class Parts:
    """A layer ready to compute: what its modules hold, looked up once and not again in every pass.

    Attention and MLP of states (R * T, hidden) with residuals; the norms stand before each branch, or behind it with
    `swin_norm`. Right as long as no weight is moved, patched or replaced; layers that are not plain are called as they
    are.
    """

    def __init__(self, layer: Layer, device, dtype: torch.dtype):
        a, m = layer.self_attn, layer.mlp
        self.first_norm = layer.input_layernorm.ready(device, dtype)
        self.second_norm = layer.post_attention_layernorm.ready(device, dtype)
        self.head_weight, self.head_bias = a.norms(device)
        self.heads, self.kv_heads, self.head_dim = a.heads, a.kv_heads, self.head_weight.shape[1]
        self.qkv = side_by_side([a.q_proj, a.k_proj, a.v_proj], device)
        self.out, self.down = product(a.o_proj, device), product(m.down_proj, device)
        self.gate_up = products([m.gate_proj, m.up_proj], device)
        self.swin_norm, self.dropout = layer.swin_norm, layer.dropout if layer.training else 0.0

    def __call__(self, x: torch.Tensor, layer: int, reach: Reach) -> torch.Tensor:
        if self.swin_norm:
            x = x + self.drop(self.first_norm(self.attention(x, layer, reach)))
            return x + self.drop(self.second_norm(self.mlp(x)))
        x = x + self.drop(self.attention(self.first_norm(x), layer, reach))
        return x + self.drop(self.mlp(self.second_norm(x)))

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout) if self.dropout else x

    def attention(self, x: torch.Tensor, layer: int, reach: Reach) -> torch.Tensor:
        both = self.heads + self.kv_heads
        qk, v = self.qkv(x).view(len(x), -1, self.head_dim).split_with_sizes([both, self.kv_heads], 1)
        qk = rotate(head_norm(qk, self.head_weight, self.head_bias), reach.cos, reach.sin)
        q, k = qk.split_with_sizes([self.heads, self.kv_heads], 1)
        q = q.view(*reach.tokens, self.heads, self.head_dim)
        if reach.cache is None:
            k, v = (z.view(*reach.tokens, self.kv_heads, self.head_dim) for z in (k, v))
        else:
            reach.cache.write(layer, reach.places, k, v)
            k, v = reach.cache.read(layer, reach.rows, reach.length)
        if self.heads != self.kv_heads:
            k, v = (z.repeat_interleave(self.heads // self.kv_heads, 2) for z in (k, v))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=reach.mask,
            is_causal=reach.mask is None,
        )
        return self.out(out.transpose(1, 2).reshape(len(x), -1))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention, MLP and their norms; see `Parts` for what it computes."""

    def __init__(self, cfg: TransformerConfig, ops, **where):
        super().__init__()
        self.self_attn = Attention(cfg, ops, **where)
        self.mlp = MLP(cfg, ops, **where)
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, **where)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, **where)
        self.swin_norm, self.dropout = cfg.swin_norm, cfg.dropout

    def forward(self, x: torch.Tensor, layer: int, reach: Reach) -> torch.Tensor:
        return Parts(self, x.device, x.dtype)(x, layer, reach)


class Ready(NamedTuple):
    """All layers and the norm behind them, ready to compute."""

    layers: Sequence[Parts]
    norm: Callable[[torch.Tensor], torch.Tensor]


class Body(nn.Module):
    def __init__(self, cfg: TransformerConfig, ops, **where):
        super().__init__()
        self.embed_tokens = ops.Embedding(cfg.vocab_size, cfg.hidden_size, **where)
        self.layers = nn.ModuleList(Layer(cfg, ops, **where) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, **where)


class Transformer(nn.Module):
    """Tokens (R, T) to hidden states (R, T, hidden), and hidden states to float32 scores."""

    def __init__(self, config: TransformerConfig, ops=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        # called before each layer; what it raises ends the pass
        self.poll: Callable[[], object] | None = None
        self.rotary = Rotary(config.head_dim, config.rope_theta)
        self.model = Body(config, ops, dtype=dtype, device=device)
        self.lm_head = ops.Linear(
            config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device
        )

    def lay_weights_together(self) -> None:
        """Places weights that are multiplied with the same input one behind the other, for one product; see `fused`."""
        for layer in self.model.layers:
            a, m = layer.self_attn, layer.mlp
            lay_together([a.q_proj, a.k_proj, a.v_proj])
            lay_together([m.gate_proj, m.up_proj])

    def parts(self, device) -> Ready:
        """All is ready to compute on a device, for passes between which no weight is moved, patched or replaced."""
        where = (device, self.model.embed_tokens.weight.dtype)
        return Ready([Parts(layer, *where) for layer in self.model.layers], self.model.norm.ready(*where))

    def new_cache(self, rows: int, capacity: int, device, dtype: torch.dtype) -> KVCache:
        c = self.config
        return KVCache(
            c.num_hidden_layers, rows, capacity, c.num_key_value_heads, c.head_dim, device=device, dtype=dtype
        )

    def cache_nbytes(self, rows: int, capacity: int, dtype: torch.dtype) -> int:
        c = self.config
        return KVCache.nbytes(c.num_hidden_layers, rows, capacity, c.num_key_value_heads, c.head_dim, dtype)

    def forward(
        self,
        tokens: torch.Tensor,
        start: torch.Tensor | int = 0,
        cache: KVCache | None = None,
        rows: slice = slice(None),
        length: int | None = None,
        parts: Ready | None = None,
    ) -> torch.Tensor:
        """Hidden states (R, T, hidden) after the final norm.

        Row r's tokens stand at positions start[r], start[r] + 1, ... With a cache their keys are written there, and
        each sees the row's keys at positions up to its own; `length` bounds the keys looked at (all rows' last
        position plus one, given by the caller so that no device has to be asked). `parts` come from a
        caller that makes many passes.
        """
        r, t = tokens.shape
        steps = torch.arange(t, device=tokens.device) if cache is None else cache.steps[:t]
        if isinstance(start, int):
            positions = (start + steps).expand(r, t)
            fresh = start == 0
            length = max(start + t, length or 0)
        else:
            positions, fresh = start[:, None] + steps, False
        if cache is not None and length is None:
            raise ValueError("with a cache and per-row starts, length must be given")
        x = self.model.embed_tokens(tokens).flatten(0, 1)
        mask = None
        if not fresh:  # a fresh prefill is plain causal, which has faster kernels
            keys = torch.arange(length, device=tokens.device) if cache is None else cache.steps[:length]
            hidden = keys > positions[:, None, :, None]
            mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device)
            mask.masked_fill_(hidden, float("-inf"))
        places = None if cache is None else cache.places(rows, positions)
        cos, sin = self.rotary(positions.flatten(), length, x.dtype)
        reach = Reach((r, t), cos, sin, cache, rows, places, t if fresh else length, mask)
        layers, norm = parts or (self.model.layers, self.model.norm)
        for i, layer in enumerate(layers):
            if self.poll is not None:
                self.poll()
            x = layer(x, i, reach)
        return norm(x).view(r, t, -1)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 scores (..., V) of hidden states."""
        return self.lm_head(hidden).float()

    def head(self, ids: torch.Tensor, device, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """What computes the float32 scores (..., len(ids)) of some tokens alone, of hidden states (..., hidden).

        Right as long as the weight is not moved, patched or replaced.
        """
        computed = multiply(self._head_rows(ids, device, dtype), self.lm_head)
        return lambda hidden: computed(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1]).float()

    def _head_rows(self, ids: torch.Tensor, device, dtype: torch.dtype) -> torch.Tensor:
        """The rows of the output head for `ids`; a view when the ids are consecutive."""
        weight = self.lm_head.weight
        # a host's patches, put off until the weight is used
        for patch in getattr(self.lm_head, "weight_function", ()):
            weight = patch(weight.to(device, dtype, copy=True))
        first, last = int(ids[0]), int(ids[-1])
        if last - first + 1 == len(ids) and bool((ids[1:] > ids[:-1]).all()):
            return weight[first : last + 1].to(device, dtype)
        return weight[ids.to(weight.device)].to(device, dtype)
