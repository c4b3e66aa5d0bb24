"""Scores of pictures that a model drew: its own likelihood, and its own answer to a question about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image

from .chat import Chat
from .errors import InputError
from .families import Model
from .prompts import Prompt
from .sampling.choose import likelihood, preference
from .unirep import TokenGrid

YES, NO = ("yes", "Yes"), ("no", "No")
Watched = Callable[[Sequence], Iterator]


def likelihoods(
    model: Model, prompt: Prompt, grids: Sequence[TokenGrid], watched: Watched = iter
) -> list[float]:
    """The mean log-probability of each picture's codes given the prompt (see `sampling.choose`)."""
    return [likelihood(model.transformer, model.vocabulary, prompt, grid) for grid in watched(grids)]


def question_prompts(
    judge: Model, question: str, pictures: Sequence[Image.Image], watched: Watched = iter
) -> list[Prompt]:
    """The question about each picture, as the judge is asked it; pictures are encoded."""
    return [
        Chat(judge.family.id).ask(judge, question, [picture]).prompt(judge) for picture in watched(pictures)
    ]


def agreements(judge: Model, prompts: Sequence[Prompt], watched: Watched = iter) -> list[float]:
    """How much rather the judge answers each question with yes than with no, 0 to 1."""
    yes, no = ([judge.tokenizer.encode_inner(word) for word in words] for words in (YES, NO))
    return [preference(judge.transformer, prompt, yes, no) for prompt in watched(prompts)]


def given_scores(scores: Sequence[float], grids: Sequence[TokenGrid] | None) -> list[float]:
    """Scores from elsewhere as they are, or an `InputError` where there is not one for each candidate."""
    if grids is None:
        raise InputError(
            "Scores from other nodes need the candidates they are of: connect tokens, from a Sampler with batch, and "
            "rate the pictures decoded of them."
        )
    if len(scores) != len(grids):
        raise InputError(
            f"There are {len(scores)} scores for {len(grids)} candidates; connect a list of one number each."
        )
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError):
        raise InputError(f"The scores are {list(scores)!r}; a list of numbers is needed.") from None
    return values


def best(grids: Sequence[TokenGrid], order: Sequence[int], keep: int) -> list[TokenGrid]:
    """The best `keep` of the candidates, best first; 0 keeps all."""
    return [grids[i] for i in (order[:keep] if keep else order)]


def question_of(judge: Model, question: str) -> str:
    """The question, or an `InputError` where it is empty or the judge cannot answer any."""
    if not question.strip():
        raise InputError(
            "The question is empty; ask what yes answers, such as 'Does the picture show a red circle?'."
        )
    judge.template("chat")
    return question.strip()


def check_candidates(grids: Sequence[TokenGrid]) -> None:
    """Raises an `InputError` where there is nothing to choose from."""
    if not grids:
        raise InputError(
            "There are no candidates to choose from: the model drew no picture. Set the size of the picture, or "
            "connect tokens that hold some."
        )


def decoded(
    model: Model, prompt: Prompt, grids: Sequence[TokenGrid], watched: Watched = iter
) -> list[Image.Image]:
    """The pictures that were drawn of a prompt, of several panels the one that it asks for."""
    shown = [grid.split()[prompt.picture_panel] for grid in grids]
    with torch.inference_mode():
        return [Image.fromarray(model.decode(grid.codes)) for grid in watched(shown)]
