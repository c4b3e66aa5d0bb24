"""LoRA files: read under both names, added exactly, refused in words when they do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumina_core import CheckpointError, InputError, PictureFinished, Sampling, generate, load, read_lora
from lumina_core.cli import main
from lumina_core.quant import restore, round_by_chance

Q, UP, EMBED = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.embed_tokens"
RANK = 4


def matrices(rows: int, columns: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """up (rows, rank) and down (rank, columns)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, RANK, generator=generator), torch.randn(RANK, columns, generator=generator)


def peft(folder, transformer, layers=(Q, UP), alpha=2.0, **config):
    """A LoRA of random matrices as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    state = {}
    for i, name in enumerate(layers):
        up, down = matrices(*transformer.get_submodule(name).weight.shape, seed=i)
        state[f"base_model.model.{name}.lora_A.weight"] = down
        state[f"base_model.model.{name}.lora_B.weight"] = up
    save_file(state, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def kohya(file, transformer, layers=(Q, UP), alpha=2.0, prefix="lora_unet_"):
    """The same LoRA as kohya's scripts save it."""
    state = {}
    for i, name in enumerate(layers):
        up, down = matrices(*transformer.get_submodule(name).weight.shape, seed=i)
        flat = prefix + name.replace(".", "_")
        state |= {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}
        state[f"{flat}.alpha"] = torch.tensor(alpha)
    save_file(state, file)
    return file


@pytest.fixture
def model(tiny_folder):
    return load(tiny_folder)


def draw(model) -> torch.Tensor:
    sampling = Sampling(seed=3, cfg=2.0, image_top_k=50)
    events = generate(
        model.transformer, model.vocabulary, model.prompt("a red circle", size=(64, 64)), sampling
    )
    return next(e.grid.codes for e in events if isinstance(e, PictureFinished))


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_te_", "lora_transformer_", "lora_"])
def test_both_ways_of_naming_are_the_same_lora(model, tmp_path, prefix):
    one = read_lora(peft(tmp_path / "style", model.transformer), model.transformer)
    two = read_lora(
        kohya(tmp_path / "style.safetensors", model.transformer, prefix=prefix), model.transformer
    )
    assert one.name == two.name == "style"
    assert one.deltas.keys() == two.deltas.keys() == {Q, UP}
    for name, delta in one.deltas.items():
        assert torch.equal(delta.of(1, torch.device("cpu")), two.deltas[name].of(1, torch.device("cpu")))


@pytest.mark.parametrize("between", [".lora_", ".lora.", "_lora."])
def test_other_spellings_and_convolutions_of_one_pixel_are_the_same_lora(model, tmp_path, between):
    one = kohya(tmp_path / "one.safetensors", model.transformer)
    other = {
        name.replace(".lora_", between): tensor[..., None, None] if tensor.ndim == 2 else tensor
        for name, tensor in load_file(one).items()
    }
    save_file(other, tmp_path / "two.safetensors")
    one, two = (read_lora(tmp_path / f"{n}.safetensors", model.transformer).deltas for n in ("one", "two"))
    assert one.keys() == two.keys() == {Q, UP}
    assert all(torch.equal(one[name].of(1, "cpu"), two[name].of(1, "cpu")) for name in one)


def test_the_weight_becomes_what_the_paper_says_and_goes_back(model, tmp_path):
    before = model.transformer.get_submodule(Q).weight.clone()
    untouched = model.transformer.get_submodule("model.layers.0.self_attn.q_proj").weight.clone()
    lora = read_lora(peft(tmp_path / "style", model.transformer), model.transformer)
    lora.merge(model.transformer, 0.5)
    up, down = matrices(*before.shape, seed=0)
    assert torch.allclose(
        model.transformer.get_submodule(Q).weight, before + 0.5 * 2.0 / RANK * up @ down, atol=1e-5
    )
    assert torch.equal(model.transformer.get_submodule("model.layers.0.self_attn.q_proj").weight, untouched)
    lora.merge(model.transformer, -0.5)
    assert torch.allclose(model.transformer.get_submodule(Q).weight, before, atol=1e-5)


