"""Names of our socket types, and the inputs that several nodes share."""

from __future__ import annotations

from ..lumina_core import MODES, InputError, Sampling, settings
from .folders import checkpoints
from .host import PRECISIONS, HostedModel, advanced, io

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
            "or fp8, whose pictures differ slightly; 5 to 6.5 GB in nf4, whose pictures differ more and which needs "
            "the Python package bitsandbytes. A file stored in int8 or fp8 stays so.",
        ),
    ]


def text_input(
    placeholder: str = "what to draw",
    tooltip: str = "What to draw, in words; long, precise descriptions work best with the 7B checkpoints.",
) -> io.Input:
    return io.String.Input(
        "text",
        multiline=True,
        dynamic_prompts=True,
        placeholder=placeholder,
        tooltip=f"{tooltip} {{red|blue}} picks one at random.",
    )


OWN_SIDE = (  # of pictures of one panel
    "768 for the 7B checkpoints of 2.0, which were made for about 768x768 pixels in all, 64 for the bundled "
    "nano-mgpt2, which knows 64 to 96 a side"
)
OWN_PANEL_SIDE = (  # of tasks of two panels
    "512 for the 7B checkpoints of 2.0, where two panels must fit, 64 for the bundled nano-mgpt2-omni, which knows 64 "
    "to 96 a side"
)
OWN_EITHER_SIDE = (  # where the task is chosen
    "768 for the 7B checkpoints of 2.0, 512 in their tasks of two panels, whose size is that of one panel; 64 for the "
    "bundled nano-mgpt2 and nano-mgpt2-omni, which know 64 to 96 a side"
)


def size_inputs(own: str = OWN_SIDE) -> list[io.Input]:
    """Width and height; `own` says which sizes 0 stands for."""
    return [
        io.Int.Input(
            side,
            default=0,
            min=0,
            max=4096,
            step=32,
            tooltip=f"{side.capitalize()} of the picture in pixels, a multiple of 32; 0 is the checkpoint's own: "
            f"{own}.",
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


OWN = -1  # of a setting: what the checkpoint recommends for the task
OWN_IS = "-1 takes what the checkpoint recommends for the task"


def cfg_input() -> io.Input:
    return io.Float.Input(
        "cfg",
        default=OWN,
        min=OWN,
        max=100.0,
        step=0.1,
        tooltip=f"Classifier-free guidance: how strongly the picture follows the words. {OWN_IS}: of the released ones "
        "4 for 2.0 and for pictures from words, 1 for image tasks and answers of 1.0, 0.8 for PURE. 3 to 8 are useful, "
        "also for edits that change nothing; 1 switches guidance off and halves memory and work.",
    )


def temperature_input() -> io.Input:
    return io.Float.Input(
        "temperature",
        default=OWN,
        min=OWN,
        max=10.0,
        step=0.05,
        tooltip=f"Spread of the random draws. {OWN_IS}: 1 for the released ones, 0.9 for PURE. Lower is safer and "
        "plainer, 0 always takes the likeliest token.",
    )


def image_top_k_input() -> io.Input:
    return io.Int.Input(
        "image_top_k",
        default=OWN,
        min=OWN,
        max=16384,
        tooltip="Only this many of the likeliest image tokens, and of the picture sizes that the model chooses, may be "
        f"drawn. {OWN_IS}: 4096 for 2.0, 2000 for 1.0 and 200 for its image tasks; 0 allows all.",
    )


def guidance_inputs() -> list[io.Input]:
    return [cfg_input(), temperature_input(), image_top_k_input()]


def text_top_k_input() -> io.Input:
    return io.Int.Input(
        "text_top_k",
        default=OWN,
        min=OWN,
        max=65536,
        tooltip=f"Only this many of the likeliest text tokens may be drawn. {OWN_IS}: 10 for the released ones, 5 for "
        "conversations, 1 for PURE. 1 always takes the likeliest, 0 allows all.",
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


def resolution_input() -> io.Input:
    return advanced(
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=2048,
            step=32,
            optional=True,
            tooltip="What size the model works at: pixels a side of a square of the same area, a multiple of 32. 0 "
            "takes the checkpoint's own (512 or 768 for the released ones), which works best.",
        )
    )


def fit_input(default: str) -> io.Input:
    return io.Combo.Input(
        "fit",
        options=["stretch", "crop"],
        default=default,
        optional=True,
        tooltip="How the image comes to a size that the model works at. stretch: resized there and back, so all of it "
        "is seen. crop: the middle is cut out, proportions are kept, the rest gets no answer.",
    )


def template_input() -> io.Input:
    return advanced(
        io.String.Input(
            "template",
            multiline=True,
            default="",
            optional=True,
            tooltip="What is said to the model instead of the published words of this task. {prompt}, {width}, "
            "{height} and {subject} are filled in; <|image|> stands for the picture. Empty: the published words.",
        )
    )


def keep_size_input() -> io.Input:
    return io.Boolean.Input(
        "keep_size",
        default=True,
        optional=True,
        tooltip="On: the picture comes back at the size of the image and lies on it pixel for pixel. Off: as the model "
        "drew it.",
    )


def optional(entry: io.Input) -> io.Input:
    """The input, no longer required."""
    entry.optional = True
    return entry


def drawing_inputs() -> list[io.Input]:
    """Optional inputs: how the answer to a task is drawn, and the words the task is put in."""
    cfg, *rest = (optional(entry) for entry in (*guidance_inputs(), decode_input()))
    return [cfg, *map(advanced, rest), window_input(), template_input()]


def task_inputs(*between: io.Input) -> list[io.Input]:
    """Optional inputs of a task about a picture: how it is fitted, those `between`, then how the answer is drawn."""
    return [fit_input("stretch"), *between, *drawing_inputs(), resolution_input()]


def task_model_socket(task: str, released: str = "the Omni checkpoints") -> io.Input:
    return LuminaModel.Input(
        "model",
        tooltip=f"A model from Lumina-mGPT Load Model that was trained on {task}; of the released ones {released}. "
        "Another one says what it can do.",
    )


def task_image_input(tooltip: str = "") -> io.Input:
    what = tooltip or "The picture, or a batch of pictures, of any size; each gets its own answer."
    return io.Image.Input("image", tooltip=f"{what} Transparency becomes white.")


def drawing(
    model: HostedModel,
    task: str,
    seed: int,
    batch: int = 1,
    decode: str = "jacobi",
    window: str = "auto",
    **set_by_user,
) -> Sampling:
    """Sampling settings of a task: those that the user set, for the rest the checkpoint's own."""
    if window not in WINDOWS:  # a value that came over a link is not checked by the host
        raise InputError(f"window is '{window}'; it may be {', '.join(WINDOWS)}.")
    given = {name: None if value == OWN else value for name, value in set_by_user.items()}
    return settings(model.model, task, seed=seed, batch=batch, decode=decode, window=WINDOWS[window], **given)
