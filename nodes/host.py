"""The only file that imports ComfyUI: node types, folders, memory, progress, Cancel and preview."""

from __future__ import annotations

import copy
import html
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import comfy.lora
import comfy.model_management as mm
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder
from comfy_execution.utils import get_executing_context
from server import PromptServer

from .. import lumina_core
from ..lumina_core import (
    AnswerFinished,
    CheckpointError,
    InputError,
    LuminaError,
    Model,
    OutOfMemoryError,
    PictureError,
    PrecisionError,
    Progress,
    Prompt,
    RowFinished,
    Sampling,
)
from .preview import Preview

__all__ = [
    "CUT_SHORT",
    "FOLDER",
    "PRECISIONS",
    "ComfyExtension",
    "GraphBuilder",
    "HostedModel",
    "advanced",
    "find_file",
    "for_output",
    "hosted",
    "io",
    "list_files",
    "list_folders",
    "nothing",
    "percent_bar",
    "results_are_kept",
    "schema",
    "show_on_node",
    "watched",
]

log = logging.getLogger(__name__)

FOLDER = "lumina_mgpt"  # under models/, and the key in extra_model_paths.yaml
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = ("auto", *FLOATS, *lumina_core.KINDS)
CUT_SHORT = {  # why a free answer ended that the model did not end
    "limit": "was cut at the longest length there is",
    "picture": "ends before a picture that does not fit into what is left of max_tokens or the model's positions",
}

for _error in (CheckpointError, InputError, LuminaError, OutOfMemoryError, PictureError, PrecisionError):
    _error.__module__ = "Lumina-mGPT"  # dialogs begin with this name; it would be the path of our folder

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


# Schemas


def schema(**fields) -> io.Schema:
    """A node schema in our category, without the fields that this host's version does not know."""
    known = io.Schema.__dataclass_fields__
    return io.Schema(category="Lumina-mGPT", **{k: v for k, v in fields.items() if k in known})


def advanced(entry: io.Input) -> io.Input:
    """The input, folded away where the host can do that."""
    entry.extra_dict = {**(entry.extra_dict or {}), "advanced": True}
    return entry


def results_are_kept() -> bool:
    """Whether this host keeps what nodes give out; nodes cannot expand where it does not."""
    return not getattr(args, "cache_none", False)


def show_on_node(text: str) -> None:
    """Shows a text on the node that runs; inside a node that expanded, on that one.

    Only the page that asked for the run gets it: another may have another node of that number. Pages take the text for
    HTML, and an answer may hold anything.
    """
    context, server = get_executing_context(), PromptServer.instance
    if context is not None and server is not None and server.client_id is not None:
        node = context.node_id.partition(".")[0]
        server.send_progress_text(html.escape(text, quote=False), node, server.client_id)


def nothing() -> ExecutionBlocker:
    """What an output holds when there is nothing for it: nodes behind it do not run, and that is no fault."""
    return ExecutionBlocker(None)


