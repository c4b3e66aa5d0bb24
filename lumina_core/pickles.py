"""Files that torch has pickled, read as plain data: nothing in them is run, none takes more memory than it is long."""

from __future__ import annotations

import pickle
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path

import torch

from .documents import AGAIN
from .errors import CheckpointError

# what training programs pickle beside the weights; none of it is needed
BESIDE_WEIGHTS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf|numpy)\.|_codecs\.encode$"
)


OLD = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # what files in the format before torch 1.6 begin with; they cannot be mapped


class _Inert:
    """Stands for classes a training program pickled beside its weights; holds whatever it is given, runs nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_plain(file: Path) -> object:
    """What a file that torch has written holds, tensors and plain data alone; no code in it is run.

    Tensors are memory-mapped where the file allows it. Lightning's and numpy's own objects, which published files carry
    beside the weights, are replaced by inert stand-ins; anything else that is not plain data is refused.
    """
    try:
        with file.open("rb") as f:
            head = f.read(16)
        zipped = head.startswith(b"PK\x03\x04")
        if zipped:
            _check_zip(file)
        elif not (head.startswith(b"\x80") and OLD in head):
            raise CheckpointError(f"{file} is not plain tensors: torch has not written it. {AGAIN}")
        with _stand_ins(file, zipped):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as e:
        found = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", str(e))
        what = f"opening it would run code ({found[1]})" if found else "it is damaged or holds other objects"
        raise CheckpointError(
            f"{file} is not plain tensors: {what}; nothing of it was run. Take the file from its own repository, or "
            "a .safetensors version of it."
        ) from None
    except Exception as e:  # a damaged pickle can fail in every way
        line = (str(e).strip() or repr(e)).splitlines()[0][:120]
        raise CheckpointError(f"{file} cannot be opened as plain tensors ({line}). {AGAIN}") from None


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `.ckpt` or `.pt` file, bare or under 'state_dict', 'model' or 'ema'; see `read_plain`."""
    data = read_plain(file)
    for key in ("state_dict", "model", "ema"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not any(isinstance(v, torch.Tensor) for v in data.values()):
        raise CheckpointError(f"{file} holds no tensors by name; another file is expected here.")
    size = file.stat().st_size
    tensors = {str(k): v for k, v in data.items() if isinstance(v, torch.Tensor)}
    for name, tensor in tensors.items():
        odd = tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta
        # views of fewer numbers than they show would take memory that the file does not have
        if odd or not tensor.nbytes <= tensor.untyped_storage().nbytes() <= size:
            raise CheckpointError(f"{file}: '{name}' is no plain tensor of the file's own numbers. {AGAIN}")
    return tensors


def _stand_ins(file: Path, zipped: bool):
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # came with torch 2.6
        return nullcontext()
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipped else []
    harmless = [n for n in names if BESIDE_WEIGHTS.match(n)]
    return torch.serialization.safe_globals([(_Inert, name) for name in harmless])


def _check_zip(file: Path) -> None:
    """Torch stores its records as they are; compressed ones could unpack to any size."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as records:
        for record in records.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > size:
                raise CheckpointError(
                    f"{file}: record '{record.filename}' is compressed; torch never does. {AGAIN}"
                )
