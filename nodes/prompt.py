"""Prompt: text, task, size and pictures to the tokens a model goes on from."""

from __future__ import annotations

from ..lumina_core import from_tensor, tasks
from . import jobs
from .host import io, schema, show_on_node
from .sockets import (
    OWN_EITHER_SIDE,
    LuminaPrompt,
    LuminaTokens,
    model_socket,
    size_inputs,
    template_input,
    text_input,
)

AS_GIVEN, FREE = "as given", "let the model choose"


class MakePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTPrompt",
            display_name="Lumina-mGPT Prompt",
            description="Turns words, a picture size and, where the task takes one, a picture into the tokens "
            "that the model goes on from. Shows how many tokens they are.",
            search_aliases=["lumina prompt", "text encode", "conditioning"],
            inputs=[
                model_socket(),
                text_input(),
                io.Combo.Input(
                    "task",
                    options=list(tasks()),
                    default="text_to_image",
                    tooltip="What is asked of the model. text_to_image draws from words; pair_... draws a picture and "
                    "its map as two panels; control_... draws a picture that follows the map given as image; chat and "
                    "describe write; restore is PURE's. Each checkpoint knows some of them and names them when asked "
                    "for another.",
                ),
                *size_inputs(OWN_EITHER_SIDE),
                io.Combo.Input(
                    "size_mode",
                    options=[AS_GIVEN, FREE],
                    default=AS_GIVEN,
                    tooltip="as given: the picture has exactly this width and height. let the model choose: width "
                    "and height are ignored and the model decides.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture of tasks that take one; a batch counts as several pictures. Cropped at the "
                    "centre to width and height; restore stretches it.",
                ),
                LuminaTokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="A picture to keep, from the Sampler or Encode: only what the mask touches is drawn "
                    "again. With a greater height it is continued downwards. Picture n of the Sampler's batch "
                    "keeps picture n.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture of tokens is drawn again, of any size. Every code that a masked pixel "
                    "touches is redrawn: squares of 8 pixels for 2.0, 16 for 1.0. Pixels count from 0.5 on.",
                ),
                template_input(),
            ],
            outputs=[LuminaPrompt.Output(display_name="prompt", tooltip="The prompt, for the Sampler.")],
        )

    @classmethod
    def execute(
        cls, model, text, task, width, height, size_mode, image=None, tokens=None, mask=None, template=""
    ) -> io.NodeOutput:
        size = (width, height) if size_mode == AS_GIVEN else None
        images = [] if image is None else from_tensor(image)
        prompt = jobs.prompt(model, text, task, size, images, tokens, mask, template)
        show_on_node(f"{len(prompt.tokens)} tokens")
        return io.NodeOutput(prompt)
