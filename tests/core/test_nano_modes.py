"""On the bundled checkpoints: jacobi draws plain decoding's pictures, in far fewer passes at the default settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from lumina_core import Answered, PictureFinished, bundled, generate, load, settings
from lumina_core.bench import measure, text_prompt

SIZE, SMALL = (64, 64), (64, 32)
TEXT = "a red circle on the left and a blue square on the right, white background"


@pytest.fixture(scope="module", params=sorted(bundled()))
def model(request):
    return load(request.param)


def pictures(model, sampling, size=SIZE) -> list[torch.Tensor]:
    prompt = text_prompt(model, TEXT, size)
    events = generate(model.transformer, model.vocabulary, prompt, sampling)
    return [e.grid.codes for e in events if isinstance(e, PictureFinished)]


@pytest.mark.parametrize(
    ("cfg", "batch", "size"),
    [(3.0, 3, SIZE), (0.8, 1, SIZE), (1.0, 1, SIZE), (3.0, 1, SMALL), (0.8, 3, SMALL), (1.0, 3, SMALL)],
)
def test_every_window_draws_the_picture_of_plain_decoding(model, cfg, batch, size):
    sampling = settings(model, cfg=cfg, batch=batch, seed=5)
    plain = pictures(model, replace(sampling, decode="ar"), size)
    for window in (1, 4, 16, 32, None):
        fast = pictures(model, replace(sampling, decode="jacobi", window=window), size)
        assert len(plain) == len(fast) == batch and all(map(torch.equal, plain, fast)), window


@pytest.mark.parametrize("model", ["nano-mgpt2"], indirect=True)
@pytest.mark.parametrize("window", [12, 16, 32])
def test_jacobi_needs_at_least_two_and_a_half_times_fewer_passes(model, window):
    prompt = text_prompt(model, TEXT, SIZE)

    def passes(**mode) -> int:
        return sum(measure.draw(model, prompt, settings(model, seed=s, **mode)).passes for s in range(3))

    assert passes(decode="ar") >= 2.5 * passes(decode="jacobi", window=window)


@pytest.mark.parametrize("colour", ["red", "lime", "orange"])
def test_a_plain_picture_is_described_in_words_alike_in_both_modes(colour):
    model = load("nano-mgpt1")
    prompt = model.prompt("", task="describe", images=[Image.new("RGB", (64, 64), colour)])
    texts = []
    for decode in ("ar", "jacobi"):
        answer = Answered(model)
        for event in generate(
            model.transformer, model.vocabulary, prompt, settings(model, "describe", decode=decode)
        ):
            answer.note(event)
        texts.append(answer.text)
    assert texts[0] == texts[1]
    assert 0 < len(texts[0]) < 600 and "IMGIMG" not in texts[0]
