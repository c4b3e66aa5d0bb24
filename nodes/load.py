"""Load Model: a checkpoint on disk to a model on a socket."""

from __future__ import annotations

from .host import fingerprint, io, load, schema, unknown_checkpoint
from .sockets import LuminaModel, checkpoint_inputs


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTLoadModel",
            display_name="Lumina-mGPT Load Model",
            description="Loads a Lumina-mGPT checkpoint: transformer, image tokenizer and text tokenizer together. "
            "A small trained checkpoint is bundled; others are folders or converted files under models/lumina_mgpt.",
            search_aliases=["lumina", "mgpt", "autoregressive", "checkpoint", "load lumina"],
            inputs=checkpoint_inputs(),
            outputs=[
                LuminaModel.Output(
                    display_name="model", tooltip="The model, for Prompt, Sampler, Decode and Encode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model) -> bool | str:
        return model is None or unknown_checkpoint(model) or True  # None: the name comes over a link

    @classmethod
    def fingerprint_inputs(cls, model, precision) -> tuple:
        return fingerprint(model)

    @classmethod
    def execute(cls, model, precision) -> io.NodeOutput:
        return io.NodeOutput(load(model, precision))
