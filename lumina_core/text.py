"""Tokenizer file to ids and back. Uses the `tokenizers` library, which ComfyUI and transformers already bring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

from .errors import CheckpointError

IMAGE = "<|image|>"  # stands for one picture in text; never reaches the transformer
MOST_STEPS = 8  # of a tokenizer's normalizer, or of another of its parts
LEADS = ("@", "\n", "\\", "=", ">", "`")  # characters that seldom merge with what follows them


def beginning(settings: Mapping, source: str) -> str | None:
    """The name of the token that every prompt begins with, from the object of a tokenizer_config.json; or None.

    Upstream falls back to the end token where there is no beginning token (Lumina-mGPT 2.0).
    """
    first = settings.get("bos_token") or settings.get("eos_token")
    name = first.get("content") if isinstance(first, Mapping) else first
    if name is not None and not isinstance(name, str):
        raise CheckpointError(
            f"The tokenizer_config.json of {source} names {name!r} as the token that prompts begin with; a text is "
            "expected. Download it again."
        )
    return name


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns what the `tokenizers` library raises over a file into a `CheckpointError` that names the file.

    It raises bare `Exception`s, and panics that are none.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{source} is not a tokenizer file that `tokenizers` can use: {e}. Take tokenizer.json from the "
            "checkpoint's own repository."
        ) from None


def check_growth(part: object, source: str) -> None:
    """A `CheckpointError` where a tokenizer's normalizer, pre-tokenizer or decoder could blow up a text without bounds.

    `part` is as the `tokenizers` library holds it. A few steps that add a character to each are taken, no more.
    """
    if part is None:
        return
    steps, waiting = [], [json.loads(part.__getstate__())]
    while waiting and len(steps) <= MOST_STEPS:
        step = waiting.pop()
        inner = [
            v for v in step.values() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)
        ]
        waiting += [x for v in inner for x in v]
        steps += [] if inner else [step]
    long = [s for s in steps if len(s.get("content") or "") > 1 or len(s.get("prepend") or "") > MOST_STEPS]
    if waiting or len(steps) > MOST_STEPS or long or any(s.get("type") == "Precompiled" for s in steps):
        raise CheckpointError(
            f"{source} rewrites texts in more ways than any tokenizer of these models. Take tokenizer.json from the "
            "checkpoint's own repository."
        )


class Tokenizer:
    """A `tokenizer.json` with the special-name lookups that UniRep needs."""

    def __init__(self, tokenizer_json: str, tokenizer_config: Mapping, source: str = "tokenizer.json"):
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        self.source = source
        with readable(source):
            self._backend = Backend.from_str(tokenizer_json)
            self._backend.no_truncation()
            self._backend.no_padding()
            if self._backend.token_to_id(IMAGE) is None:
                self._backend.add_tokens([AddedToken(IMAGE, lstrip=False, rstrip=False, normalized=False)])
            for part in (self._backend.normalizer, self._backend.pre_tokenizer, self._backend.decoder):
                check_growth(part, source)
        self.bos_name = beginning(tokenizer_config, source)

    def id(self, name: str) -> int | None:
        """The id of a token by its exact name, or None."""
        return self._backend.token_to_id(name)

    def names(self) -> dict[str, int]:
        """Every name with its id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special names in it become their ids, nothing is added.

        Half of a surrogate pair, which is no character, counts as U+FFFD.
        """
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with readable(self.source):
            return self._backend.encode(whole, add_special_tokens=False).ids

    @cached_property
    def keeps_blanks(self) -> bool:
        """Whether a word inside a text is encoded with its blank (byte-level style), not as a text of its own."""
        whole, alone = self.encode("Hi my darling"), self.encode("my darling")
        return whole[-len(alone) :] != alone

    def encode_inner(self, text: str) -> list[int]:
        """Ids of a text that continues another: none stands for a blank that is not there.

        A tokenizer that sets a blank before every text is led by a character that keeps its own ids, which are then
        cut off. Source: upstream `xllmx/model/tokenizer.py`.
        """
        if self.keeps_blanks:
            return self.encode(text)
        for lead in LEADS:
            own, both = self.encode(lead), self.encode(lead + text)
            if both[: len(own)] == own:
                return both[len(own) :]
        raise CheckpointError(
            f"{self.source} merges every lead character with {text[:40]!r}; it cannot be split."
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special names kept."""
        with readable(self.source):
            return self._backend.decode(list(ids), skip_special_tokens=False)
