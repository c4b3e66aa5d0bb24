"""The loader against the true names and shapes of the released files, on the `meta` device."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lumina_core import families, inspection, memory, weights
from lumina_core.checkpoint import Checkpoint, sizes_from_shapes, transformer_config
from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.weights import Entry

DATA = Path(__file__).parent.parent / "data" / "layouts"
TRANSFORMERS = ("chameleon_7b", "chameleon_34b", "lumina2_7b", "pure_7b")
VQS = {"vq_chameleon": "mgpt1", "vq_movqgan": "mgpt2", "vq_llamagen": "pure"}


def layout(name: str) -> dict:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def found(config: dict, shapes: dict, **extra) -> Checkpoint:
    entries = {
        n: Entry(Path("model.safetensors"), tuple(s), torch.bfloat16) for n, s in (shapes | extra).items()
    }
    return Checkpoint(Path("x"), "x", config, "config.json", entries)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_transformer_has_the_tensors_of_the_released_file_and_no_other(name):
    data = layout(f"transformer_{name}")
    config = transformer_config(found(data["config"] | {"max_position_embeddings": 4096}, data["keys"]))
    with torch.device("meta"):
        model = Transformer(config, weights.Bare)
    assert weights.shapes_in(model) == {n: tuple(s) for n, s in data["keys"].items()}
    assert sum(p.numel() for p in model.parameters()) == data["params"] == sum(memory.parameters(config))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_sizes_the_configuration_leaves_out_are_read_from_the_tensors(name):
    data = layout(f"transformer_{name}")
    short = {"max_position_embeddings": 4096, "swin_norm": data["config"]["swin_norm"]}
    config = asdict(transformer_config(found(short, data["keys"])))
    assert config | data["config"] == config


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_encoder_only_image_tokenizer_inside_is_ignored(name):
    data = layout(f"transformer_{name}")
    inside = found(data["config"], data["keys"], **{"model.vqmodel.encoder.conv_in.weight": (128, 3, 3, 3)})
    missing, unexpected, wrong = weights.compare(data["keys"], inside.entries)
    assert (missing, unexpected, wrong) == ([], ["model.vqmodel.encoder.conv_in.weight"], [])


@pytest.mark.parametrize("name,family", VQS.items())
def test_an_image_tokenizer_is_recognised_by_its_tensors_and_fits_them(name, family):
    data = layout(name)
    entries = {n: Entry(Path("any-name.bin"), tuple(s), torch.float32) for n, s in data["keys"].items()}
    owner = families.family_of_vq(entries)
    assert owner.id == family
    config, expected = inspection._vq_sizes(owner, entries)
    assert config == memory.PUBLISHED_VQ[family]
    missing, unexpected, wrong = weights.compare(expected, entries)
    assert not missing and not wrong
    assert set(unexpected) <= {"quantize.codebook_used"}
    assert sum(torch.Size(s).numel() for s in expected.values()) == data["params"]
    assert memory.PUBLISHED_VQ_PARAMETERS[family] == data["params"]


@pytest.mark.parametrize("hidden,mlp,variant", [(4096, 11008, "7B"), (2048, 8192, "2B")])
def test_the_published_sizes_of_2_0_make_a_transformer(hidden, mlp, variant):
    config = TransformerConfig.from_json(
        {
            "vocab_size": 171385,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 10240,
            "rope_theta": 10000,
        }
    )
    with torch.device("meta"):
        shapes = weights.shapes_in(Transformer(config, weights.Bare))
    assert shapes["lm_head.weight"] == (171385, hidden)
    assert shapes["model.layers.31.mlp.down_proj.weight"] == (hidden, mlp)
    sizes = {field: value for field, (value, _) in sizes_from_shapes(shapes).items()}
    assert asdict(config) | sizes == asdict(config)
    assert inspection.variant(config) == variant


def test_theta_is_found_where_newer_transformers_write_it():
    data = layout("transformer_chameleon_7b")
    config = data["config"] | {"max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 500.0}}
    assert transformer_config(found(config, data["keys"])).rope_theta == 500.0
