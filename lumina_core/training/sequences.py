"""Examples as tokens and labels, built through the prompts that inference is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..prompts import IGNORE, Template, encode_training, fill, without_size
from ..text import IMAGE, Tokenizer
from ..unirep import Vocabulary
from .examples import Example


@dataclass(frozen=True)
class Language:
    """What turns an example with the codes of its pictures into a training sequence."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    templates: Mapping[str, Template]

    def sequence(
        self,
        example: Example,
        given: Sequence[torch.Tensor],
        drawn: Sequence[torch.Tensor],
        says_size: bool = True,
    ) -> tuple[list[int], list[int]]:
        """Tokens and labels; `given` and `drawn` are the codes (h, w) of the example's pictures.

        Loss is on the answers only. A first panel that the user gives is part of the prefix, so it bears none.
        """
        entry, v = self.templates[example.task], self.vocabulary
        if entry.panels == 1:
            question = self.question(entry, example, v.units(drawn[0]) if drawn else None, says_size)
            pictures = [v.encode(codes) for codes in (*given, *drawn)]
            turns = [*example.earlier, question, example.answer]
            return encode_training(turns, pictures, self.tokenizer, v)
        h, w = v.units(drawn[0])
        question = self.question(entry, example, (h * entry.panels, w), says_size)
        whole = torch.cat(list(drawn))
        ids, labels = encode_training([question, IMAGE], [v.encode(whole)], self.tokenizer, v)
        if entry.given_panel:
            known = len(ids) - 2 - (len(whole) - len(drawn[0])) * (whole.shape[1] + 1)
            labels[:known] = [IGNORE] * known
        return ids, labels

    def question(
        self, entry: Template, example: Example, units: tuple[int, int] | None, says_size: bool
    ) -> str:
        wording = entry.text if says_size or entry.panels > 1 else without_size(entry.text)
        return fill(wording, example.text, units, example.subject or entry.subject)

    def bare(self, tokens: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """The unconditional form of a sequence: its last picture alone, from start to end; None without one.

        That is what guidance sees without the prompt; labels are kept, the picture's start bears one where the
        picture is drawn whole.
        """
        v = self.vocabulary
        spans = v.pictures(tokens)
        if not spans or labels[spans[-1][1] - 1] == IGNORE:
            return None
        first, last = spans[-1]
        return list(tokens[first:last]), list(labels[first:last])
