"""Examples are exact and are worded as inference words them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import PictureFinished, Sampling, TextPiece, TokenGrid, generate, load
from lumina_core.prompts import IGNORE
from lumina_core.sampling.abreast import Abreast
from lumina_core.text import IMAGE
from lumina_core.training import build, degrade, edits, maps, measures, questions, world
from lumina_core.training.batches import Batches, Phase, Plan
from lumina_core.training.dataset import Sequences, picture_codes
from lumina_core.training.evaluate import prompts_of
from lumina_core.training.examples import MAKERS, example, task_of
from lumina_core.training.recipes import RECIPES

SIZE = (64, 64)
SCENES = [world.scene("held-out", n, *((64, 64), (128, 128), (160, 96))[n % 3]) for n in range(60)]


def rng(n: int) -> np.random.Generator:
    return np.random.default_rng([5, n])


def test_edits_change_what_they_say_and_nothing_else():
    kinds = set()
    for n, s in enumerate(SCENES * 2):
        e = edits.edit(s, rng(n))
        kinds.add(e.kind)
        gone, come = (
            set(e.before.objects) - set(e.after.objects),
            set(e.after.objects) - set(e.before.objects),
        )
        assert gone == ({e.old} - {None})
        assert come == ({e.new} - {None})
        assert (e.before.ground != e.after.ground) == (e.kind == "ground")
        if e.old and e.kind != "add":
            named = [o for o in s.objects if edits.reference(s, e.old) in (o.shape, f"{o.colour} {o.shape}")]
            assert named == [e.old]
        for word in {"recolour": ("colour",), "reshape": ("shape",), "add": ("colour", "shape", "place")}.get(
            e.kind, ()
        ):
            assert getattr(e.new, word) in e.instruction
        places = [(o.x, o.y, o.radius) for o in e.after.objects]
        assert all(
            max(abs(a[0] - b[0]), abs(a[1] - b[1])) > a[2] + b[2]
            for a in places
            for b in places
            if a is not b
        )
        names = [(o.colour, o.shape) for o in e.after.objects]
        assert len(set(names)) == len(names)
    assert kinds == set(edits.KINDS)


@pytest.mark.parametrize("kind", ["edit", "edit_panel"])
def test_edits_are_trained_in_either_wording(kind):
    worded = [e for e in (example(kind, "train", n, SIZE) for n in range(60)) if e.edit]
    as_people_type = [e for e in worded if e.text[0].islower()]
    for e in worded:
        assert e.text.removesuffix(".").capitalize() == e.edit.instruction.removesuffix(".").capitalize()
    assert not any(e.text.endswith(".") for e in as_people_type)
    assert 0.3 < len(as_people_type) / len(worded) < 0.7


def answer_by_looking(s: world.Scene, question: str) -> str | None:
    """A second way to the answers, from the words alone."""
    words = question.rstrip("?").split()
    if question.startswith("How many objects"):
        return questions.NUMBERS[len(s.objects)]
    if question.startswith("How many"):
        return questions.NUMBERS[sum(words[2].startswith(o.shape) for o in s.objects)]
    if question.startswith("What colour is the background"):
        return s.ground
    if question.startswith("What colour is the"):
        fits = [
            o for o in s.objects if o.shape == words[4] and question.endswith((o.shape + "?", o.place + "?"))
        ]
        fits = [o for o in fits if len(words) == 5 or question.endswith(o.place + "?")]
        return fits[0].colour if len(fits) == 1 else None
    if question.startswith(("What is", "What shape is")):
        [o] = [o for o in s.objects if question.endswith(f" is {o.place}?")]
        return o.shape if "shape" in words else f"{o.colour} {o.shape}"
    return None


def check_answer(s: world.Scene, question: str, answer: str) -> None:
    if question.startswith("Does"):
        there = [o for o in s.objects if f"{o.colour} {o.shape}" in question]
        # A picture shows what is asked for only where every named thing is there.
        named = sum(f"{c} {shape}" in question for c in world.COLOURS for shape in world.SHAPES)
        assert (answer == "yes") == (len(there) == named), question
    else:
        assert answer_by_looking(s, question) in (answer, answer.split(" ", 1)[-1]), question


def test_answers_are_those_of_the_scene():
    for ask, share in ((questions.ask, 0.2), (questions.ask_whether, 1.0)):
        yes = []
        for n, s in enumerate(SCENES * 6):
            question, answer = ask(s, rng(n))
            check_answer(s, question, answer)
            if question.startswith("Does"):
                yes.append(answer == "yes")
        assert len(yes) >= share * len(SCENES * 6)
        assert 0.3 < np.mean(yes) < 0.7
    for n, s in enumerate(SCENES):
        first, said, second, answer = questions.ask_twice(s, rng(n))
        check_answer(s, first, said)
        [o] = [o for o in s.objects if o.place in first or f"the {o.shape}?" in first]
        assert answer == (o.place if "where" in second else o.colour)
        assert answer not in first


def test_a_long_conversation_asks_nothing_twice():
    for n, s in enumerate(SCENES):
        turns = questions.ask_often(s, rng(n))
        assert len(turns) == 2 * questions.TURNS
        assert len(set(turns[::2])) == questions.TURNS
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            check_answer(s, question, answer)


def test_a_question_about_several_pictures_says_which():
    asked_which = 0
    for n in range(120):
        shown = [SCENES[(n + i) % len(SCENES)] for i in range(2 + n % 2)]
        question, answer = questions.ask_of_several(shown, rng(n))
        if question.startswith("Which picture"):
            asked_which += 1
            there = [any(f"{o.colour} {o.shape}" in question for o in s.objects) for s in shown]
            assert there.count(True) == 1
            assert answer == f"the {questions.ORDINALS[there.index(True)]}"
            continue
        [which] = [i for i, word in enumerate(questions.ORDINALS) if f"the {word} picture" in question]
        picture = f"the {questions.ORDINALS[which]} picture"
        plain = question.replace(f" in {picture}", "").replace(f"In {picture}, ", "")
        check_answer(shown[which], plain[0].upper() + plain[1:], answer)
    assert 5 < asked_which < 60


def test_pictures_come_in_later_turns_too():
    talks = [example("later picture", "train", n, SIZE) for n in range(60)]
    talks += [example("several pictures", "train", n, SIZE) for n in range(60)]
    for e in talks:
        turns = [*e.earlier, e.text, e.answer]
        assert "".join(turns).count(IMAGE) == len(e.given)
        assert (e.given[-1] == world.picture(e.scene)).all() or len(e.given) > 1
    brought = sum(IMAGE in e.text and bool(e.earlier) for e in talks)
    drawn_before = sum(e.earlier[-1:] == (IMAGE,) for e in talks)
    at_once = sum(e.text.count(IMAGE) > 1 for e in talks)
    assert min(brought, drawn_before, at_once) >= 10


def test_a_view_from_behind_is_the_mirror_image():
    for s in SCENES:
        behind = world.from_behind(s)
        mirrored = np.abs(world.picture(behind).astype(int) - world.picture(s)[:, ::-1])
        assert mirrored.max() <= 1, "by rounding"
        for o, there in zip(s.objects, behind.objects, strict=True):
            x, y = world.PLACES[o.place]
            assert world.PLACES[there.place] == (pytest.approx(1 - x), y)
    e = example("views", "train", 0, SIZE)
    assert (e.drawn[1] == world.picture(world.from_behind(e.scene))).all()


def test_maps_are_exact():
    hidden = total = 0
    for s in SCENES:
        pose, cover = (
            maps.map_picture(s, "pose"),
            sum(world.coverage(o, s.width, s.height) for o in s.objects),
        )
        for (kind, x, y), o in zip(maps.keypoints(s), [o for o in s.objects for _ in range(3)], strict=True):
            at = pose[min(int(y), s.height - 1), min(int(x), s.width - 1)]
            total += 1
            hidden += np.abs(at.astype(int) - maps.JOINT_COLOURS[kind]).max() > 60
            assert abs(world.signed_distance(o.shape, x - o.x, y - o.y, o.radius)) < 0.12 * o.radius
        edge = maps.map_picture(s, "canny")[..., 0] > 0
        assert edge.any()
        assert not (edge & (cover > 0.99) & (world.edges(s) == 0)).any()
        for o, box in zip(s.objects, world.boxes(s), strict=True):
            ys, xs = np.nonzero(maps.found(s, (o,)).max(-1))
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == box
    assert hidden < 0.03 * total  # where objects touch, a joint of one may lie on that of another


def test_a_piece_of_a_scene_shows_and_names_what_lies_in_it():
    whole = world.enlarged(world.scene("held-out", 3, 64, 64), 2.0)
    assert (whole.width, whole.height) == (128, 128)
    o = whole.objects[0]
    # Through the middle of the object, where the picture reaches that far.
    left, top = (int(np.clip(at, 0, 64)) for at in (o.x, o.y))
    piece = world.window(whole, left, top, 64, 64)
    shown = {(p.shape, p.colour) for p in piece.objects}
    assert (o.shape, o.colour) in shown
    named = replace(whole, objects=tuple(p for p in whole.objects if (p.shape, p.colour) in shown))
    assert np.array_equal(world.picture(piece), world.picture(named)[top : top + 64, left : left + 64])
    ground = whole.ground
    assert questions.content(replace(whole, objects=())) == (
        f"zero shapes, first a {ground} ground, {ground} background"
    )


def test_heavier_degradations_spoil_more_and_clean_ones_nothing():
    for kind in degrade.KINDS:
        light, heavy = (
            np.mean(
                [
                    measures.psnr(degrade.spoil(p, degrade.Degradation(kind, level), rng(n)), p)
                    for n, p in enumerate(map(world.picture, SCENES[:12]))
                ]
            )
            for level in degrade.LEVELS
        )
        assert heavy < light - 1.5
        assert light < 30
    clean = degrade.Degradation(degrade.CLEAN, degrade.CLEAN)
    assert degrade.spoil(world.picture(SCENES[0]), clean, rng(0)) is not None
    assert (degrade.spoil(world.picture(SCENES[0]), clean, rng(0)) == world.picture(SCENES[0])).all()


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_an_example_is_a_function_of_its_number(kind):
    a, b, other = (example(kind, split, 3, SIZE) for split in ("train", "train", "held-out"))
    assert (a.text, a.answer, a.earlier) == (b.text, b.answer, b.earlier)
    assert all((p == q).all() for p, q in zip((*a.given, *a.drawn), (*b.given, *b.drawn), strict=True))
    assert a.scene != other.scene


@pytest.fixture(scope="module", params=sorted(RECIPES))
def tiny(request, tmp_path_factory):
    """The recipe's own tokenizer and image tokenizer before training, with a transformer of one layer."""
    recipe = replace(RECIPES[request.param], hidden=32, intermediate=32, layers=1, heads=2, looks_back=())
    folder = tmp_path_factory.mktemp(recipe.name)
    words = build.tokenizer_text(recipe, folder / "tokenizer.json")
    build.export(
        recipe, words, build.new_transformer(recipe, words), build.new_vq(recipe), folder / recipe.name
    )
    return recipe, build.language_of(recipe, words), load(folder / recipe.name), words


