"""Window decoding gives plain decoding's answer token for token: text, several pictures, given panels, all families."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from lumina_core import AnswerFinished, PictureFinished, Sampling, generate, load
from lumina_core.sampling import text
from lumina_core.sampling.text import Drafts, Writer
from tests.core import checkpoints as ck

AR = Sampling(seed=11, cfg=3.0, temperature=1.0, image_top_k=0, text_top_k=4, decode="ar", max_tokens=200)
FAMILIES = ["mgpt1", "mgpt2", "pure"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = ck.build(tmp_path_factory.mktemp("families") / request.param, request.param)
    return load(folder)


def picture(side: int = 64) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(4))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def told(model, prompt, sampling) -> list:
    """All that a generation hands out: pictures' codes and answers' tokens."""
    out = []
    for event in generate(model.transformer, model.vocabulary, prompt, sampling):
        if isinstance(event, PictureFinished):
            out.append((event.index, event.grid.codes.tolist()))
        elif isinstance(event, AnswerFinished):
            out.append((event.index, event.tokens, event.reason))
    return out


def eager_to_draw(model, bias: float = 4.0):
    """The model with a head that begins pictures often, and text that repeats itself."""
    v = model.vocabulary
    never = [v.separator, v.image_end, v.row_end, *v.code_ids.tolist(), *v.grid.values()]
    return biased(model, {v.image_start: bias} | dict.fromkeys(never, -30.0))


def biased(model, by: dict[int, float]):
    """The model with a head that gives these tokens scores so much higher."""
    head = model.transformer.lm_head
    scores = torch.zeros(head.out_features)
    scores[list(by)] = torch.tensor(list(by.values()))
    return head.register_forward_hook(
        lambda _, __, out: out + scores if out.shape[-1] == len(scores) else out
    )


@pytest.mark.parametrize("window", [1, 4, 16, 32])
def test_a_picture_of_known_size_is_the_same_in_every_window(model, window):
    prompt = replace(model.converse(["a red circle"], size=(32, 64)), expects="image")
    for cfg, batch in ((3.0, 3), (0.8, 1), (1.0, 1)):
        plain = told(model, prompt, replace(AR, cfg=cfg, batch=batch))
        fast = told(model, prompt, replace(AR, cfg=cfg, batch=batch, decode="jacobi", window=window))
        assert plain == fast


@pytest.mark.parametrize(("seed", "decode"), [(0, "jacobi"), (2, "jacobi"), (2, "coupled")])
def test_text_is_the_same_in_windows(model, seed, decode):
    prompt = replace(model.converse(["what is this?"]), expects="text")
    plain = told(model, prompt, replace(AR, seed=seed, max_tokens=60))
    assert plain == told(model, prompt, replace(AR, seed=seed, max_tokens=60, decode=decode))
    assert len(plain[0][1]) > 1


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_an_answer_longer_than_the_room_it_began_with_goes_on_as_the_model_would(model, decode):
    v, prompt = model.vocabulary, replace(model.converse(["what is this?"]), expects="text")
    sampling = Sampling(seed=1, cfg=1.0, text_top_k=4, max_tokens=600, decode=decode)
    with biased(model, dict.fromkeys((v.separator, v.image_start), -1e4)):
        [(_, answer, reason)] = told(model, prompt, sampling)
        scores = model.transformer.scores(model.transformer(torch.tensor([[*prompt.tokens, *answer]]))[0])
    assert (len(answer), reason) == (600, "limit")
    likely = scores[len(prompt.tokens) - 1 :].topk(8).indices.tolist()
    assert all(token in eight for token, eight in zip(answer, likely, strict=False))


def test_several_pictures_in_an_answer_are_the_same_in_windows(model):
    prompt = replace(model.converse(["draw"], size=(64, 64)), expects="text_then_image")
    hook = eager_to_draw(model)
    try:
        plain = told(model, prompt, replace(AR, batch=2))
        fast = told(model, prompt, replace(AR, batch=2, decode="jacobi"))
    finally:
        hook.remove()
    assert plain == fast
    assert sum(len(entry) == 2 for entry in plain) >= 3


def test_given_panels_and_pictures_are_the_same_in_windows(model):
    tasks = {"mgpt1": "edit", "mgpt2": "control_depth"}
    task = tasks.get(model.family.id, model.tasks[0])
    prompt = model.prompt("a circle", task=task, images=[picture()], size=(64, 64))
    for cfg in (3.0, 0.8):
        sampling = replace(AR, cfg=cfg, max_tokens=160)
        assert told(model, prompt, sampling) == told(model, prompt, replace(sampling, decode="jacobi"))


@pytest.mark.parametrize("model", ["mgpt2"], indirect=True)  # the one family whose guidance decays
def test_guidance_that_decays_is_the_same_in_windows(model):
    prompt = model.prompt("a red circle", size=(64, 64))
    sampling = replace(AR, cfg=9.0, upstream_exact=True)
    plain = told(model, prompt, sampling)
    assert plain == told(model, prompt, replace(sampling, decode="jacobi", window=16))
    assert plain != told(model, prompt, replace(sampling, upstream_exact=False))


def test_drafts_go_on_where_the_newest_tokens_stood_before():
    drafts = Drafts()
    drafts.extend([1, 2, 3, 4, 9, 2, 5, 6, 1, 2])
    assert drafts.propose(3) == [3, 4, 9]  # behind "1 2", not behind the later "2"
    drafts.extend([7, 2])
    assert drafts.propose(3) == [7, 2]  # "7 2" is new: behind the last "2"
    drafts.left_over = [8, 8]
    assert drafts.propose(1) == [8]


class Fed:
    """Contexts whose transformer says the token after the one it was fed, counting up to `period`."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, period: int):
        self.period, self.passes = period, 0

    def peek_alone(self, tokens):
        self.passes += 1
        return ((tokens + 1) % self.period)[..., None].float()


