"""Restore: PURE on pictures of any size."""

from __future__ import annotations

from ..lumina_core import COLOURS, TILING, from_tensor
from . import jobs
from .host import advanced, io, schema, show_on_node
from .sockets import (
    cfg_input,
    decode_input,
    drawing,
    model_socket,
    seed_input,
    temperature_input,
    text_top_k_input,
    window_input,
)


class Restore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTRestore",
            display_name="Lumina-mGPT Restore",
            description="Restores and enlarges a picture with PURE: it says how degraded each tile is and what it "
            "shows, then draws it anew. Pictures of any size are done in overlapping tiles.",
            search_aliases=["pure", "super resolution", "upscale", "restore", "denoise", "deblur"],
            inputs=[
                model_socket(),
                io.Image.Input(
                    "image", tooltip="The picture to restore, or a batch; transparency becomes white."
                ),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=0.25,
                    max=16.0,
                    step=0.25,
                    tooltip="How many times larger the result is, each side. PURE was made for 4; 1 restores at the "
                    "same size. Twice the scale takes four times as many tiles.",
                ),
                seed_input(),
                io.Combo.Input(
                    "color_fix",
                    options=list(COLOURS),
                    default="wavelet",
                    tooltip="Gives the result the input's colours. wavelet: its soft colour areas, the "
                    "published way. adain: its mean and contrast of each tile. none: the colours as drawn.",
                ),
                io.Combo.Input(
                    "tiling",
                    options=list(TILING),
                    default=TILING[0],
                    tooltip="tiles: overlapping squares of the size the checkpoint knows, 512 pixels for PURE. "
                    "one tile: the whole picture is stretched to one square and back, as PURE's own script "
                    "does; quick, for pictures of about 512 pixels.",
                ),
                cfg_input(),
                temperature_input(),
                decode_input(),
                advanced(text_top_k_input()),
                window_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The restored pictures, as one batch."),
                io.String.Output(
                    display_name="text",
                    tooltip="What the model wrote about each tile, and where the tile lies.",
                ),
                io.Image.Output(
                    display_name="plan", tooltip="The restored pictures with the tiles' borders drawn on."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, image, scale, seed, color_fix, tiling, **settings) -> io.NodeOutput:
        done, lines = [], []
        pictures = from_tensor(image)
        for n, picture in enumerate(pictures):
            sampling = drawing(model, "restore", seed + n, **settings)
            done.append(jobs.restore(model, picture, sampling, scale=scale, colour=color_fix, tiling=tiling))
            plan = done[-1].plan
            show_on_node(f"{len(plan)} tile{'s' * (len(plan) > 1)} of {plan.tile} pixels")
            lines += [f"picture {n + 1}"] * (len(pictures) > 1) + done[-1].lines()
        [restored] = jobs.to_image([d.picture for d in done])
        [plans] = jobs.to_image([d.outlined() for d in done])
        return io.NodeOutput(restored, "\n".join(lines), plans)
