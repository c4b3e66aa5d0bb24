"""What a user would otherwise run: transformers' own Chameleon on the same weights, in the way upstream does it.

One token a pass through `generate`, guidance as a second pass of its own with its own growing cache, made by a logits
processor; then the grammar of the picture, top-k and temperature. Weights are shared, not copied.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from ..errors import InputError
from ..prompts import Prompt
from ..sampling import Sampling
from ..sampling.logits import guide, keep_by_entropy
from ..transformer import Transformer, TransformerConfig
from ..unirep import Vocabulary
from .measure import Passes, Peak, Run, tokens_of, tokens_to_draw

NO_VQ = {  # the smallest that builds: pictures come as tokens here
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "latent_channels": 1,
    "embed_dim": 1,
    "num_embeddings": 1,
    "resolution": 8,
}


def build(transformer: Transformer) -> ChameleonForConditionalGeneration:
    """transformers' Chameleon on the weights of `transformer`, in the same memory.

    Its own mask on image tokens goes by their names in the configuration; none is named there, so none is masked.
    """
    ours = transformer.state_dict()
    if any(name.endswith("weight_scale") for name in ours):
        raise InputError("--against transformers needs weights that are not quantised: fp32, bf16 or fp16.")
    config = _config(transformer.config)
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    device = transformer.model.norm.weight.device
    state = {}
    for name, tensor in model.state_dict().items():
        if ".vqmodel." in name:
            state[name] = torch.empty(tensor.shape, device=device)
        elif name.endswith(("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")):
            state[name] = ours[name].repeat_interleave(
                len(tensor) // len(ours[name]), 0
            )  # a row a head there
        else:
            state[name] = ours[name]
    model.load_state_dict(state, assign=True)
    _give_rotations(model, transformer.config, device)
    model.generation_config = GenerationConfig()
    return model.requires_grad_(False).eval()


def _config(c: TransformerConfig) -> ChameleonConfig:
    return ChameleonConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        max_position_embeddings=c.max_position_embeddings,
        rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_theta,
        attention_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        model_parallel_size=c.model_parallel_size,
        swin_norm=c.swin_norm,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        vq_config=NO_VQ,
        vocabulary_map={},
    )


def _give_rotations(model: nn.Module, config: TransformerConfig, device: torch.device) -> None:
    """The frequencies of the positions, which no state dict holds."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                if not name.endswith("inv_freq"):
                    raise InputError(
                        f"This version of transformers has a buffer '{name}' that is not known here."
                    )
                module.register_buffer(name, config.rope_theta**-steps, persistent=False)


class Guidance(LogitsProcessor):
    """Guidance from a pass of its own over the open picture, with a growing cache of its own."""

    def __init__(self, model: nn.Module, opened: int, scale: float):
        self.model, self.opened, self.scale = model, opened, scale
        self.cache = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        first = self.cache is None
        self.cache = DynamicCache() if first else self.cache
        tokens = input_ids[:, self.opened :] if first else input_ids[:, -1:]
        out = self.model(tokens, past_key_values=self.cache, use_cache=True)
        return guide(scores, out.logits[:, -1].float(), self.scale)


class Grammar(LogitsProcessor):
    """A row end where a row is full, a code everywhere else."""

    def __init__(self, vocabulary: Vocabulary, size: int, device: torch.device, first: int, stride: int):
        self.first, self.stride = first, stride  # index of the first code in the sequence; places a row
        self.code = torch.full((size,), float("-inf"), device=device)
        self.code[vocabulary.code_ids.to(device)] = 0
        self.row_end = torch.full((1, size), float("-inf"), device=device)
        self.row_end[0, vocabulary.row_end] = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self.first
        return self.row_end if (place + 1) % self.stride == 0 else scores + self.code


class EntropyTopK(LogitsProcessor):
    """PURE's top-k, which follows the entropy."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return keep_by_entropy(scores, self.low, self.high)


@torch.inference_mode()
def draw(
    model: ChameleonForConditionalGeneration,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    most: int | None = None,
) -> list[int]:
    """The tokens of a picture behind its sizes, row ends included; `most` stops it early.

    transformers draws from torch's global noise, which stands as before when this returns.
    """
    prefix = list(prompt.tokens)
    if prompt.open_at is None:
        opened = len(prefix)
        prefix += vocabulary.header(prompt.units)
    else:
        opened = prompt.open_at
    columns = vocabulary.codes_shape(prompt.units)[1]
    left = tokens_to_draw(vocabulary, prompt)
    device = model.device
    processors = LogitsProcessorList()
    if sampling.cfg != 1.0:
        processors.append(Guidance(model, opened, sampling.cfg))
    processors.append(Grammar(vocabulary, model.config.vocab_size, device, opened + 3, columns + 1))
    if prompt.entropy_top_k:
        processors.append(EntropyTopK(*prompt.entropy_top_k))
    hot = {"do_sample": False}
    if sampling.temperature:
        top_k = 0 if prompt.entropy_top_k else sampling.image_top_k
        hot = {"do_sample": True, "temperature": sampling.temperature, "top_k": top_k, "top_p": 1.0}
    settings = GenerationConfig(max_new_tokens=min(left, most or left), pad_token_id=0, use_cache=True, **hot)
    ids = torch.tensor([prefix], device=device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(sampling.seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=processors,
        )
    return out[0, len(prefix) :].tolist()


def measured(
    model: ChameleonForConditionalGeneration,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    most: int,
) -> Run:
    """What `draw` took; both passes of a token count. The image tokenizer is not part of it."""
    peak = Peak(model.device)
    with Passes(model, model.device, lambda *given: tokens_of(*given).shape[1] > 1) as passes:
        drawn = draw(model, vocabulary, prompt, sampling, most)
    prefill, decode = passes.prefilled - passes.start, passes.end - passes.prefilled
    return Run(passes.decoding, len(drawn), 1, prefill, decode, 0.0, peak.bytes())
