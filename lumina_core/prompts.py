"""Prompt templates, one entry a task, with upstream's exact wording; and how turns become token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import InputError
from .text import IMAGE, Tokenizer
from .unirep import UNIT, Vocabulary

IGNORE = -100  # the label of a token that is not to be predicted


@dataclass(frozen=True)
class Template:
    """One task of one family. `text` may name {width}, {height} (of the whole picture), {prompt} and {subject}."""

    task: str
    text: str
    panels: int = 1
    images: int | None = 0  # pictures the task is given; None: any number
    given_panel: bool = False  # the picture given is the first panel of the answer
    expects: str = "image"  # as in `Prompt`
    same_size: bool = False  # the answer has the size of the picture given, unless another is asked for
    subject: str = ""  # what {subject} says when nothing else is given
    text_optional: bool = False  # {prompt} may be empty
    # what {prompt} is to say
    asks: str = "what to draw, for example 'a red circle in the center, white background'"
    like: str = ""  # the task it is trained as, where it is a special case of another

    def needs_text(self, wording: str) -> bool:
        """Whether the task, in this wording, cannot be asked without {prompt}."""
        return "{prompt}" in wording and not self.text_optional


_PAIR = (
    "Generate a dual-panel image of {{width}}x{{height}} where the <lower half> displays a <{0}>, while the "
    "<upper half> retains the original image for direct visual comparison:\n{{prompt}}"
)
_CONTROL = (
    "Generate a dual-panel image of {{width}}x{{height}} where the <upper half> displays a <{0}>, while the "
    "<lower half> retains the original image for direct visual comparison:\n{{prompt}}"
)
_DESCRIBED = (
    "Generate a dual-panel image of {{width}}x{{height}} where the <upper half> displays: {0}, while the <lower half> "
    "shows the image according to the object and following prompt: {{prompt}}."
)
SIZE = " of {width}x{height}"
TEXT_TO_IMAGE = Template(
    "text_to_image", f"Generate an image{SIZE} according to the following prompt:\n{{prompt}}"
)


def _table(*templates: Template) -> dict[str, Template]:
    return {t.task: t for t in templates}


MAPS = {"depth": "depth map", "canny": "canny edge map", "hed": "hed edge map", "pose": "pose estimation map"}
_CHANGE = "what to change, for example 'Make the circle green.'"
_LOWER = {"panels": 2, "images": 1, "given_panel": True}
MGPT2 = _table(
    TEXT_TO_IMAGE,
    *(Template(f"pair_{short}", _PAIR.format(name), panels=2) for short, name in MAPS.items()),
    *(Template(f"control_{short}", _CONTROL.format(name), **_LOWER) for short, name in MAPS.items()),
    # A pair whose upper half is given: the model goes on with the map of that picture.
    *(Template(short, _PAIR.format(name), text_optional=True, **_LOWER) for short, name in MAPS.items()),
    # Upstream's script puts this description of one object where another would be described.
    Template(
        "subject",
        _CONTROL.format("{subject}"),
        subject="Bubbly and effervescent with a sparkling allure.",
        **_LOWER,
    ),
    # The wording of arXiv 2507.17801; the one for editing is not published and phrased after it.
    Template("subject_described", _DESCRIBED.format("{subject}"), subject="the object", **_LOWER),
    Template("edit", _DESCRIBED.format("the original image"), asks=_CHANGE, **_LOWER),
)
_DENSE = {"images": 1, "same_size": True}
MGPT1 = _table(
    TEXT_TO_IMAGE,
    Template(
        "segment", f"Segmentic segmentation. {IMAGE}", **_DENSE
    ),  # misspelt upstream, so in training too
    Template("depth", f"Depth estimation. {IMAGE}", **_DENSE),
    Template("normals", f"Surface normal estimation. {IMAGE}", **_DENSE),
    Template("pose", f"Human pose estimation. {IMAGE}", **_DENSE),
    Template("detect", f"Detect: {{prompt}} {IMAGE}", asks="what to find, for example 'circle'", **_DENSE),
    Template("edit", f"{{prompt}} {IMAGE}", asks=_CHANGE, **_DENSE),
    # An editing instruction to change nothing: it cleans a picture of the VQ's noise. The authors tell of the trick but
    # not of their words; these are ours.
    Template("denoise", f"Change nothing. {IMAGE}", like="edit", **_DENSE),
    Template(
        "control",
        "Generate an image according to the provided image, and according to the following caption:\n"
        f"{{prompt}} {IMAGE}",
        **_DENSE,
    ),
    Template("describe", f"Describe the image in detail. {IMAGE}", images=1, expects="text"),
    Template("chat", "{prompt}", images=None, expects="text_then_image"),
)
PURE = _table(
    Template(
        "restore",
        "Perceive the degradation level, understand the image content, and restore the high-quality image. "
        f"{IMAGE}",
        images=1,
        expects="text_then_image",
        same_size=True,
    )
)


@dataclass(frozen=True)
class Prompt:
    """The full token prefix of the conditional row and what is expected next; cheap and hashable."""

    family: str
    task: str
    tokens: tuple[int, ...] = field(repr=False)
    expects: str  # "image", "text" or "text_then_image"
    units: tuple[int, int] | None = None  # grid (height, width) in 32-pixel units; None: the model chooses
    open_at: int | None = None  # index of the start of a picture the prefix leaves open
    panels: int = 1
    text: str = ""
    entropy_top_k: tuple[int, int] | None = None  # PURE: image top-k follows the entropy, within these limits
    guidance_decay: bool = False  # 2.0: upstream lowers the guidance scale; done under `upstream_exact`
    # Codes that are kept, of the whole picture row by row, -1 where one is drawn; picture i of a batch keeps those of
    # entry i, beginning again behind the last. Empty: all are drawn.
    kept: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    # `Vocabulary.numbering` of its maker; empty: not told
    numbering: tuple[int, ...] = field(default=(), repr=False)

    @property
    def picture_panel(self) -> int:
        """Which panel shows the picture that is asked for: the last behind a given one, the first of a pair."""
        return 0 if self.open_at is None else -1

    def __repr__(self) -> str:
        size = f"{self.units[1] * UNIT}x{self.units[0] * UNIT}" if self.units else "free size"
        what = f"{self.family} {self.task}, {len(self.tokens)} tokens, {self.expects}, {size}"
        return f"Prompt({what}, {self.text[:60]!r})"


def fill(template: str, prompt: str, units: tuple[int, int] | None, subject: str = "") -> str:
    """The template's text with {prompt}, {subject}, {width} and {height} filled in; other braces stay as they are.

    Where the template puts a full stop behind a prompt that has one, one stays: no training text has two.
    """
    out = template.replace("{subject}", subject)
    if prompt.rstrip().endswith("."):
        out = out.replace("{prompt}.", "{prompt}")
    if units:
        out = out.replace("{width}", str(units[1] * UNIT)).replace("{height}", str(units[0] * UNIT))
    return out.replace("{prompt}", prompt)


def without_size(wording: str) -> str:
    """A wording that leaves the size to the model: " of {width}x{height}" left out, as in 10 % of 2.0's training items.

    An `InputError` where it names the size in another way.
    """
    out = wording.replace(SIZE, "")
    if "{width}" in out or "{height}" in out:
        raise InputError(
            f"The template names {{width}} or {{height}}, but the model is to choose the size: {wording[:80]!r}. Set "
            f"width and height, or write the size as '{SIZE}', which is left out then."
        )
    return out


def place_pictures(turns: Sequence[str | None], images: int) -> list[str | None]:
    """The turns with a mark for every picture; pictures nobody placed go before the first turn."""
    placed = sum(turn.count(IMAGE) for turn in turns if turn is not None)
    if placed not in (0, images):
        raise InputError(
            f"The text places {placed} picture{'s' * (placed != 1)} ({IMAGE}) but {images} "
            f"{'are' if images != 1 else 'is'} connected; use none of the marks or one for each picture."
        )
    ahead = f"{IMAGE} " * images if placed == 0 else ""
    return [f"{ahead}{turns[0]}", *turns[1:]]


def conversation(turns: Sequence[str | None], separator: str, images: int) -> str:
    """The text of a conversation: each turn closed by the separator.

    `turns` alternate question and answer; a None is left to be generated.
    """
    return "".join(f"{turn}{separator}" for turn in place_pictures(turns, images) if turn is not None)


def encode_conversation(
    turns: Sequence[str | None],
    pictures: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> list[int]:
    """Ids of a conversation, beginning token first, every picture's tokens (whole UniRep sequences) in its place."""
    ids = [vocabulary.bos]
    waiting = iter(pictures)
    for token in tokenizer.encode(conversation(turns, vocabulary.separator_name, len(pictures))):
        ids.extend(next(waiting) if token == vocabulary.placeholder else [token])
    return ids