def test_it_changes_the_picture(model, tmp_path):
    before = draw(model)
    read_lora(peft(tmp_path / "style", model.transformer), model.transformer).merge(model.transformer)
    assert not torch.equal(draw(model), before)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2 / RANK),
        ({"use_rslora": True}, 2 / RANK**0.5),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 8}}, 8 / RANK),
    ],
)
def test_the_scale_is_the_configuration_s(model, tmp_path, config, scale):
    lora = read_lora(peft(tmp_path / "style", model.transformer, **config), model.transformer)
    assert lora.deltas[Q].scale == pytest.approx(scale)
    assert lora.deltas[UP].scale == pytest.approx(2 / RANK**0.5 if "use_rslora" in config else 2 / RANK)


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        (r".*\.layers\.(0|1)\..*q_proj", {Q}),
        (r"^model\.layers\.(?:0|1)\.self_attn\.q_proj", {Q}),
        (r"^layers\.(?:0|1)\.self_attn\.q_proj", set()),
        (r"layers\.\d+\..*(up|down)_proj", {UP}),
        (rf".*\.layers\.({'|'.join(map(str, range(48)))})\..*_proj", {Q, UP}),
        (r".*layers.*attn.*", {Q}),
    ],
)
def test_layers_are_named_by_the_patterns_that_peft_takes(model, tmp_path, pattern, changed):
    lora = read_lora(
        peft(tmp_path / "style", model.transformer, alpha_pattern={pattern: 16}), model.transformer
    )
    assert {name for name, delta in lora.deltas.items() if delta.scale == 16 / RANK} == changed


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (["(a+)+x"], "the pattern '(a+)+x' in 'alpha_pattern' is none that names layers"),
        ([".*.*.*.*x"], "is none that names layers"),
        (["(?:.*a)*x"], "is none that names layers"),
        (["(.|.)" * 40 + "x"], "would be searched for too long"),
        ([f".*.*.*{i}" for i in range(900)], "would be searched for too long"),
    ],
)
def test_patterns_that_would_be_searched_for_without_end_are_refused(model, tmp_path, patterns, says):
    style = peft(tmp_path / "style", model.transformer, alpha_pattern=dict.fromkeys(patterns, 16))
    with pytest.raises(CheckpointError) as caught:
        read_lora(style, model.transformer)
    assert says in str(caught.value) and "adapter_config.json" in str(caught.value)


def test_without_a_configuration_alpha_is_the_rank(model, tmp_path):
    folder = peft(tmp_path / "style", model.transformer)
    (folder / "adapter_config.json").unlink()
    assert read_lora(folder, model.transformer).deltas[Q].scale == 1


