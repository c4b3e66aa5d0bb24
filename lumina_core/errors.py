"""Every error a user can see. The text names the input, the value seen, what is allowed and what to do next."""

import torch

BEGINNING, END = 1200, 400  # characters kept of a text that is too long to be read


class LuminaError(Exception):
    """Base of all errors that are the input's, not the program's; front ends show the text alone.

    Texts quote names and values out of files: what cannot be printed is spelled out, and a very long text loses its
    middle.
    """

    def __init__(self, text: str = ""):
        if len(text) > BEGINNING + END:
            text = f"{text[:BEGINNING]} [...] {text[-END:]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class InputError(LuminaError):
    """A setting, prompt or picture that cannot be used."""


class CheckpointError(LuminaError):
    """Weights, configuration or tokenizer that are missing, damaged or of another model."""


class PictureError(LuminaError):
    """Tokens that do not form a whole picture."""


class PrecisionError(LuminaError):
    """Numbers that the precision of the weights cannot hold."""


class OutOfMemoryError(LuminaError, torch.cuda.OutOfMemoryError):
    """Memory that ran out. Also torch's own error of that kind, by which a host knows that it must free its models."""