def for_output(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where this host wants what nodes give out."""
    return tensor.to(mm.intermediate_device())


# Progress and Cancel


def percent_bar() -> Callable[[int, int], None]:
    """Shows on the node that runs how much of a work is done, in percent; Cancel ends the work at the next report."""
    bar, shown = comfy.utils.ProgressBar(100), -1

    def report(done: int, total: int) -> None:
        nonlocal shown
        mm.throw_exception_if_processing_interrupted()
        if (percent := 100 * done // max(1, total)) != shown:
            bar.update_absolute(percent)
            shown = percent

    return report


def watched(items: Sequence) -> Iterator:
    """The items, with a step of the progress bar after each and Cancel polled before."""
    bar = comfy.utils.ProgressBar(len(items))
    for item in items:
        mm.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


# Folders


def list_folders(kind: str) -> list[str]:
    """The folders with models of a kind; new ones go into the first."""
    return folder_paths.get_folder_paths(kind)


def list_files(kind: str) -> list[str]:
    """Names of the files in the folders of a kind."""
    return folder_paths.get_filename_list(kind)


def find_file(kind: str, name: str) -> str | None:
    """The path of a file in the folders of a kind; None where there is none."""
    return folder_paths.get_full_path(kind, name)


# Models in memory

_hosted: weakref.WeakValueDictionary[tuple, HostedModel] = weakref.WeakValueDictionary()


def hosted(name: str, path: Path, precision: str, state: tuple, vq_folders: Sequence[str]) -> HostedModel:
    """The model of a checkpoint; loaders of files in the same `state`, with the same precision, share one."""
    if precision not in PRECISIONS:  # a value that came over a link is not checked by ComfyUI
        raise InputError(f"precision is '{precision}'; it may be {', '.join(PRECISIONS)}.")
    dtype = FLOATS.get(precision) or lumina_core.default_dtype(path, mm.get_torch_device())
    wanted = precision if precision in lumina_core.KINDS else None
    quantise = lumina_core.kept_kind(path, wanted)
    key = (state, dtype, quantise)
    known = _hosted.get(key)
    if known is None:
        start = time.monotonic()
        model = lumina_core.load(
            path,
            vq_folders=vq_folders,
            dtype=dtype,
            decode_dtype=dtype if dtype == torch.float32 else mm.vae_dtype(mm.vae_device(), [torch.bfloat16]),
            quantise=quantise,
            ops=Layers,
            report=percent_bar(),
        )
        known = _hosted[key] = HostedModel(model)
        took, kind = time.monotonic() - start, quantise or str(dtype).removeprefix("torch.")
        log.info("Lumina-mGPT: loaded %s (%s) as %s in %.1f s", name, model.family.title, kind, took)
    return known


class Layers(comfy.ops.disable_weight_init):
    """ComfyUI's layers; a Linear says whether it only multiplies now: it is not offloaded, nothing is to be patched."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        @property
        def is_plain(self) -> bool:
            return not (self.comfy_cast_weights or self.weight_function or self.bias_function)


class HostedModel:
    """What travels on a LUMINA_MODEL socket: a model whose weights ComfyUI's memory manager places.

    Transformer and image tokenizer are managed apart, so one can make room for the other.
    """

    def __init__(self, model: Model):
        self.model = model
        self.transformer = ModelPatcher(model.transformer, mm.get_torch_device(), mm.unet_offload_device())
        self.vq = ModelPatcher(model.vq, mm.vae_device(), mm.vae_offload_device())
        self.base: HostedModel | None = None  # kept, so that a second loader finds it
        # elsewhere weights are moved one by one, and each frees its own memory
        if self.transformer.load_device.type == "cpu":
            model.transformer.lay_weights_together()
        model.transformer.poll = mm.throw_exception_if_processing_interrupted
        if not hasattr(comfy.ops, "run_every_op"):  # newer hosts poll Cancel in each of their layers
            for layer in (m for m in model.vq.modules() if isinstance(m, torch.nn.Conv2d)):
                layer.register_forward_pre_hook(_poll_cancel)

    def with_lora(self, file: Path, strength: float) -> HostedModel:
        """The same model with a LoRA on top; weights are shared, and patched when the transformer is placed."""
        lora = lumina_core.read_lora(file, self.model.transformer)
        patched = copy.copy(self)
        patched.base, patched.transformer = self, self.transformer.clone()
        layers = {layer: f"{layer}.weight" for layer in lora.deltas}
        patches = comfy.lora.load_lora(lora.tensors(self.model.transformer), layers)
        patched.transformer.add_patches(patches, strength)
        log.info("Lumina-mGPT: LoRA %s changes %d layers", lora.name, len(layers))
        return patched

    def get_ram_usage(self) -> int:
        """Bytes of weights in main memory; ComfyUI asks when that runs short."""
        if self.base is not None:
            return 0  # they are the base's
        modules = (self.model.transformer, self.model.vq)
        return sum(p.nbytes for m in modules for p in m.parameters() if p.device.type == "cpu")

    def place_vq(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Brings the image tokenizer in place, with room for pictures of these sizes (width, height)."""
        mm.load_models_gpu([self.vq], memory_required=self._vq_nbytes(sizes))

    def place_transformer(self, working: int) -> None:
        """Brings the transformer in place, with room for `working` bytes."""
        mm.load_models_gpu([self.transformer], memory_required=working)

    def free_nbytes(self) -> int:
        """Bytes that are free where the transformer is."""
        return int(mm.get_free_memory(self.transformer.load_device))

    def place_to_draw(self, prompt: Prompt, working: int) -> Preview | None:
        """Brings the parts in place that drawing takes, and gives the preview where previews are switched on."""
        if args.preview_method == LatentPreviewMethod.NoPreviews:
            self.place_transformer(working)
            return None
        preview = Preview(self.model, min(512, args.preview_size))
        working += self._vq_nbytes([preview.strip(prompt)])
        mm.load_models_gpu([self.transformer, self.vq], memory_required=working)
        return preview

    def served(self, events: Iterator, preview: Preview | None, what: str) -> Iterator:
        """The events, passed on while progress, preview and Cancel are served."""
        bar = comfy.utils.ProgressBar(1)
        try:
            for event in events:
                mm.throw_exception_if_processing_interrupted()
                if isinstance(event, Progress):
                    bar.update_absolute(event.done, event.total)
                elif isinstance(event, RowFinished) and preview and (picture := preview.update(event)):
                    bar.update_absolute(bar.current, bar.total, ("JPEG", picture, None))
                elif isinstance(event, AnswerFinished) and event.reason in CUT_SHORT:
                    log.warning("Lumina-mGPT: the answer to '%s' %s", what, CUT_SHORT[event.reason])
                yield event
        finally:
            events.close()  # frees the key-value cache at once, also when the run is cancelled

    def draw(self, prompt: Prompt, sampling: Sampling) -> Iterator:
        """The sampler's events, passed on while progress, preview and Cancel are served."""
        if prompt.family != self.model.family.id:
            raise InputError(
                f"The prompt was made for family {prompt.family}; '{self.model.name}' is of family "
                f"{self.model.family.id}. Connect the same model to Prompt and Sampler."
            )
        model = self.model
        needed = lumina_core.sampling_nbytes(model.transformer, model.vocabulary, prompt, sampling)
        preview = self.place_to_draw(prompt, needed)
        events = lumina_core.generate(model.transformer, model.vocabulary, prompt, sampling)
        yield from self.served(events, preview, prompt.text)

    def _vq_nbytes(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the image tokenizer takes for the largest picture; encoding takes less than decoding."""
        return max(lumina_core.decode_nbytes(self.model.vq.config, size) for size in sizes)


def _poll_cancel(*_) -> None:
    mm.throw_exception_if_processing_interrupted()
