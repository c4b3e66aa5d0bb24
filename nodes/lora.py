"""Load LoRA: a small trained change on top of a model."""

from __future__ import annotations

from .folders import lora_file, lora_fingerprint, loras, unknown_lora
from .host import io, schema
from .sockets import LuminaModel, model_socket


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTLoadLora",
            display_name="Lumina-mGPT Load LoRA",
            description="Puts a LoRA on the model's transformer. Chain several to stack them; the model that goes in "
            "stays as it is, and without this node the LoRA is gone.",
            search_aliases=["lumina lora", "lora", "adapter", "peft", "load lora"],
            inputs=[
                model_socket(),
                io.Combo.Input(
                    "lora",
                    options=loras(),
                    tooltip="A file under models/loras, in PEFT's or kohya's naming, trained on a Lumina-mGPT or PURE "
                    "checkpoint of the same size. PEFT's folders appear as folder/adapter_model.safetensors.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the change is added. 1 is as trained, 0.5 to 1.2 are useful, 0 is none, below "
                    "0 turns it round.",
                ),
            ],
            outputs=[
                LuminaModel.Output(
                    display_name="model",
                    tooltip="The model with the LoRA, for Prompt, Sampler and another Load LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora=None) -> bool | str:
        return lora is None or unknown_lora(lora) or True  # None: it comes over a link, or lacks

    @classmethod
    def fingerprint_inputs(cls, lora, **_) -> tuple:
        return lora_fingerprint(lora) if lora else ()

    @classmethod
    def execute(cls, model, lora, strength) -> io.NodeOutput:
        return io.NodeOutput(model.with_lora(lora_file(lora), strength) if strength else model)