def encode_training(
    turns: Sequence[str],
    pictures: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and their labels: answers, their pictures and their separators; elsewhere -100.

    Each turn is encoded on its own, as a continuation of what stands before it; the parts must add up to the whole.
    """
    placed = place_pictures(turns, len(pictures))
    waiting = iter(pictures)
    whole = tokenizer.encode(conversation(turns, vocabulary.separator_name, len(pictures)))
    ids, labels, parts = [vocabulary.bos], [IGNORE], []
    for i, turn in enumerate(placed):
        closed = f"{turn}{vocabulary.separator_name}"
        part = tokenizer.encode(closed) if i == 0 else tokenizer.encode_inner(closed)
        parts += part
        for token in part:
            piece = list(next(waiting)) if token == vocabulary.placeholder else [token]
            ids += piece
            labels += piece if i % 2 else [IGNORE] * len(piece)
    if parts != whole:
        raise InputError(
            f"The turns of this conversation do not encode to the same ids as the whole: {placed[0][:60]!r} ..."
        )
    return ids, labels


def answer_text(tokens: Sequence[int], tokenizer: Tokenizer, vocabulary: Vocabulary) -> str:
    """The text of an answer: every whole picture as `<|image|>`, special names kept, a closing separator dropped."""
    ids = vocabulary.fold(tokens)
    if ids and ids[-1] == vocabulary.separator:
        ids.pop()
    return tokenizer.decode(ids)