def test_training_sequences_begin_with_the_prompt_of_inference(tiny):
    recipe, language, model, _ = tiny
    for kind, size in recipe.examples:
        e = example(kind, "held-out", 3, size)
        pictures = [Image.fromarray(p) for p in e.given]
        given = [model.encode(p, p.size).codes for p in pictures]
        drawn = list(picture_codes(model.vq, list(e.drawn)).values())
        if recipe.family.templates[e.task].given_panel:
            drawn = [given[0], drawn[-1]]
        tokens, labels = language.sequence(e, given, drawn)
        if e.task == "chat":
            grids = [TokenGrid(codes, recipe.family.id) for codes in given]
            prompt = model.family.converse(model, [*e.earlier, e.text, None], grids)
        elif e.task == "describe":
            prompt = prompts_of(model, [e])[0]
            assert model.family.templates["describe"].text.split("<")[0] in prompt.text
        else:
            prompt = model.prompt(e.text, task=e.task, size=size, images=pictures, subject=e.subject)
            judged = prompts_of(model, [e])[0]
            assert (judged.text, judged.units, judged.open_at) == (prompt.text, prompt.units, prompt.open_at)
            others = sum(a != b for a, b in zip(prompt.tokens, judged.tokens, strict=True))
            assert others <= (2 if e.given else 0), "codes of pictures alone may differ, by rounding"
        unlearned = [i for i, label in enumerate(labels) if label == IGNORE]
        last = unlearned[-1] + 1
        assert tuple(tokens[:last]) == prompt.tokens, (kind, size)
        assert all(label in (IGNORE, token) for token, label in zip(tokens, labels, strict=True))
        answers = sum(b - a > 1 for a, b in zip(unlearned, [*unlearned[1:], len(labels)], strict=True))
        assert answers == 1 + len(e.earlier) // 2, kind
        assert len(tokens) < model.config.max_position_embeddings