def test_embeddings_can_be_changed(model, tmp_path):
    rows, columns = model.transformer.get_submodule(EMBED).weight.shape
    up, down = matrices(rows, columns)
    file = tmp_path / "words.safetensors"
    key = f"base_model.model.{EMBED}.lora_embedding"
    save_file({f"{key}_A": up.T.contiguous(), f"{key}_B": down.T.contiguous()}, file)
    before = model.transformer.get_submodule(EMBED).weight.clone()
    read_lora(file, model.transformer).merge(model.transformer)
    assert torch.allclose(model.transformer.get_submodule(EMBED).weight, before + up @ down, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_small_layers_take_it_too(tiny_folder, tmp_path, kind):
    model, plain = load(tiny_folder, quantise=kind), load(tiny_folder)
    lora = read_lora(peft(tmp_path / "style", plain.transformer), model.transformer)
    small = model.transformer.get_submodule(Q)
    before, change = restore(small.weight, small.weight_scale, torch.float32), lora.deltas[Q].of(1, "cpu")
    patch = lora.tensors(model.transformer)
    units = patch[f"{Q}.lora_up.weight"] @ patch[f"{Q}.lora_down.weight"] * (patch[f"{Q}.alpha"] / RANK)
    patched = restore(small.weight.float() + units, small.weight_scale, torch.float32)
    assert torch.allclose(patched, before + change, atol=1e-4), "a host adds in the small numbers' units"
    lora.merge(model.transformer)
    after = restore(small.weight, small.weight_scale, torch.float32)
    step = {"int8": 1 / 127, "fp8": 1 / 16}[kind]
    assert (after - before - change).abs().max() <= step * (before + change).abs().max()


@pytest.mark.parametrize(("kind", "dtype"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_rounding_by_chance_keeps_the_mean_and_the_limits(kind, dtype):
    numbers = torch.full((20000,), 10.3)
    small = round_by_chance(numbers, kind, 5)
    assert small.dtype == dtype and torch.equal(small.float(), round_by_chance(numbers, kind, 5).float())
    assert small.float().mean().item() == pytest.approx(10.3, abs=0.02)
    assert not torch.equal(small.float(), round_by_chance(numbers, kind, 6).float())
    most = 127 if kind == "int8" else 448
    ends = round_by_chance(torch.tensor([1e4, -1e4, 0.0, 1.0]), kind, 0).float()
    assert ends.tolist() == [most, -most, 0, 1]
    exact = torch.arange(-127, 128).to(dtype).float()
    assert torch.equal(round_by_chance(exact, kind, 1).float(), exact), "what is there already stays"


def spoil(state: dict, how: str) -> dict:
    q = f"base_model.model.{Q}"
    if how == "shape":
        state[f"{q}.lora_A.weight"] = torch.zeros(RANK, 4096)
    elif how == "rank":
        state[f"{q}.lora_A.weight"] = torch.zeros(RANK + 1, 32)
    elif how == "half":
        del state[f"{q}.lora_B.weight"]
    elif how == "layer":
        state = {k.replace("layers.1", "layers.77"): v for k, v in state.items()}
    elif how == "other":
        key = "lora_unet_input_blocks_1_1_proj_in"
        state = {f"{key}.lora_up.weight": torch.zeros(8, 4), f"{key}.lora_down.weight": torch.zeros(4, 8)}
    elif how == "dora":
        state[f"{q}.lora_magnitude_vector"] = torch.zeros(32)
    elif how == "whole":
        state = {"model.embed_tokens.weight": torch.zeros(8, 8)}
    return state


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("shape", f"made for another model: 'base_model.model.{Q}.lora_A.weight' [4, 4096]"),
        ("rank", "do not change a weight of [32, 32]"),
        ("half", f"'base_model.model.{Q}.lora_A.weight' lacks its other half"),
        ("layer", "it has no place for 'base_model.model.model.layers.77"),
        ("other", "it has no place for 'lora_unet_input_blocks_1_1_proj_in.lora_"),
        ("dora", f"holds 'base_model.model.{Q}.lora_magnitude_vector'; plain LoRA"),
        ("whole", "it has no place for 'model.embed_tokens.weight'"),
        ("empty", "it has no tensors"),
    ],
)
def test_a_wrong_lora_is_refused_by_its_keys(model, tmp_path, how, says):
    state = {}
    for name in () if how == "empty" else (Q, UP):
        up, down = matrices(*model.transformer.get_submodule(name).weight.shape)
        state |= {
            f"base_model.model.{name}.lora_A.weight": down,
            f"base_model.model.{name}.lora_B.weight": up,
        }
    save_file(spoil(state, how), tmp_path / "wrong.safetensors")
    before = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    with pytest.raises(CheckpointError) as e:
        read_lora(tmp_path / "wrong.safetensors", model.transformer)
    assert says in str(e.value) and "wrong.safetensors" in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.transformer.state_dict().items())


def test_what_is_no_file_is_said(model, tmp_path):
    (tmp_path / "notes.txt").write_text("no LoRA")
    for path, says in (
        ("nowhere.safetensors", "There is no LoRA"),
        ("notes.txt", "is no LoRA file"),
        ("", "holds no"),
    ):
        with pytest.raises(InputError, match=says):
            read_lora(tmp_path / path, model.transformer)


def test_the_command_line_stacks_them(tiny_folder, model, tmp_path, capsys):
    from PIL import Image

    style = str(kohya(tmp_path / "style.safetensors", model.transformer))
    words = ["generate", "a red circle", "--model", str(tiny_folder), "--size", "64x64", "--device", "cpu"]

    def picture(name: str, *options: str) -> bytes:
        assert main([*words, "--out", str(tmp_path / name), *options]) == 0
        return Image.open(tmp_path / name).tobytes()

    plain = picture("plain.png")
    assert picture("with.png", "--lora", style) != plain
    assert picture("none.png", "--lora", f"{style}:0.5", "--lora", f"{style}:-0.5") == plain
    assert main([*words, "--out", str(tmp_path / "x.png"), "--lora", "nowhere.safetensors:0.5"]) == 2
    assert "There is no LoRA 'nowhere.safetensors'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--lora", f"{style}:nan"])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_lora_on_the_weights_does_not_change_how_the_next_is_read(tiny_folder, tmp_path, kind):
    transformer = load(tiny_folder, quantise=kind).transformer
    lora = read_lora(peft(tmp_path / "style", transformer), transformer)
    before, layer = lora.tensors(transformer), transformer.get_submodule(Q)
    layer.set_weight(layer.weight.float() * 9)
    assert layer.weight.dtype == torch.float16, "too large for small numbers, so kept in 16 bit"
    assert all(torch.equal(before[name], tensor) for name, tensor in lora.tensors(transformer).items())