def write(period: int, count: int) -> tuple[list[int], int]:
    fed = Fed(period)
    writer = Writer(fed, lambda hidden, place: hidden[:, 0].long().tolist(), True)
    said = [0]
    writer.drafts.extend(said)
    while len(said) < count:
        run = writer.run(len(said), count - len(said))
        writer.drafts.extend(run)
        said += run
    return said, fed.passes


def test_text_that_repeats_takes_far_fewer_passes_and_other_text_no_more():
    said, passes = write(10, 200)
    assert said == [i % 10 for i in range(200)]
    assert passes < 60
    said, passes = write(1000, 200)
    assert said == list(range(200))
    assert passes == 199


def test_drafts_that_do_not_pay_are_given_up(monkeypatch):
    """Every token fed takes a second here, and one draft in four holds."""
    rng, clock, widths = torch.Generator().manual_seed(0), [0.0], []

    class Slow(Fed):
        def peek_alone(self, tokens):
            clock[0] += tokens.shape[1]
            widths.append(tokens.shape[1])
            return torch.randint(0, 4, tokens.shape, generator=rng)[..., None].float()

    monkeypatch.setattr(text.time, "perf_counter", lambda: clock[0])
    writer = Writer(Slow(4), lambda hidden, place: hidden[:, 0].long().tolist(), True)
    writer.drafts.extend([0, 1, 2, 3])
    for n in range(300):
        writer.drafts.extend(writer.run(n, 1000))
    assert sum(w == 1 for w in widths) > 200


def test_in_16_bit_no_clock_decides_whether_text_is_drafted(monkeypatch):
    ways = []
    for seconds in (1.0, 1000.0):  # of a pass with drafts; one without takes a second
        clock, widths, rng = [0.0], [], torch.Generator().manual_seed(3)

        class Small(Fed):
            dtype = torch.bfloat16

            def peek_alone(self, tokens, clock=clock, widths=widths, rng=rng, seconds=seconds):
                clock[0] += seconds if tokens.shape[1] > 1 else 1.0
                widths.append(tokens.shape[1])
                return torch.randint(0, 2, tokens.shape, generator=rng)[..., None].float()

        monkeypatch.setattr(text.time, "perf_counter", lambda clock=clock: clock[0])
        writer = Writer(Small(2), lambda hidden, place: hidden[:, 0].long().tolist(), True)
        writer.drafts.extend([0, 1, 0, 1])
        for n in range(200):
            writer.drafts.extend(writer.run(n, 1000))
        ways.append(widths)
    assert ways[0] == ways[1]
    assert {1, 8} <= set(ways[0])