def side_by_side(model, prompts, seeds, sampling) -> tuple[list, list[list[int]]]:
    """The codes of the pictures and the tokens of the texts that come of prompts answered together."""
    codes, words = [None] * len(prompts), [[] for _ in prompts]
    for event in Abreast(model.transformer, model.vocabulary, prompts, seeds, sampling).draw(len(prompts)):
        if isinstance(event, PictureFinished):
            codes[event.index] = event.grid.codes
        elif isinstance(event, TextPiece):
            words[event.index] += event.tokens
    return codes, words


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_pictures_drawn_side_by_side_are_those_of_the_library(tiny, decode):
    recipe, _, model, _ = tiny
    kinds = {kind for kind, _ in recipe.examples} & {"text_to_image", "edit", "pair_depth", "depth_panel"}
    for kind in sorted(kinds):
        size = next(at for name, at in recipe.examples if name == kind)
        prompts = prompts_of(model, [example(kind, "held-out", n, size) for n in range(3)])
        for sampling in (Sampling(cfg=2.0, temperature=0.8), Sampling(cfg=1.0, temperature=0.0)):
            seeds = [9, 7, 70]
            many, _ = side_by_side(model, prompts, seeds, replace(sampling, decode=decode))
            for prompt, seed, drawn in zip(prompts, seeds, many, strict=True):
                alone = generate(
                    model.transformer, model.vocabulary, prompt, replace(sampling, seed=seed, decode="ar")
                )
                [grid] = [e.grid for e in alone if isinstance(e, PictureFinished)]
                assert torch.equal(grid.codes, drawn), kind


