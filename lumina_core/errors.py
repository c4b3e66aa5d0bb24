"""Every error a user can see. The text names the input, the value seen, what is allowed and what to do next."""

import torch


class LuminaError(Exception):
    """Base of all errors that are the input's, not the program's; front ends show the text alone."""


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
