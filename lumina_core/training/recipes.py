"""What each bundled checkpoint is made of: data, sizes, tasks and their weights, settings of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..families.base import Family
from ..families.mgpt1 import Mgpt1
from ..families.mgpt2 import Mgpt2
from ..families.pure import Pure
from ..vq.blocks import VQConfig
from ..vq.chameleon import ChameleonVQ
from ..vq.llamagen import LlamaGenVQ
from ..vq.movq import MoVQ
from .batches import Phase
from .dataset import Pool
from .looking import LookBack
from .same_codes import on_the_sphere, one_level_finer
from .transformer import TransformerRecipe
from .vq import VQRecipe

SQUARE, WIDE, TALL = (64, 64), (96, 64), (64, 96)
BIG_SQUARE, BIG_WIDE, BIG_TALL = (128, 128), (192, 128), (128, 192)
IN_SQUARE, IN_WIDE, IN_TALL = (8, 8), (12, 8), (8, 12)  # codes across and down of either


@dataclass(frozen=True)
class Recipe:
    """One bundled checkpoint from nothing to its folder."""

    name: str
    family: Family
    make_vq: Callable[[VQConfig], nn.Module]
    vq_file: str
    vq: VQConfig
    vq_training: VQRecipe
    examples: dict[Pool, int]  # how many of each kind and size are encoded
    words: int
    training: TransformerRecipe
    hidden: int = 224  # alike in all, so that a checkpoint may start from another's transformer
    intermediate: int = 576
    layers: int = 5
    heads: int = 7
    positions: int = 1024
    sampling: Mapping = field(default_factory=dict)  # what a checkpoint this small draws best with
    looks_back: tuple[LookBack, ...] = ()  # with any, every head has norms of its own for queries and keys
    begins_as: Callable[[nn.Module, nn.Module], None] | None = None  # takes over another family's codes
    more_vq_training: VQRecipe | None = None  # of a tokenizer taken from another checkpoint

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Panel sizes that pictures are drawn at."""
        return tuple(dict.fromkeys(size for _, size in self.examples))


def _phases(*parts: tuple[int, Mapping[Pool, float]]) -> tuple[Phase, ...]:
    return tuple(Phase(until, dict(weights)) for until, weights in parts)


def _looking(between: int, *heads: tuple[int, int, tuple[int, int], int, int]) -> tuple[LookBack, ...]:
    """Heads that look back at the picture given, where the code that is drawn stands or beside it.

    Each is (layer, head, (codes across, codes down), rows below, codes to the right); `between` is how many tokens
    there are from a picture's last row end to the one before the first code that is drawn, less one.
    """
    return tuple(
        LookBack(layer, head, h * (w + 1) + between - down * (w + 1) - right)
        for layer, head, (w, h), down, right in heads
    )


# What stands at the same place seldom tells the shape that begins there; what stands below and beside it does.
ALL_ROUND = (
    (0, 0, IN_SQUARE, 2, 0),
    *((1, head, IN_SQUARE, *to) for head, to in enumerate(((0, 0), (1, 0), (0, 1)))),
    *((2, head, shape, 0, 0) for head, shape in enumerate((IN_SQUARE, IN_WIDE, IN_TALL))),
    (2, 5, IN_SQUARE, 1, 1),
    *((3, head, shape, 1, 0) for head, shape in ((3, IN_WIDE), (4, IN_TALL), (5, IN_SQUARE))),
)

