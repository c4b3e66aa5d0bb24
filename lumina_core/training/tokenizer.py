"""Small byte-level BPE tokenizers with the special names of the families, for checkpoints with few words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

MAX_UNITS = 32  # largest side that has a size token, in 32-pixel units
CONTROL = (
    "<racm3:break>",
    "<eoss>",
    "<reserved08706>",
    "<reserved08796>",
    "<reserved08797>",
    "<reserved08798>",
    "<reserved08799>",
)
BEGIN = {"mgpt1": "<s>", "mgpt2": "<|endoftext|>", "pure": "<s>"}  # 2.0 begins with its end token
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


def special_names(family: str, codes: int) -> list[str]:
    """The special tokens in id order: beginning, control, sizes, picture mark, codes."""
    sizes = [f"<reserved{8800 + n:05d}>" for n in range(1, MAX_UNITS + 1)]
    return [BEGIN[family], *CONTROL, *sizes, "<|image|>", *(code_name(family, c) for c in range(codes))]


def code_name(family: str, code: int) -> str:
    """How a family's tokenizer spells an image code."""
    if family == "mgpt2":
        return f"<MOVQGAN{code:05d}>"
    return f"IMGIMG{str(code).translate(_LETTERS)}Z"


def train_tokenizer(corpus: Iterable[str], words: int, specials: Sequence[str]) -> str:
    """The text of a `tokenizer.json`: at most `words` byte-level BPE tokens of a corpus, then the special names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return tokenizer.to_str()


def tokenizer_config(family: str) -> str:
    """The text of the `tokenizer_config.json` beside it; 2.0's has no beginning token, as upstream."""
    name = BEGIN[family]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if family == "mgpt2" else name,
        "eos_token": name if family == "mgpt2" else "<reserved08706>",
        "pad_token": name,
    }
    return json.dumps(config, indent=1) + "\n"
