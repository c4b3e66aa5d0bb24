"""Conversations: turns and pictures are kept in order, answers come back as the next turn's prompt needs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import (
    Answered,
    AnswerFinished,
    Chat,
    InputError,
    PictureFinished,
    Sampling,
    TextPiece,
    TokenGrid,
    generate,
    load,
)
from tests.core import checkpoints as ck
from tests.core.test_engine_equal import eager_to_draw

RED, BLUE = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (90, 40), "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(ck.build(tmp_path_factory.mktemp("chat") / "mgpt1", "mgpt1"))


def pictures_in(model, tokens) -> list[tuple[int, int]]:
    return model.vocabulary.pictures(tokens)


def test_pictures_stand_in_the_turn_they_were_given_in(model):
    first = Chat("mgpt1").ask(model, "what is this?", [RED])
    answer = Answered(model)
    answer.note(TextPiece(0, tuple(model.tokenizer.encode("a red square"))))
    second = first.answered(answer).ask(model, "and these: <|image|> or <|image|>?", [BLUE, RED])
    tokens = second.prompt(model).tokens
    spans = pictures_in(model, tokens)
    assert len(spans) == 3
    words = [
        model.tokenizer.decode(tokens[a:b])
        for a, b in zip((1, *(e for _, e in spans)), (s for s, _ in spans), strict=False)
    ]
    separator = model.vocabulary.separator_name
    assert words[0] == ""
    assert words[1] == f" what is this?{separator}a red square{separator}and these: "
    assert words[2] == " or "
    blue = model.vocabulary.decode(tokens[slice(*spans[1])])
    assert torch.equal(blue, second.pictures[1].codes)
    assert blue.shape[1] > blue.shape[0], "pictures keep about their proportions"


def test_the_chat_before_a_turn_stays_as_it_was(model):
    begun = Chat("mgpt1")
    begun.ask(model, "hello", [RED])
    assert (begun.turns, begun.pictures) == ((), ())


def test_an_answer_with_several_pictures_goes_into_the_next_prompt(model):
    chat = Chat("mgpt1").ask(model, "draw it from two sides")
    answer = Answered(model)
    hook = eager_to_draw(model)
    try:
        sampling = Sampling(seed=11, cfg=1.0, image_top_k=0, text_top_k=4, max_tokens=120, decode="ar")
        for event in generate(
            model.transformer, model.vocabulary, chat.prompt(model, size=(64, 64)), sampling
        ):
            answer.note(event)
    finally:
        hook.remove()
    assert len(answer.pictures) >= 2
    assert answer.reason
    assert answer.marked.count("<|image|>") == len(answer.pictures)
    assert "<|image|>" not in answer.text
    tokens = chat.answered(answer).ask(model, "and now?").prompt(model).tokens
    drawn = [model.vocabulary.decode(tokens[a:b]) for a, b in pictures_in(model, tokens)]
    assert all(torch.equal(a, b.codes) for a, b in zip(drawn, answer.pictures, strict=True))


def test_a_mark_that_the_model_wrote_claims_no_picture(model):
    answer = Answered(model)
    answer.note(TextPiece(0, (model.vocabulary.placeholder,)))
    answer.note(TextPiece(0, tuple(model.tokenizer.encode("a <"))))
    answer.note(TextPiece(0, tuple(model.tokenizer.encode("|image|> b"))))
    chat = Chat("mgpt1").ask(model, "hello").answered(answer).ask(model, "again")
    assert not pictures_in(model, chat.prompt(model).tokens)


def test_size_tokens_are_left_out_of_the_text(model):
    answer, sizes = Answered(model), list(model.vocabulary.grid.values())
    answer.note(TextPiece(0, (sizes[0], *model.tokenizer.encode("a cat"), *sizes)))
    assert (answer.text, answer.marked) == ("a cat", "a cat")


def test_text_is_heard_of_while_it_grows(model):
    answer = Answered(model)
    assert answer.note(TextPiece(0, tuple(model.tokenizer.encode("one"))))
    assert answer.text == "one"
    assert answer.note(PictureFinished(0, TokenGrid(torch.zeros(2, 2, dtype=torch.int64), "mgpt1")))
    assert not answer.note(AnswerFinished(0, (), "limit"))
    assert (answer.text, answer.reason) == ("one", "limit")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: Chat("mgpt1").ask(m, " \n"), "question is empty"),
        (lambda m: Chat("mgpt1").ask(m, "<|image|>", [RED]), "question is empty"),
        (
            lambda m: Chat("mgpt1").ask(m, "<|image|> and <|image|>?", [RED]),
            "places 2 pictures .* but 1 is given",
        ),
        (lambda m: Chat("mgpt2").ask(m, "hello"), "begun with a checkpoint of family mgpt2"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(model, ask, words):
    with pytest.raises(InputError, match=words) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_chat_says_so(tiny_model):
    with pytest.raises(InputError, match="has no task 'chat'"):
        Chat("mgpt2").ask(tiny_model, "hello")


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2)])
def test_a_picture_of_any_size_can_be_asked_about(model, size):
    image = Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8))
    [span] = pictures_in(model, Chat("mgpt1").ask(model, "what?", [image]).prompt(model).tokens)
    assert span[1] - span[0] > 4
