"""A small byte-level BPE tokenizer with the special names of Lumina-mGPT 2.0, for checkpoints with few words."""

from __future__ import annotations

import json
from collections.abc import Iterable

MAX_UNITS = 32  # largest side that has a size token, in 32-pixel units
END = "<|endoftext|>"


def special_names(codes: int) -> list[str]:
    """The special tokens in id order: end, control, sizes, picture mark, codes."""
    control = [
        "<racm3:break>",
        "<eoss>",
        "<reserved08706>",
        "<reserved08796>",
        "<reserved08797>",
        "<reserved08798>",
    ]
    sizes = [f"<reserved{8800 + n:05d}>" for n in range(1, MAX_UNITS + 1)]
    return [
        END,
        *control,
        "<reserved08799>",
        *sizes,
        "<|image|>",
        *(f"<MOVQGAN{c:05d}>" for c in range(codes)),
    ]


def train_tokenizer(corpus: Iterable[str], words: int, codes: int) -> str:
    """The text of a `tokenizer.json`: at most `words` byte-level BPE tokens of a corpus, then specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in special_names(codes)]
    )
    return tokenizer.to_str()


def tokenizer_config() -> str:
    """The text of the `tokenizer_config.json` beside it; as upstream's, it has no beginning token."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
    }
    return json.dumps(config, indent=1) + "\n"
