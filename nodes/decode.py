"""Decode and Encode: tokens to pictures and back."""

from __future__ import annotations

from ..lumina_core import from_tensor
from . import jobs
from .host import io, schema
from .sockets import LuminaTokens, model_socket


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTDecode",
            display_name="Lumina-mGPT Decode",
            description="Turns tokens into pictures with the model's image tokenizer.",
            search_aliases=["lumina decode", "vae decode", "vq decode", "detokenize"],
            inputs=[
                model_socket(),
                LuminaTokens.Input("tokens", tooltip="Tokens from the Sampler or from Encode."),
                io.Boolean.Input(
                    "split_panels",
                    default=False,
                    tooltip="Cuts pictures of two panels into two pictures, the upper one first. Pictures of one "
                    "panel stay whole.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="The pictures: one batch when all have one size, otherwise neighbours of one size share "
                    "a batch.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, tokens, split_panels) -> io.NodeOutput:
        grids = [part for grid in tokens for part in (grid.split() if split_panels else [grid])]
        return io.NodeOutput(jobs.decode(model, grids))


class Encode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTEncode",
            display_name="Lumina-mGPT Encode",
            description="Turns pictures into tokens with the model's image tokenizer. Followed by Decode it shows what "
            "the tokenizer keeps of a picture.",
            search_aliases=["lumina encode", "vae encode", "vq encode", "tokenize image"],
            inputs=[
                model_socket(),
                io.Image.Input(
                    "image", tooltip="The picture, or a batch of pictures; transparency becomes white."
                ),
                io.Combo.Input(
                    "fit",
                    options=["crop", "stretch"],
                    default="crop",
                    tooltip="How sides come to multiples of 32 pixels. crop: cut down at the centre, by 31 pixels at "
                    "most; a picture with a side under 32 is enlarged first. stretch: resize to the nearest multiples.",
                ),
            ],
            outputs=[LuminaTokens.Output(display_name="tokens", tooltip="The pictures as tokens.")],
        )

    @classmethod
    def execute(cls, model, image, fit) -> io.NodeOutput:
        return io.NodeOutput(jobs.encode(model, from_tensor(image), fit))
