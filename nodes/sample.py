"""Sampler: a prompt to the tokens of pictures, and text where the model writes some."""

from __future__ import annotations

from ..lumina_core import Answered, PictureFinished, TextPiece
from .host import advanced, io, schema
from .sockets import (
    LuminaPrompt,
    LuminaTokens,
    batch_input,
    decode_input,
    drawing,
    guidance_inputs,
    model_socket,
    seed_input,
    text_top_k_input,
    window_input,
)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTSampler",
            display_name="Lumina-mGPT Sampler",
            description="Draws a picture token by token, row by row, or writes an answer. Shows its progress, the rows "
            "finished so far where previews are switched on, and stops at once on Cancel.",
            search_aliases=["lumina sampler", "generate", "autoregressive sampler"],
            inputs=[
                model_socket(),
                LuminaPrompt.Input("prompt", tooltip="A prompt made with the same model."),
                seed_input(),
                *guidance_inputs(),
                advanced(text_top_k_input()),
                decode_input(),
                batch_input(),
                window_input(),
            ],
            outputs=[
                LuminaTokens.Output(display_name="tokens", tooltip="The pictures as tokens, for Decode."),
                io.String.Output(
                    display_name="text",
                    tooltip="What the model wrote; of a batch a line for each answer. Empty for tasks that only draw.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, prompt, **settings) -> io.NodeOutput:
        sampling = drawing(model, prompt.task, **settings)
        answers = [Answered(model.model) for _ in range(sampling.batch)]
        for event in model.draw(prompt, sampling):
            if isinstance(event, PictureFinished | TextPiece):
                answers[event.index].note(event)
        grids = [grid for answer in answers for grid in answer.pictures]
        texts = [answer.text for answer in answers]
        if sampling.batch > 1:
            texts = [" ".join(text.split()) for text in texts]
        return io.NodeOutput(grids, "\n".join(texts) if any(texts) else "")
