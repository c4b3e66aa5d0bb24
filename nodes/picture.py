"""One-node shortcuts: each stands for a small graph of the other nodes and expands into it when it runs."""

from __future__ import annotations

from ..lumina_core import PictureFinished
from . import jobs
from .folders import fingerprint, load, unknown_checkpoint
from .host import GraphBuilder, io, results_are_kept, schema
from .sockets import (
    OWN,
    batch_input,
    checkpoint_inputs,
    decode_input,
    drawing,
    guidance_inputs,
    seed_input,
    size_inputs,
    text_input,
    window_input,
)


class TextToImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTTextToImage",
            display_name="Lumina-mGPT Text to Image",
            description="Load Model, Prompt, Sampler and Decode in one box: words in, picture out. The model stays "
            "loaded between runs.",
            search_aliases=["lumina", "mgpt", "text to image", "t2i", "generate image"],
            enable_expand=True,
            inputs=[
                *checkpoint_inputs(),
                text_input(),
                *size_inputs(),
                seed_input(),
                *guidance_inputs(),
                decode_input(),
                batch_input(),
                window_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures, as one batch.")],
        )

    @classmethod
    def validate_inputs(cls, model=None) -> bool | str:
        return model is None or unknown_checkpoint(model) or True  # None: it comes over a link, or lacks

    @classmethod
    def fingerprint_inputs(cls, model, **_) -> tuple:
        return fingerprint(model)

    @classmethod
    def execute(cls, model, precision, text, width, height, seed, **settings) -> io.NodeOutput:
        if not results_are_kept():
            return io.NodeOutput(cls._draw(model, precision, text, (width, height), seed=seed, **settings))
        graph = GraphBuilder()
        loaded = graph.node("LuminaMGPTLoadModel", "load", model=model, precision=precision).out(0)
        size = {"width": width, "height": height, "size_mode": "as given"}
        prompt = graph.node(
            "LuminaMGPTPrompt", "prompt", model=loaded, text=text, task="text_to_image", **size
        )
        drawn = graph.node(
            "LuminaMGPTSampler",
            "sample",
            model=loaded,
            prompt=prompt.out(0),
            seed=seed,
            text_top_k=OWN,
            **settings,
        )
        decoded = graph.node(
            "LuminaMGPTDecode", "decode", model=loaded, tokens=drawn.out(0), split_panels=False
        )
        return io.NodeOutput(decoded.out(0), expand=graph.finalize())

    @classmethod
    def _draw(cls, model, precision, text, size, **settings):
        """The pictures without the other nodes, for hosts that keep nothing of what nodes give out."""
        loaded = load(model, precision)
        prompt = jobs.prompt(loaded, text, "text_to_image", size, [])
        events = loaded.draw(prompt, drawing(loaded, prompt.task, **settings))
        [pictures] = jobs.decode(loaded, [e.grid for e in events if isinstance(e, PictureFinished)])
        return pictures
