"""Tokenizer file to ids and back. Uses the `tokenizers` library, which ComfyUI and transformers already bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from .errors import CheckpointError

IMAGE = "<|image|>"  # stands for one picture in text; never reaches the transformer
LEADS = ("@", "\n", "\\", "=", ">", "`")  # characters that seldom merge with what follows them


class Tokenizer:
    """A `tokenizer.json` with the special-name lookups that UniRep needs."""

    def __init__(self, tokenizer_json: str, tokenizer_config: Mapping, source: str = "tokenizer.json"):
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_str(tokenizer_json)
        except Exception as e:  # the library raises bare Exception
            raise CheckpointError(
                f"{source} is not a tokenizer file that `tokenizers` can read: {e}"
            ) from None
        self.source = source
        self._backend.no_truncation()
        self._backend.no_padding()
        if self._backend.token_to_id(IMAGE) is None:
            self._backend.add_tokens([AddedToken(IMAGE, lstrip=False, rstrip=False, normalized=False)])
        # Upstream falls back to the end token where there is no beginning token (Lumina-mGPT 2.0).
        first = tokenizer_config.get("bos_token") or tokenizer_config.get("eos_token")
        self.bos_name: str | None = first["content"] if isinstance(first, Mapping) else first

    def id(self, name: str) -> int | None:
        """The id of a token by its exact name, or None."""
        return self._backend.token_to_id(name)

    def names(self) -> dict[str, int]:
        """Every name with its id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special names in it become their ids, nothing is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

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
        return self._backend.decode(list(ids), skip_special_tokens=False)
