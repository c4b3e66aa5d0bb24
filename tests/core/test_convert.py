"""One file of a whole checkpoint: the same picture for the same seed, verified, never half-written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lumina_core import (
    CheckpointError,
    InputError,
    PictureFinished,
    Sampling,
    families,
    generate,
    load,
    quant,
)
from lumina_core.convert import PRECISIONS, convert
from tests.core import checkpoints as ck

FAMILIES = ("mgpt1", "mgpt2", "pure")
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    top = tmp_path_factory.mktemp("originals")
    return {f: ck.build(top / f, f) for f in FAMILIES}


def draw(model) -> torch.Tensor:
    prompt = model.family.compose(
        model, ["a red circle", None], [], task="test", expects="image", units=(2, 2)
    )
    # 'auto' picks windows by time, and passes of another width round differently in 16 bit
    sampling = Sampling(seed=5, cfg=2.0, image_top_k=0, decode="ar")
    events = list(generate(model.transformer, model.vocabulary, prompt, sampling))
    [grid] = [e.grid for e in events if isinstance(e, PictureFinished)]
    return torch.from_numpy(model.decode(grid.codes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_a_converted_file_draws_the_same_picture(originals, tmp_path, family, precision):
    out = convert(originals[family], tmp_path / "any name.safetensors", precision)
    dtype = FLOATS.get(precision, torch.bfloat16)
    small = precision if precision in quant.FORMATS else None
    one, other = load(originals[family], dtype=dtype, quantise=small), load(out, dtype=dtype)
    assert other.family.id == family and other.name == one.name
    a, b = one.transformer.state_dict(), other.transformer.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n].float(), b[n].float()) and a[n].dtype == b[n].dtype for n in a)
    assert torch.equal(draw(one), draw(other))


def test_the_bundled_checkpoints_survive_a_round_trip(tmp_path):
    for name, folder in families.bundled().items():
        out = convert(folder, tmp_path / f"{name}.safetensors")
        assert torch.equal(draw(load(folder)), draw(load(out)))


def test_everything_is_inside_and_readable_by_the_safetensors_library(originals, tmp_path):
    out = convert(originals["mgpt2"], tmp_path / "x.safetensors", "bf16")
    with safe_open(out, "pt") as f:
        metadata, names = f.metadata(), set(f.keys())
    assert json.loads(metadata["lumina_mgpt"]) == {
        "format": 1,
        "family": "mgpt2",
        "precision": "bf16",
        "name": "mgpt2",
    }
    for key, file in (("config", "config.json"), ("tokenizer_config", "tokenizer_config.json")):
        assert json.loads(metadata[key]) == json.loads((originals["mgpt2"] / file).read_text())
    assert metadata["tokenizer"] == (originals["mgpt2"] / "tokenizer.json").read_text("utf-8")
    assert "vq.quantize.embedding.weight" in names and "lm_head.weight" in names
    assert not any(n.startswith("model.vqmodel") for n in names)
    assert families.listing([tmp_path]) == {"x.safetensors": out}
    assert load("x", folders=[tmp_path]).name == "mgpt2"


def test_int8_keeps_each_row_within_half_a_step_and_leaves_the_rest_alone(originals, tmp_path):
    state = load_file(convert(originals["mgpt2"], tmp_path / "x.safetensors", "int8"))
    stored = load_file(originals["mgpt2"] / "model-00001-of-00002.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    scale = state[name.replace(".weight", ".weight_scale")]
    assert state[name].dtype == torch.int8 and scale.shape == (48,) and scale.dtype == torch.float32
    error = (quant.restore(state[name], scale, torch.float32) - stored[name].float()).abs()
    assert bool((error <= scale[:, None] / 2 + 1e-6).all())
    small = {n for n, t in state.items() if t.dtype == torch.int8}
    assert len(small) == 2 * 7 and all("_proj.weight" in n for n in small)
    assert torch.equal(state["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    assert state["vq.quantize.embedding.weight"].dtype == torch.float32


def test_fp8_is_in_comfyuis_convention(originals, tmp_path):
    state = load_file(convert(originals["mgpt2"], tmp_path / "x.safetensors", "fp8"))
    layer = "model.layers.1.self_attn.q_proj"
    assert state[f"{layer}.weight"].dtype == torch.float8_e4m3fn
    assert (
        state[f"{layer}.weight_scale"].shape == () and state[f"{layer}.weight_scale"].dtype == torch.float32
    )
    assert json.loads(bytes(state[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}


def test_a_row_of_zeros_and_a_large_number_quantise_without_nan():
    weight = torch.tensor([[0.0, 0.0], [1e30, -1.0], [1e-30, 0.0]])
    for kind in quant.FORMATS:
        back = quant.restore(*quant.quantise(weight, kind), torch.float32)
        assert bool(back.isfinite().all()) and back[1, 0] == pytest.approx(1e30, rel=0.01)


def test_a_scaled_layer_computes_what_its_restored_weight_computes():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 8), torch.randn(3, 8)
    for kind in quant.FORMATS:
        small, scale = quant.quantise(weight, kind)
        layer = quant.scaled_linear(torch.nn.Linear)(6, 8, kind)
        layer.load_state_dict({"weight": small, "weight_scale": scale}, assign=True)
        expected = x @ quant.restore(small, scale, torch.float32).T
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_a_scaled_layer_uses_the_hosts_own_casting():
    class HostLinear(torch.nn.Linear):
        def forward(self, x):
            assert self.comfy_cast_weights
            return torch.nn.functional.linear(x, self.weight.to(x.dtype))

    layer = quant.scaled_linear(HostLinear)(2, 2, "int8")
    layer.load_state_dict(
        {"weight": torch.eye(2, dtype=torch.int8), "weight_scale": torch.tensor([2.0, 3.0])}, assign=True
    )
    assert layer(torch.ones(1, 2)).tolist() == [[2.0, 3.0]]


class CastingLinear(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


@pytest.mark.parametrize("base", [torch.nn.Linear, CastingLinear])
@pytest.mark.parametrize("kind", list(quant.FORMATS))
def test_a_scaled_layer_holds_in_fp16_what_fp16_can_hold(kind, base):
    """Outputs of 0.001 to 10,000, though the unscaled product leaves the range of fp16 at 20 (fp8) and 60 (int8)."""
    rng = torch.Generator().manual_seed(0)
    small, scale = quant.quantise(torch.randn(64, 4096, generator=rng) * 0.02, kind)
    layer = quant.scaled_linear(base)(64, 4096, kind)
    layer.load_state_dict({"weight": small, "weight_scale": scale}, assign=True)
    weight = quant.restore(small, scale, torch.float64)
    for size in (1e-3, 1.0, 20.0, 60.0, 3000.0):  # the root of the mean square of the output
        x = torch.randn(3, 4096, generator=rng).mul(size / (0.02 * 64)).half()
        x[1] *= torch.logspace(0, -3, 4096)  # some numbers far larger than others
        x[2] = 0
        got, expected = layer(x), x.double() @ weight.T
        assert got.dtype == torch.float16
        error = (got.double() - expected)[:2].norm(dim=1) / expected[:2].norm(dim=1)
        assert float(error.max()) < 1e-3
        assert not got[2].any()


@pytest.mark.parametrize("kind", list(quant.FORMATS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_layer_in_other_formats_is_the_product_and_then_the_scale(kind, dtype):
    rng = torch.Generator().manual_seed(0)
    small, scale = quant.quantise(torch.randn(16, 32, generator=rng), kind)
    layer = quant.scaled_linear(torch.nn.Linear)(16, 32, kind)
    layer.load_state_dict({"weight": small, "weight_scale": scale}, assign=True)
    x = torch.randn(3, 32, generator=rng).to(dtype)
    expected = (torch.nn.functional.linear(x, small.to(dtype)) * scale).to(dtype)
    assert torch.equal(layer(x), expected)


def test_progress_reaches_the_end_and_nothing_else_is_left(originals, tmp_path):
    seen = []
    convert(originals["pure"], tmp_path / "x.safetensors", report=lambda *a: seen.append(a))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_broken_off_conversion_leaves_nothing(originals, tmp_path):
    def stop(done, total):
        if done > total / 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(originals["mgpt1"], tmp_path / "x.safetensors", report=stop)
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_back_differently_is_not_kept(originals, tmp_path, monkeypatch):
    def damage(done, total):
        file = tmp_path / "x.safetensors.part"
        if done == total // 2:  # written, not yet checked
            with file.open("r+b") as f:
                f.seek(-1, 2)
                f.write(b"\x7f")

    with pytest.raises(CheckpointError, match="reads back differently"):
        convert(originals["mgpt2"], tmp_path / "x.safetensors", report=damage)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_said_before_any_work(originals, tmp_path):
    (tmp_path / "there.safetensors").write_bytes(b"")
    for out, precision, word in (
        ("x.ckpt", None, "must end in .safetensors"),
        ("there.safetensors", None, "exists"),
        ("no/x.safetensors", None, "does not exist"),
        ("x.safetensors", "int3", "bf16, fp16, int8, fp8"),
    ):
        with pytest.raises(InputError, match=word):
            convert(originals["mgpt1"], tmp_path / out, precision)


def test_a_quantised_file_is_not_quantised_again(originals, tmp_path):
    small = convert(originals["mgpt2"], tmp_path / "a.safetensors", "int8")
    with pytest.raises(InputError, match="int8 already"):
        convert(small, tmp_path / "b.safetensors", "fp8")
    again = convert(small, tmp_path / "c.safetensors")
    assert torch.equal(draw(load(small)), draw(load(again)))


def test_numbers_too_large_for_fp16_are_refused(tmp_path):
    folder = ck.build(tmp_path / "c", shards=1)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"][0, 0] = 1e5
    ck.save_shards(folder, state, 1)
    with pytest.raises(CheckpointError, match="'lm_head.weight' .*bf16"):
        convert(folder, tmp_path / "x.safetensors", "fp16")


def test_a_newer_format_asks_for_an_update(originals, tmp_path):
    out = convert(originals["mgpt2"], tmp_path / "x.safetensors")
    data = out.read_bytes()
    out.write_bytes(data.replace(b'\\"format\\": 1', b'\\"format\\": 2', 1))
    with pytest.raises(CheckpointError, match="format 2"):
        load(out)