MGPT1_KINDS = {  # kind -> weight in the mixture
    "text_to_image": 0.15,
    "depth": 0.01,
    "segment": 0.19,
    "normals": 0.015,
    "pose": 0.15,
    "detect": 0.15,
    "edit": 0.28,
    "control": 0.03,
    "describe": 0.03,
    "question": 0.07,
    "yes or no": 0.1,
    "second question": 0.03,
    "conversation": 0.09,
    "later picture": 0.14,
    "several pictures": 0.26,
    "views": 0.12,
}
SHAPED = ("text_to_image", "depth", "segment", "normals", "pose")  # kinds also made at other aspect ratios
# These show no maps.
WORDED = ("text_to_image", "describe", "question", "yes or no", "second question", "conversation")
WORDED += ("later picture", "several pictures", "views")
MGPT1_SQUARE = {(kind, BIG_SQUARE): w for kind, w in MGPT1_KINDS.items()}
MGPT1_ALL = {
    **{pool: w * (0.5 if pool[0] in SHAPED else 1.0) for pool, w in MGPT1_SQUARE.items()},
    **{(kind, size): 0.25 * MGPT1_KINDS[kind] for kind in SHAPED for size in (BIG_WIDE, BIG_TALL)},
}
MGPT1_VQ = VQRecipe(
    steps=2500,
    batch=16,
    sizes=(BIG_SQUARE, BIG_SQUARE, BIG_WIDE, BIG_SQUARE, BIG_SQUARE, BIG_TALL),
    maps=("depth", "segmentation", "normals", "pose", "found"),
    map_share=0.4,
    crop=64,
    crop_until=2250,
    unquantized=150,
)
NANO_MGPT1 = Recipe(
    name="nano-mgpt1",
    family=Mgpt1(),
    make_vq=ChameleonVQ,
    vq_file="vqgan.safetensors",
    vq=VQConfig(
        ch=32,
        ch_mult=(1, 1, 1, 2, 2),
        num_res_blocks=1,
        attn_levels=frozenset({4}),
        z_channels=64,
        embed_dim=64,
        n_embed=512,
        decoder_groups=8,
    ),
    vq_training=MGPT1_VQ,
    begins_as=one_level_finer,
    more_vq_training=replace(MGPT1_VQ, batch=8, crop=0, crop_until=0, unquantized=0, frozen_codes=True),
    examples={
        **dict.fromkeys(MGPT1_SQUARE, 4000),
        **{pool: 10000 for pool in MGPT1_SQUARE if pool[0] in WORDED},
        ("pose", BIG_SQUARE): 16000,
        **{(kind, BIG_SQUARE): 24000 for kind in ("segment", "edit")},
        ("detect", BIG_SQUARE): 32000,
        **{(kind, size): 1200 for kind in SHAPED for size in (BIG_WIDE, BIG_TALL)},
        **{(kind, size): 4000 for kind in ("segment", "pose") for size in (BIG_WIDE, BIG_TALL)},
        **{("text_to_image", size): 3000 for size in (BIG_WIDE, BIG_TALL)},
    },
    words=600,
    # The picture given ends and a separator, a start and two sizes follow before the answer's codes.
    looks_back=_looking(4, *ALL_ROUND),
    training=TransformerRecipe(
        phases=_phases((9600, MGPT1_ALL)),
        softness=0.3,
        text_weight=5.0,
        guided=frozenset({"text_to_image", "control", "edit", "views"}),
    ),
    sampling={
        **{"cfg": 2.0, "temperature": 0.1, "target_size": 128},
        "tasks": {
            **{
                t: {"cfg": 1.0, "temperature": 0.0}
                for t in ("depth", "segment", "normals", "pose", "detect", "describe", "chat")
            },
            "control": {"cfg": 2.0, "temperature": 0.0},
            "edit": {"cfg": 1.5, "temperature": 0.0},
        },
    },
)

