"""Names of our socket types, and the inputs that several nodes share."""

from __future__ import annotations

from ..lumina_core import MODES
from .host import PRECISIONS, advanced, checkpoints, io

WINDOWS = {"auto": None, **{str(n): n for n in (4, 8, 16, 32, 64)}}

LuminaModel = io.Custom("LUMINA_MODEL")
LuminaPrompt = io.Custom("LUMINA_PROMPT")
LuminaTokens = io.Custom("LUMINA_TOKENS")
LuminaChat = io.Custom("LUMINA_CHAT")


def model_socket() -> io.Input:
    return LuminaModel.Input(
        "model", tooltip="A model from Lumina-mGPT Load Model. Use the same one along the whole graph."
    )


def checkpoint_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "model",
            options=list(checkpoints()),
            tooltip="The checkpoint: a bundled one (nano-...: tiny, draws coloured shapes, needs no download), or a "
            "folder or converted file under models/lumina_mgpt.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default="auto",
            tooltip="Number format of the transformer. auto: bf16 on a graphics card that has it, fp32 otherwise and "
            "for small checkpoints. A 7B model takes 14 GB in bf16 or fp16, 28 GB in fp32; 8 to 9 GB in int8 "
            "or fp8, whose pictures differ slightly.",
        ),
    ]


def text_input() -> io.Input:
    return io.String.Input(
        "text",
        multiline=True,
        dynamic_prompts=True,
        placeholder="what to draw",
        tooltip="What to draw, in words; long, precise descriptions work best with the 7B checkpoints. "
        "{red|blue} picks one at random.",
    )


def size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            side,
            default=0,
            min=0,
            max=4096,
            step=32,
            tooltip=f"{side.capitalize()} of the picture in pixels, a multiple of 32; 0 is the checkpoint's own: 768 "
            "for the 7B checkpoints of 2.0, which were made for about 768x768 pixels in all, 64 for the bundled "
            "nano-mgpt2, which knows 64 to 96 a side.",
        )
        for side in ("width", "height")
    ]


def seed_input() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Names the random draws: the same seed and settings give the same picture. Picture n of a batch uses "
        "seed + n.",
    )


def guidance_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "cfg",
            default=4.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Classifier-free guidance: how strongly the picture follows the words. 4 is the published value, "
            "3 to 8 are useful; 1 switches guidance off and halves memory and work.",
        ),
        io.Float.Input(
            "temperature",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Spread of the random draws. 1 is the published value; lower is safer and plainer, 0 always takes "
            "the likeliest token.",
        ),
        io.Int.Input(
            "image_top_k",
            default=4096,
            min=0,
            max=16384,
            tooltip="Only this many of the likeliest image tokens may be drawn. 4096 is the published value, 2000 to "
            "4096 are useful; 0 allows all.",
        ),
    ]


def text_top_k_input() -> io.Input:
    return advanced(
        io.Int.Input(
            "text_top_k",
            default=10,
            min=0,
            max=65536,
            tooltip="The same for text tokens and picture sizes that the model chooses. 10 is the published value, 1 "
            "always takes the likeliest.",
        )
    )


def decode_input() -> io.Input:
    return io.Combo.Input(
        "decode",
        options=list(MODES),
        default="jacobi",
        tooltip="How tokens are found. ar: one after the other, the plain way. jacobi: guesses several ahead and keeps "
        "what proves right; the same picture as ar in fewer passes. coupled: guesses more boldly; another picture of "
        "the same quality.",
    )


def window_input() -> io.Input:
    return advanced(
        io.Combo.Input(
            "window",
            options=list(WINDOWS),
            default="auto",
            optional=True,
            tooltip="How many tokens jacobi and coupled guess ahead. auto measures what is fastest here; it never "
            "changes the picture of jacobi, but that of coupled. ar ignores it.",
        )
    )


def batch_input() -> io.Input:
    return io.Int.Input(
        "batch",
        default=1,
        min=1,
        max=64,
        tooltip="Pictures drawn side by side, 1 to 64. Each needs memory for its tokens: about 1 GB for 1,000 tokens "
        "of a 7B model with guidance.",
    )