@pytest.mark.parametrize("tiny", ["nano-mgpt1"], indirect=True)  # it alone answers in text
def test_texts_written_side_by_side_are_those_of_the_library(tiny):
    recipe, _, model, _ = tiny
    prompts = prompts_of(model, [example("question", "held-out", n, recipe.sizes[0]) for n in range(3)])
    sampling = Sampling(cfg=1.0, temperature=1.0, text_top_k=5, max_tokens=12)
    drawn, many = side_by_side(model, prompts, [7, 8, 9], sampling)
    assert drawn == [None] * 3
    for prompt, seed, written in zip(prompts, (7, 8, 9), many, strict=True):
        alone = generate(model.transformer, model.vocabulary, prompt, replace(sampling, seed=seed))
        assert written
        assert written == [t for e in alone if isinstance(e, TextPiece) for t in e.tokens]


@pytest.mark.parametrize("tiny", ["nano-mgpt1"], indirect=True)  # one is enough
def test_batches_are_functions_of_the_step_and_hold_rows_of_like_length(tiny):
    _, language, _, _ = tiny
    lengths = {"text_to_image": 40, "depth": 90}
    dataset = {}
    for kind, length in lengths.items():
        tokens = np.full(length * 5, 9, np.int32)
        learned = np.tile(np.arange(length) > length // 2, 5)
        dataset[kind, SIZE] = Sequences(tokens, learned, np.arange(6) * length)
    weights = {(kind, SIZE): 0.5 for kind in lengths}
    plan = Plan((Phase(100, weights),), batch=8, drop_prompt=0.0, guided=frozenset(), seed=1)
    one, two = Batches(plan, dataset, language), Batches(plan, dataset, language)
    seen = set()
    for step in (5, 0, 11):
        assert all(torch.equal(a, b) for a, b in zip(one[step], two[step], strict=True))
    waste = np.mean([(one[step][1] == 0).float().mean() for step in range(8)])
    for step in range(8):
        tokens, labels = one[step]
        seen.add(tokens.shape[1])
        assert tokens.shape[0] == 8
    assert seen == {40, 90}
    assert waste < 0.1


def test_config_names_the_tasks_it_was_trained_on(tiny):
    recipe, _, model, words = tiny
    config = build.config_json(recipe, words)
    assert set(config["tasks"]) == {task_of(kind) for kind, _ in recipe.examples}
    assert set(config["tasks"]) <= set(model.family.templates)
    assert set(config["sampling"].get("tasks", {})) <= set(config["tasks"])
    assert [tuple(size) for size in config["picture_sizes"]] == list(recipe.sizes)
