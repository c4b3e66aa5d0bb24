"""Lumina-mGPT without ComfyUI: load a checkpoint, make a prompt, draw tokens, decode them to a picture."""

from .errors import CheckpointError, InputError, LuminaError, PictureError
from .families import Model, bundled, default_dtype, find, listing, load, tasks, vq_file
from .fetching import Download
from .hub import RELEASES
from .image import from_tensor, to_tensor
from .lora import SUFFIXES as LORA_SUFFIXES
from .lora import Lora
from .lora import read as read_lora
from .memory import decode_nbytes, sampling_nbytes
from .prompts import Prompt
from .quant import FORMATS
from .sampling import (
    MODES,
    AnswerFinished,
    PictureFinished,
    Progress,
    RowFinished,
    Sampling,
    TextPiece,
    generate,
)
from .unirep import UNIT, TokenGrid

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "LORA_SUFFIXES",
    "MODES",
    "RELEASES",
    "UNIT",
    "AnswerFinished",
    "CheckpointError",
    "Download",
    "InputError",
    "Lora",
    "LuminaError",
    "Model",
    "PictureError",
    "PictureFinished",
    "Progress",
    "Prompt",
    "RowFinished",
    "Sampling",
    "TextPiece",
    "TokenGrid",
    "bundled",
    "decode_nbytes",
    "default_dtype",
    "find",
    "from_tensor",
    "generate",
    "listing",
    "load",
    "read_lora",
    "sampling_nbytes",
    "tasks",
    "to_tensor",
    "vq_file",
]