PANEL_MAPS = ("depth", "canny", "hed", "pose")
MGPT2_KINDS = {
    "text_to_image": 0.2,
    **{f"pair_{kind}": 0.02 for kind in PANEL_MAPS},
    **{f"control_{kind}": 0.05 for kind in PANEL_MAPS},
    **{f"{kind}_panel": 0.05 for kind in PANEL_MAPS},
    "subject": 0.16,
    "subject_described": 0.04,
    "edit_panel": 0.25,
}
MGPT2_ALL = {
    **{(kind, SQUARE): w for kind, w in MGPT2_KINDS.items()},
    **{("text_to_image", size): 0.1 for size in (WIDE, TALL)},
    **{(f"{kind}_panel", size): 0.02 for kind in PANEL_MAPS for size in (WIDE, TALL)},
    **{("pose_panel", size): 0.05 for size in (WIDE, TALL)},
    **{("edit_panel", size): 0.1 for size in (WIDE, TALL)},
}
MGPT2_VQ = VQRecipe(
    steps=1450,
    batch=20,
    sizes=(SQUARE, SQUARE, WIDE, SQUARE, SQUARE, TALL),
    maps=("depth", "hed", "canny", "pose"),
)
NANO_MGPT2 = Recipe(
    name="nano-mgpt2",
    family=Mgpt2(),
    make_vq=MoVQ,
    vq_file="movqgan.safetensors",
    vq=VQConfig(
        ch=32,
        ch_mult=(1, 1, 2, 2),
        num_res_blocks=1,
        attn_levels=frozenset({3}),
        z_channels=4,
        embed_dim=4,
        n_embed=512,
    ),
    vq_training=MGPT2_VQ,
    examples={("text_to_image", SQUARE): 16000, ("text_to_image", WIDE): 6000, ("text_to_image", TALL): 6000},
    words=400,
    training=TransformerRecipe(
        phases=_phases(
            (1400, {("text_to_image", SQUARE): 1.0}),
            (
                5600,
                {
                    ("text_to_image", SQUARE): 0.5,
                    ("text_to_image", WIDE): 0.25,
                    ("text_to_image", TALL): 0.25,
                },
            ),
        ),
    ),
    sampling={"cfg": 2.0, "temperature": 0.5, "target_size": 64},
)
# As of 2.0 itself there is a checkpoint for text to image, and one of all tasks that begins with it.
NANO_OMNI = replace(
    NANO_MGPT2,
    name="nano-mgpt2-omni",
    more_vq_training=VQRecipe(
        steps=400,
        batch=16,
        lr=7e-4,
        sizes=MGPT2_VQ.sizes,
        maps=MGPT2_VQ.maps,
        map_share=0.6,
        frozen_codes=True,
    ),
    examples={
        **{pool: 5000 if pool[1] == SQUARE else 1500 for pool in MGPT2_ALL},
        **{("text_to_image", size): 8000 if size == SQUARE else 4000 for size in (SQUARE, WIDE, TALL)},
        **{(kind, SQUARE): 12000 for kind in ("subject", *(f"control_{kind}" for kind in PANEL_MAPS))},
        ("edit_panel", SQUARE): 20000,
        **{("edit_panel", size): 8000 for size in (WIDE, TALL)},
        **{("pose_panel", size): 2500 for size in (WIDE, TALL)},
    },
    words=700,
    looks_back=_looking(-1, *ALL_ROUND),  # at the panel above
    training=TransformerRecipe(
        phases=_phases((6000, MGPT2_ALL)),
        softness=0.6,
        guided=frozenset(MGPT2_KINDS) - {f"{kind}_panel" for kind in PANEL_MAPS},
    ),
    sampling={
        **{"cfg": 2.0, "temperature": 0.2, "target_size": 64},
        "tasks": {
            **{kind: {"cfg": 1.0, "temperature": 0.0} for kind in PANEL_MAPS},
            **{f"control_{kind}": {"cfg": 1.0, "temperature": 0.0} for kind in PANEL_MAPS},
            "edit": {"cfg": 2.5, "temperature": 0.0},
            **{kind: {"cfg": 1.5, "temperature": 0.0} for kind in ("subject", "subject_described")},
        },
    },
)

PURE_VQ = VQRecipe(  # sees whole pictures and pieces of larger ones, as tiles show them
    steps=1500,
    batch=20,
    sizes=tuple((side, side) for side in (64, 64, 96, 128, 160)),
    map_share=0.0,
    crop=64,
    crop_until=1500,
)
NANO_PURE = Recipe(
    name="nano-pure",
    family=Pure(),
    make_vq=LlamaGenVQ,
    vq_file="vq_ds8.safetensors",
    vq=VQConfig(
        ch=32,
        ch_mult=(1, 1, 2, 2),
        num_res_blocks=1,
        attn_levels=frozenset({3}),
        z_channels=64,
        embed_dim=66,
        n_embed=512,
        decoder_groups=8,
    ),
    vq_training=replace(PURE_VQ, steps=2600, crop_until=2600, spoiled_share=0.3),
    begins_as=on_the_sphere,
    more_vq_training=replace(PURE_VQ, frozen_codes=True),
    examples={("restore", SQUARE): 10000, ("restore_tile", SQUARE): 10000},
    words=450,
    # 19 tokens stand between the picture given and the one drawn: how the one is spoiled and what it shows. Heads look
    # at the same place of it, and at those to the right, below, to the left and above.
    looks_back=_looking(
        4 + 19,
        (0, 0, IN_SQUARE, 0, 0),
        *((1, head, IN_SQUARE, *to) for head, to in enumerate(((0, 0), (0, 1), (1, 0)))),
        *((2, head, IN_SQUARE, *to) for head, to in enumerate(((0, 0), (0, -1), (-1, 0)))),
    ),
    training=TransformerRecipe(
        phases=_phases((2100, {("restore", SQUARE): 0.4, ("restore_tile", SQUARE): 0.6})),
        softness=0.6,
        text_weight=3.0,
        guided=frozenset({"restore"}),
    ),
    sampling={"cfg": 1.0, "temperature": 0.0, "target_size": 64},
)
RECIPES = {r.name: r for r in (NANO_MGPT1, NANO_MGPT2, NANO_OMNI, NANO_PURE)}
