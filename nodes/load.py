"""Load Model: a checkpoint on disk to a model on a socket."""

from __future__ import annotations

from .folders import DOWNLOADS, OFF, fetch, fingerprint, load, unknown_checkpoint, unknown_download
from .host import advanced, io, schema
from .sockets import LuminaModel, checkpoint_inputs


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTLoadModel",
            display_name="Lumina-mGPT Load Model",
            description="Loads a Lumina-mGPT checkpoint: transformer, image tokenizer and text tokenizer together. "
            "Small trained checkpoints are bundled; others are folders or converted files under models/lumina_mgpt.",
            search_aliases=["lumina", "mgpt", "autoregressive", "checkpoint", "load lumina"],
            inputs=[
                *checkpoint_inputs(),
                advanced(
                    io.Combo.Input(
                        "download",
                        options=list(DOWNLOADS),
                        default=OFF,
                        optional=True,
                        tooltip="off: nothing is ever fetched. A name: this released checkpoint is fetched once into "
                        "models/lumina_mgpt (14 to 70 GB, from huggingface.co; Cancel stops it, the next run goes on) "
                        "and loaded instead of the one chosen as model.",
                    )
                ),
            ],
            outputs=[
                LuminaModel.Output(
                    display_name="model", tooltip="The model, for Prompt, Sampler, Decode and Encode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None, download=OFF) -> bool | str:
        if download is not None and (fault := unknown_download(download)):  # None: the name comes over a link
            return fault
        return download != OFF or model is None or unknown_checkpoint(model) or True

    @classmethod
    def fingerprint_inputs(cls, model, precision, download=OFF) -> tuple:
        return fingerprint(model if download == OFF else download)

    @classmethod
    def execute(cls, model, precision, download=OFF) -> io.NodeOutput:
        return io.NodeOutput(load(model if download == OFF else fetch(download), precision))
