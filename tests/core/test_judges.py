"""Every judge takes the truth and tells right from wrong; limits are of the examples judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lumina_core import load
from lumina_core.boxes import Box
from lumina_core.training import edits, maps, measures, questions, world
from lumina_core.training.evaluate import ceilings
from lumina_core.training.examples import MAKERS, example
from lumina_core.training.figures import JUDGES, Outcome, judged

SIZE = (64, 64)
COUNT = 24
SCENES = [world.scene("held-out", n, *((64, 64), (128, 128), (160, 96))[n % 3]) for n in range(20)]


def truth(kind: str, count: int = COUNT) -> list[Outcome]:
    done = [example(kind, "held-out", n, (128, 128)) for n in range(count)]
    return [Outcome(e, e.drawn, e.truth[-1] if e.truth else "") for e in done]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_every_judge_takes_the_truth_and_refuses_what_belongs_to_another_example(kind):
    right, done = JUDGES[kind](kind, truth(kind)), truth(kind)
    shifted = [
        Outcome(a.example, b.panels, b.text) for a, b in zip(done, [*done[5:], *done[:5]], strict=True)
    ]
    if kind.startswith("pair_"):  # the map of another picture
        shifted = [
            Outcome(a.example, (a.panels[0], b.panels[1]), b.text)
            for a, b in zip(done, [*done[5:], *done[:5]], strict=True)
        ]
    wrong = JUDGES[kind](kind, shifted)
    nothing = JUDGES[kind](kind, [Outcome(o.example, (), "") for o in done])
    goals = [i for i, f in enumerate(right) if f.goal is not None]
    assert all(right[i].met for i in goals), [f for f in right if not f.met]
    if goals:
        assert not all(wrong[i].met for i in goals), wrong
        assert not all(nothing[i].met for i in goals), nothing
    else:
        last = right[-1]
        assert last.value > 0.9
        assert wrong[-1].value < 0.75 * last.value
        assert nothing[-1].value < 0.5


def test_judges_refuse_near_misses():
    for n, s in enumerate(SCENES):
        e = edits.edit(s, np.random.default_rng([5, n]))
        assert measures.lands(e, world.picture(e.after))
        assert not measures.lands(e, world.picture(e.before))
        assert not measures.unrelated_change(e, world.picture(e.after))
        others = [x for x in e.after.objects if x is not e.new]
        other_colours = {x: replace(x, colour="red" if x.colour != "red" else "blue") for x in others}
        swept_along = replace(e.after, objects=tuple(other_colours.get(x, x) for x in e.after.objects))
        assert measures.others_kept(e, world.picture(e.after)) == [True] * len(others)
        assert measures.others_kept(e, world.picture(swept_along)) == [False] * len(others)
        o = s.objects[0]
        moved = replace(s, objects=(replace(o, x=o.x + 9, y=o.y), *s.objects[1:]))
        joints, total = measures.keypoints_found(s, maps.pose(moved))
        assert joints <= total - 3
        words = questions.describe(s)
        assert measures.names_every_object(s, words)
        assert not measures.names_every_object(
            s, words.replace(o.colour, "red" if o.colour != "red" else "blue")
        )
        assert not measures.names_every_object(s, words + " and a cyan cross and a cyan cross")
        wide = replace(o, radius=o.radius * 1.6)
        box = Box(*world.boxes(replace(s, objects=(wide,)))[0])
        assert box.overlap(Box(*world.boxes(s)[0])) < measures.OVERLAP


def test_a_map_of_the_bare_ground_is_told_from_one_of_the_shapes():
    for kind, name, bare, good in (
        ("normals", "mean angle error on the shapes", 20, 3),
        ("segment", "mean IoU of the shapes alone", 0, 0.95),
    ):
        done = truth(kind)
        bare_ground = [replace_panel(o, np.broadcast_to(o.picture[0, 0], o.picture.shape)) for o in done]
        [right] = [f for f in JUDGES[kind](kind, done) if f.name == name]
        [none] = [f for f in JUDGES[kind](kind, bare_ground) if f.name == name]
        if kind == "normals":
            assert right.value < good and none.value > bare
        else:
            assert right.value > good and none.value == bare


def replace_panel(o: Outcome, picture: np.ndarray) -> Outcome:
    return Outcome(o.example, (*o.panels[:-1], np.ascontiguousarray(picture)), o.text)


def test_keypoints_beside_a_picture_fit_it_only_if_every_shape_has_all_of_them():
    for o in truth("pair_pose"):
        picture, joints = o.panels
        assert measures.agreement("pose", picture, joints) > 0.95
        reds_only = joints * np.array([1, 0, 0], np.uint8)
        assert measures.agreement("pose", picture, reds_only) < 0.6
        assert measures.agreement("pose", picture, np.full_like(joints, 255)) == 0
        assert measures.agreement("pose", picture, np.zeros_like(joints)) == 0


def test_views_are_two_pictures_and_the_second_is_mirrored():
    done = [o for o in truth("views", 40) if not np.array_equal(*o.panels)]
    twice = [Outcome(o.example, (o.panels[0],) * 2, "") for o in done]
    once = [Outcome(o.example, o.panels[:1], "") for o in done]
    for wrong in (twice, once):
        colour, shape, two = judged("views", wrong)
        assert not colour.met
        assert not shape.met
        assert two.value == float(wrong is twice)


def test_nothing_is_said_of_what_no_example_has():
    still = [o for o in truth("edit") if o.example.edit is None][:2] or [
        Outcome(replace(o.example, edit=None), o.panels, o.text) for o in truth("edit")[:2]
    ]
    assert [f.name for f in judged("edit", still)] == ["picture kept when nothing is to change"]


def test_the_limit_is_of_the_examples_judged_and_of_pictures_only():
    model = load("nano-mgpt1")
    pools = [("depth", (128, 128)), ("depth", (192, 128)), ("question", (128, 128))]
    [limit] = ceilings(pools, model, 3)
    assert (limit.task, limit.count) == ("depth", 3)
    scenes = [
        world.scene("held-out", n, *size) for n, size in ((0, (128, 128)), (1, (192, 128)), (2, (128, 128)))
    ]
    maps_seen = [
        model.decode(model.encode(Image.fromarray(maps.map_picture(s, "depth"))).codes) for s in scenes
    ]
    errors = [measures.depth_error(s, seen) for s, seen in zip(scenes, maps_seen, strict=True)]
    assert limit.value == pytest.approx(np.mean(errors), abs=1e-3)
