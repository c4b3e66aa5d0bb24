"""Lumina-mGPT without ComfyUI: load a checkpoint, make a prompt, draw tokens, decode them to a picture."""

from .chat import Answered, Chat
from .detection import Detections, detections
from .errors import (
    CheckpointError,
    InputError,
    LuminaError,
    OutOfMemoryError,
    PictureError,
    PrecisionError,
)
from .families import (
    Model,
    bundled,
    default_decode_dtype,
    default_dtype,
    find,
    kept_kind,
    listing,
    load,
    tasks,
    vq_file,
)
from .fetching import Download
from .hub import RELEASES
from .image import from_tensor, to_mask, to_tensor
from .lora import SUFFIXES as LORA_SUFFIXES
from .lora import Lora
from .lora import read as read_lora
from .memory import decode_nbytes, pass_nbytes, sampling_nbytes
from .prompts import Prompt
from .quant import KINDS
from .rating import (
    agreements,
    best,
    check_candidates,
    decoded,
    given_scores,
    likelihoods,
    question_of,
    question_prompts,
)
from .regions import redraw, size_kept
from .request import Request, ask, settings, task_of, working_size
from .restoration import COLOURS, TILING, Restoration, Restored
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
from .sampling.choose import Ranking
from .segments import masks_of
from .unirep import UNIT, TokenGrid

__version__ = "0.1.0"

__all__ = [
    "COLOURS",
    "KINDS",
    "LORA_SUFFIXES",
    "MODES",
    "RELEASES",
    "TILING",
    "UNIT",
    "AnswerFinished",
    "Answered",
    "Chat",
    "CheckpointError",
    "Download",
    "InputError",
    "Lora",
    "LuminaError",
    "Detections",
    "Model",
    "OutOfMemoryError",
    "PictureError",
    "PictureFinished",
    "PrecisionError",
    "Progress",
    "Prompt",
    "Ranking",
    "Restoration",
    "Restored",
    "Request",
    "RowFinished",
    "Sampling",
    "TextPiece",
    "TokenGrid",
    "agreements",
    "best",
    "ask",
    "bundled",
    "check_candidates",
    "decode_nbytes",
    "decoded",
    "default_decode_dtype",
    "default_dtype",
    "detections",
    "find",
    "from_tensor",
    "generate",
    "given_scores",
    "likelihoods",
    "kept_kind",
    "listing",
    "load",
    "pass_nbytes",
    "question_of",
    "question_prompts",
    "read_lora",
    "redraw",
    "sampling_nbytes",
    "size_kept",
    "masks_of",
    "settings",
    "task_of",
    "tasks",
    "to_mask",
    "to_tensor",
    "vq_file",
    "working_size",
]
