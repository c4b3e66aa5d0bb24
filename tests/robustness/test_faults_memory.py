"""Memory that runs out while loading, reading the prompt, drawing, decoding: told, cleared up, tried once more."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch

from lumina_core import LuminaError, OutOfMemoryError, Progress, TextPiece, generate, load
from lumina_core.shortage import ran_out, wanted
from lumina_core.vq.decoding import decode as decode_vq
from tests.core.test_engine_equal import eager_to_draw
from tests.robustness.workload import DRAWN, Failing, Watched, chat, draw, events, restore
from tests.robustness.workload import build_all as build

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB of which 0 is free."
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4503599627 bytes. Error code 12 (Cannot allocate memory)"
)
MPS = (
    "MPS backend out of memory (MPS allocated: 5.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB). Tried to "
    "allocate 512.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit."
)
DEVICES = {  # what each says: the error, and the bytes it names
    "cuda": (lambda: torch.cuda.OutOfMemoryError(CUDA), 2 << 30),
    "cpu": (lambda: RuntimeError(CPU), 4503599627),
    "mps": (lambda: RuntimeError(MPS), 512 << 20),
}
OTHERS = {
    "windows": (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1024 bytes."), 1024),
    "directml": (RuntimeError("Could not allocate tensor with 1048576 bytes. Not enough GPU video memory"), 1048576),
    "cublas": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    "driver": (RuntimeError("CUDA error: out of memory"), None),
    "numpy": (MemoryError("Unable to allocate 1.00 KiB for an array with shape (1024,)"), 1024),
    "system": (OSError(12, "Cannot allocate memory"), None),
}  # fmt: skip
ALWAYS = tuple(range(1, 5000))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return build(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def models(folders):
    return {family: Watched(load(folder, ops=Failing)) for family, folder in folders.items()}


@pytest.mark.parametrize("name", [*DEVICES, *OTHERS])
def test_every_device_is_understood(name):
    error, nbytes = OTHERS[name] if name in OTHERS else (DEVICES[name][0](), DEVICES[name][1])
    assert ran_out(error) and wanted(error) == nbytes


def test_other_faults_are_not_taken_for_it():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(28, ""),
    ):
        assert not ran_out(error)


def test_a_host_takes_it_for_torchs_own_error():
    """That is by what ComfyUI 0.3.64 and 0.24 unload their models (`execution.py`)."""
    assert issubclass(OutOfMemoryError, torch.cuda.OutOfMemoryError) and issubclass(
        OutOfMemoryError, LuminaError
    )


def calls_of(watched: Watched, job) -> tuple[object, int]:
    """What a job gives, and how often it calls a Linear."""
    with Failing.failing("Linear", (), MemoryError) as ops:
        return job(), ops.calls


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decode", ["ar", "jacobi", "coupled"])
@pytest.mark.parametrize("stage", ["reading the prompt", "drawing"])
def test_what_happened_is_said_and_nothing_is_left(models, device, decode, stage):
    watched, (error, nbytes) = models["mgpt2"], DEVICES[device]
    clean, calls = calls_of(watched, lambda: draw(watched, lambda: None, decode))
    first = 1 if stage == "reading the prompt" else calls // 2
    with (
        Failing.failing("Linear", (first, *range(first + 1, 5000)), error),
        pytest.raises(OutOfMemoryError) as held,
    ):
        draw(watched, lambda: None, decode)
    told = str(held.value)
    amount = f"{nbytes / 1e9:.1f} GB more were wanted"
    assert amount in told and "smaller" in told and "int8 or nf4" in told and "close other programs" in told
    # the second try, with one picture at a time, fails as soon as it begins
    assert "reading the prompt (" in told and "a 32x32 picture" in told
    assert not watched.cache_lives, "even while the error is held"
    assert draw(watched, lambda: None, decode) == clean


def test_no_room_for_the_cache_is_said(models):
    watched = models["mgpt2"]
    kept = watched.model.transformer.new_cache

    def none(*args):
        raise DEVICES["cuda"][0]()

    watched.model.transformer.new_cache = none
    try:
        with pytest.raises(
            OutOfMemoryError, match="making room for a 32x32 picture .2.1 GB more were wanted"
        ):
            draw(watched, lambda: None, "ar", batch=1)
    finally:
        watched.model.transformer.new_cache = kept


@pytest.mark.parametrize(
    ("decode", "batch", "ways"),
    [
        ("jacobi", 1, "one token a pass; the same"),
        ("jacobi", 2, "one token a pass, one picture at a time; the same"),
        ("ar", 2, "one picture at a time; the same"),
        ("coupled", 2, "one picture at a time; the same"),
    ],
)
def test_it_is_tried_once_more_in_a_smaller_way_with_the_same_picture(models, decode, batch, ways, caplog):
    watched = models["mgpt2"]
    clean, calls = calls_of(watched, lambda: draw(watched, lambda: None, decode, batch=batch))
    for at in (1, calls // 3, calls - 1):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING),
            Failing.failing("Linear", (at,), DEVICES["cuda"][0]) as ops,
        ):
            again = draw(watched, lambda: None, decode, batch=batch)
            assert ops.calls > at
        assert again == clean
        assert "Memory ran out while" in caplog.text and ways in caplog.text
        assert not watched.cache_lives


@pytest.mark.parametrize("decode", ["ar", "coupled"])
def test_where_no_way_is_smaller_it_is_not_tried_again(models, decode):
    watched = models["mgpt2"]
    with (
        Failing.failing("Linear", (5,), DEVICES["cuda"][0]) as ops,
        pytest.raises(OutOfMemoryError),
    ):
        draw(watched, lambda: None, decode, batch=1)
    assert ops.calls == 5


def test_progress_of_the_second_try_goes_once_from_nothing_to_all(models):
    watched = models["mgpt2"]
    model = watched.model
    prompt = replace(model.converse(["a red circle"], size=(64, 32)), expects="image")
    sampling = replace(DRAWN, batch=3, decode="ar")
    with Failing.failing("Linear", (60,), DEVICES["cuda"][0]):
        told = [
            (e.done, e.total)
            for e in generate(model.transformer, model.vocabulary, prompt, sampling)
            if isinstance(e, Progress)
        ]
    fell = next(i for i in range(1, len(told)) if told[i][0] <= told[i - 1][0])
    second = [done for done, _ in told[fell:]]
    assert second == sorted(second) and told[-1][0] == told[-1][1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_an_answer_goes_on_where_it_was(models, share):
    """Text that was handed out is not handed out again."""
    watched = models["mgpt1"]
    model = watched.model
    clean, calls = calls_of(watched, lambda: chat(watched, lambda: None))
    assert clean == chat(watched, lambda: None, "ar")
    prompt = replace(model.converse(["what is this?"]), expects="text")
    sampling = replace(DRAWN, cfg=1.0)

    def pieces() -> list[int]:
        heard = generate(model.transformer, model.vocabulary, prompt, sampling)
        return [t for e in heard if isinstance(e, TextPiece) for t in e.tokens]

    whole, calls = calls_of(watched, pieces)
    with Failing.failing("Linear", (1 + int(share * calls),), DEVICES["cuda"][0]):
        assert pieces() == whole
    assert not watched.cache_lives


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.85])
def test_an_answer_with_pictures_goes_on_where_it_was(models, share):
    watched = models["mgpt1"]
    model = watched.model
    prompt = replace(model.converse(["draw"], size=(32, 32)), expects="text_then_image")
    sampling = replace(DRAWN, cfg=3.0, max_tokens=60)
    hook = eager_to_draw(model)
    try:
        clean, calls = calls_of(watched, lambda: events(model, prompt, sampling, lambda: None))
        assert len(clean) > 2
        with Failing.failing("Linear", (int(share * calls),), DEVICES["cuda"][0]):
            assert events(model, prompt, sampling, lambda: None) == clean
    finally:
        hook.remove()


def test_a_restoration_is_the_same_when_memory_ran_out_once(models):
    watched = models["pure"]
    clean, calls = calls_of(watched, lambda: restore(watched, lambda: None))
    for at in (calls // 10, calls // 2, calls - 1):
        with Failing.failing("Linear", (at,), DEVICES["cuda"][0]):
            assert restore(watched, lambda: None) == clean
        assert not watched.cache_lives


@pytest.mark.parametrize("device", DEVICES)
def test_decoding_goes_on_in_tiles_and_says_that_they_may_show(models, device, caplog):
    vq = models["mgpt2"].model.vq
    codes = torch.randint(0, 64, (1, 6, 20), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        clean = decode_vq(vq, codes)
        with Failing.failing("Conv2d", (9,), DEVICES[device][0]), caplog.at_level(logging.WARNING):
            tiled = decode_vq(vq, codes)
        assert "too little memory" in caplog.text and "may show faint seams" in caplog.text
        assert tiled.shape == clean.shape and not torch.equal(tiled, clean)
        with Failing.failing("Conv2d", ALWAYS, DEVICES[device][0]), pytest.raises(OutOfMemoryError) as held:
            decode_vq(vq, codes)
        assert "160x48 picture, even in tiles" in str(held.value) and "decode on the CPU" in str(held.value)
        assert torch.equal(decode_vq(vq, codes), clean)


def test_encoding_says_it(models):
    model = models["mgpt2"].model
    from tests.robustness.workload import picture

    clean = model.encode(picture())
    with (
        Failing.failing("Conv2d", ALWAYS, DEVICES["mps"][0]),
        pytest.raises(OutOfMemoryError, match="encoding a 64x64 picture .*smaller picture"),
    ):
        model.encode(picture())
    assert torch.equal(model.encode(picture()).codes, clean.codes)


@pytest.mark.parametrize("device", DEVICES)
def test_a_load_that_does_not_fit_leaves_no_half_of_a_model(folders, device):
    gc.collect()
    before = len(Failing.made)
    with Failing.failing("filling", (6,), DEVICES[device][0]), pytest.raises(OutOfMemoryError) as held:
        load(folders["mgpt2"], ops=Failing)
    told = str(held.value)
    assert (
        "loading 'mgpt2'" in told and "onto cpu" in told and "int8" in told and "GB more were wanted" in told
    )
    del held
    gc.collect()
    assert len(Failing.made) == before
    watched = Watched(load(folders["mgpt2"], ops=Failing))
    assert draw(watched, lambda: None, "jacobi") == draw(
        Watched(load(folders["mgpt2"], ops=Failing)), lambda: None, "ar"
    )


def test_a_model_that_is_given_up_is_gone(folders):
    model = load(folders["mgpt2"])
    watched = Watched(model)
    draw(watched, lambda: None, "jacobi")
    gone = [weakref.ref(model.transformer), weakref.ref(model.vq), *watched.tables]
    del model, watched
    gc.collect()
    assert not any(ref() is not None for ref in gone)
