"""The only file that imports ComfyUI: node types, folders, memory, progress, Cancel and preview."""

from __future__ import annotations

import copy
import itertools
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
from PIL import Image
from server import PromptServer

from .. import lumina_core
from ..lumina_core import (
    AnswerFinished,
    Chat,
    CheckpointError,
    InputError,
    LuminaError,
    Model,
    PictureError,
    PictureFinished,
    Progress,
    Prompt,
    Request,
    Restored,
    RowFinished,
    Sampling,
    TokenGrid,
)
from .preview import Preview

__all__ = [
    "DOWNLOADS",
    "OFF",
    "PRECISIONS",
    "ComfyExtension",
    "GraphBuilder",
    "HostedModel",
    "LiveText",
    "advanced",
    "checkpoints",
    "fetch",
    "fingerprint",
    "io",
    "load",
    "lora_fingerprint",
    "loras",
    "nothing",
    "results_are_kept",
    "schema",
    "show_on_node",
    "to_image",
    "unknown_checkpoint",
    "unknown_lora",
]

log = logging.getLogger(__name__)

FOLDER = "lumina_mgpt"  # under models/, and the key in extra_model_paths.yaml
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = ("auto", *FLOATS, *lumina_core.KINDS)
CUT_SHORT = {  # why a free answer ended that the model did not end
    "limit": "was cut at the longest length there is",
    "picture": "ends before a picture that does not fit into the model's positions",
}

for _error in (CheckpointError, InputError, LuminaError, PictureError):
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
    """Shows a line of text on the node that runs; inside a node that expanded, on that one."""
    context = get_executing_context()
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text(text, context.node_id.partition(".")[0])


class LiveText:
    """Text on the node that runs, while it is written: a few times a second, whole at the end."""

    PAUSE = 0.2  # seconds

    def __init__(self):
        self.next = 0.0

    def show(self, text: Callable[[], str]) -> None:
        """Shows a text, which is only made when it is time for one."""
        if time.monotonic() >= self.next:
            show_on_node(text())
            self.next = time.monotonic() + self.PAUSE


def nothing() -> ExecutionBlocker:
    """What an output holds when there is nothing for it: nodes behind it do not run, and that is no fault."""
    return ExecutionBlocker(None)


def to_image(pictures: Sequence) -> list[torch.Tensor]:
    """IMAGE batches of pictures (H, W, 3) in bytes; neighbours of one size share a batch."""
    batches = [list(same) for _, same in itertools.groupby(pictures, lambda p: p.shape)]
    return [lumina_core.to_tensor(batch).to(mm.intermediate_device()) for batch in batches]


# Checkpoints on disk


def checkpoints() -> dict[str, Path]:
    """Every checkpoint by the name in the menu: the bundled ones, then folders and converted files. Never raises."""
    bundled, found = lumina_core.bundled(), lumina_core.listing(folder_paths.get_folder_paths(FOLDER))
    return bundled | {name: path for name, path in found.items() if name not in bundled}


def unknown_checkpoint(name: str) -> str | None:
    """What is wrong with a checkpoint's name and what to do about it, or None when the checkpoint is there."""
    known = checkpoints()
    if name in known:
        return None
    places = " or ".join(folder_paths.get_folder_paths(FOLDER))
    return (
        f"There is no checkpoint '{name}'. Found: {', '.join(known) or 'none'}. Put the checkpoint's folder "
        "(config.json, tokenizer.json, model*.safetensors and the image tokenizer) or a file made by `convert` into "
        f"{places}, then press R."
    )


def fingerprint(name: str) -> tuple:
    """Names, sizes and times of a checkpoint's files, its image tokenizer's too; it changes when they do."""
    path = checkpoints().get(name)
    if path is None:
        return (name,)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    if (vq := _vq_file(path)) is not None and vq not in files:
        files.append(vq)
    stats = [(p.name, p.stat()) for p in files if p.is_file()]
    return (str(path), *((file, s.st_size, s.st_mtime_ns) for file, s in stats))


def _vq_folders() -> list[str]:
    """Where an image tokenizer may lie that is not beside its checkpoint."""
    return [folder for place in (FOLDER, "vae") for folder in folder_paths.get_folder_paths(place)]


_vq_files: dict[Path, Path] = {}  # of checkpoints; looked for once, because headers have to be read


def _vq_file(path: Path) -> Path | None:
    """The file with a checkpoint's image tokenizer; None where there is none, which loading then explains."""
    known = _vq_files.get(path)
    if known is None or not known.is_file():
        try:
            known = _vq_files[path] = lumina_core.vq_file(path, _vq_folders())
        except LuminaError:
            return None
    return known


# Downloads, on the user's own request

OFF = "off"
DOWNLOADS = (OFF, *lumina_core.RELEASES)


def fetch(name: str) -> str:
    """Fetches a release into the first model folder, unless all of it is there; its name in the menu."""
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    try:
        lumina_core.vq_file(checkpoints().get(name, folder / name))
        return name
    except LuminaError:  # something lacks
        pass
    bar = comfy.utils.ProgressBar(100)
    with lumina_core.Download(name, folder) as job:
        if job.release.licence:
            log.info("Lumina-mGPT: %s", job.release.licence)
        before = ""
        for share, doing in job.watch():
            mm.throw_exception_if_processing_interrupted()
            bar.update_absolute(int(100 * share))
            if doing != before:
                show_on_node(doing)
                log.info("Lumina-mGPT: %s", doing)
            before = doing
    return name


LORAS = "loras"  # ComfyUI's own folder of LoRAs


def loras() -> list[str]:
    """The LoRA files by their names in the menu. Never raises."""
    try:
        return [
            n for n in folder_paths.get_filename_list(LORAS) if Path(n).suffix in lumina_core.LORA_SUFFIXES
        ]
    except OSError:
        return []


def unknown_lora(name: str) -> str | None:
    """What is wrong with a LoRA's name and what to do about it, or None when the file is there."""
    if name in loras():
        return None
    places = " or ".join(folder_paths.get_folder_paths(LORAS))
    return f"There is no LoRA '{name}'. Put the file, or the folder that PEFT wrote, into {places}, then press R."


def lora_fingerprint(name: str) -> tuple:
    """Name, size and time of a LoRA's file."""
    path = folder_paths.get_full_path(LORAS, name)
    if path is None:
        return (name,)
    stat = Path(path).stat()
    return (path, stat.st_size, stat.st_mtime_ns)


# Models in memory

_hosted: weakref.WeakValueDictionary[tuple, HostedModel] = weakref.WeakValueDictionary()


def load(name: str, precision: str) -> HostedModel:
    """A checkpoint by its name in the menu; loaders of the same files and precision share one."""
    if fault := unknown_checkpoint(name):
        raise CheckpointError(fault)
    path = checkpoints()[name]
    dtype = FLOATS.get(precision) or lumina_core.default_dtype(path, mm.get_torch_device())
    quantise = precision if precision in lumina_core.KINDS else None
    key = (fingerprint(name), dtype, quantise)
    hosted = _hosted.get(key)
    if hosted is None:
        start = time.monotonic()
        model = lumina_core.load(
            path,
            vq_folders=_vq_folders(),
            dtype=dtype,
            quantise=quantise,
            ops=comfy.ops.disable_weight_init,
            report=_loading(),
        )
        hosted = _hosted[key] = HostedModel(model)
        took, kind = time.monotonic() - start, quantise or str(dtype).removeprefix("torch.")
        log.info("Lumina-mGPT: loaded %s (%s) as %s in %.1f s", name, model.family.title, kind, took)
    return hosted


def _loading() -> Callable[[int, int], None]:
    """Shows how much of the weights is read, in percent, and lets Cancel end it."""
    bar = comfy.utils.ProgressBar(100)

    def report(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        if (percent := 100 * done // max(1, total)) > bar.current:
            bar.update_absolute(percent)

    return report


class HostedModel:
    """What travels on a LUMINA_MODEL socket: a model whose weights ComfyUI's memory manager places.

    Transformer and image tokenizer are managed apart, so one can make room for the other.
    """

    def __init__(self, model: Model):
        self.model = model
        self.transformer = ModelPatcher(model.transformer, mm.get_torch_device(), mm.unet_offload_device())
        self.vq = ModelPatcher(model.vq, mm.vae_device(), mm.vae_offload_device())
        self.base: HostedModel | None = None  # kept, so that a second loader finds it
        if not hasattr(comfy.ops, "run_every_op"):  # newer hosts poll Cancel in each of their layers
            ends = (layer.mlp.down_proj for layer in model.transformer.model.layers)
            for layer in (*ends, *(m for m in model.vq.modules() if isinstance(m, torch.nn.Conv2d))):
                layer.register_forward_pre_hook(_poll_cancel)

    def with_lora(self, name: str, strength: float) -> HostedModel:
        """The same model with a LoRA on top; weights are shared, and patched when the transformer is placed."""
        if fault := unknown_lora(name):
            raise InputError(fault)
        lora = lumina_core.read_lora(folder_paths.get_full_path(LORAS, name), self.model.transformer)
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

    def prompt(
        self,
        text: str,
        task: str,
        size: tuple[int, int] | None,
        images: Sequence[Image.Image],
        keep: Sequence[TokenGrid] | None = None,
        mask: torch.Tensor | None = None,
        template: str = "",
    ) -> Prompt:
        """The token prefix of a task; given images are encoded. Of `keep` all is kept that `mask` does not touch.

        A side of 0 is the checkpoint's own. With images or kept tokens and both sides 0, the size is theirs.
        """
        if size is not None and not all(size):
            own = [side or mine for side, mine in zip(size, self.model.own_size, strict=True)]
            size = None if (images or keep) and not any(size) else tuple(own)
        if images:
            self._place([self.vq], self._vq_memory([size] if size else _sizes(images)))
        if keep is None and mask is not None:
            raise InputError(
                "A mask is connected but no tokens: connect the tokens of the picture to redraw."
            )
        if keep and size is None:
            size = lumina_core.size_kept(self.model, task, keep)
        prompt = self.model.prompt(text, task=task, size=size, images=images, template=template or None)
        return prompt if keep is None else lumina_core.redraw(prompt, self.model.vocabulary, keep, mask)

    def encode(self, images: Sequence[Image.Image], fit: str) -> list[TokenGrid]:
        """The codes of pictures."""
        self._place([self.vq], self._vq_memory(_sizes(images)))
        return [self.model.encode(image, fit=fit) for image in _watched(images)]

    def decode(self, grids: Sequence[TokenGrid]) -> list[torch.Tensor]:
        """The pictures of code grids as IMAGE batches; neighbours of one size share a batch."""
        if not grids:
            raise InputError("There are no tokens to decode: the model drew no picture.")
        if odd := next((g for g in grids if g.family != self.model.family.id), None):
            raise InputError(
                f"The tokens are of family {odd.family}; '{self.model.name}' cannot decode them."
            )
        factor = self.model.vq.config.factor
        sizes = [(g.codes.shape[1] * factor, g.codes.shape[0] * factor) for g in grids]
        self._place([self.vq], self._vq_memory(sizes))
        return to_image([self.model.decode(grid.codes) for grid in _watched(grids)])

    def draw(self, prompt: Prompt, sampling: Sampling) -> Iterator:
        """The sampler's events, passed on while progress, preview and Cancel are served."""
        if prompt.family != self.model.family.id:
            raise InputError(
                f"The prompt was made for family {prompt.family}; '{self.model.name}' is of family "
                f"{self.model.family.id}. Connect the same model to Prompt and Sampler."
            )
        model = self.model
        needed = lumina_core.sampling_nbytes(model.transformer, model.vocabulary, prompt, sampling)
        preview = self._place_to_draw(prompt, needed)
        events = lumina_core.generate(model.transformer, model.vocabulary, prompt, sampling)
        yield from self._served(events, preview, prompt.text)

    def restore(self, picture: Image.Image, sampling: Sampling, **options) -> Restored:
        """A picture restored in tiles, as many side by side as the free memory holds."""
        job = lumina_core.Restoration(self.model, picture, seed=sampling.seed, **options)
        vq_memory = self._vq_memory([(job.plan.tile, job.plan.tile)])
        self._place([self.vq], vq_memory)
        abreast = job.abreast(job.prompts(_watched), sampling)
        preview = self._place_to_draw(abreast.prompts[0], abreast.nbytes())
        free = mm.get_free_memory(self.transformer.load_device)
        for _ in self._served(job.draw(abreast, abreast.at_once(int(free))), preview, "restore"):
            pass
        self._place([self.vq], vq_memory)
        return job.finish(_watched)

    def ask(self, chat: Chat, question: str, images: Sequence[Image.Image]) -> tuple[Chat, Prompt]:
        """A chat with one more question, and the prompt whose answer comes next; images are encoded."""
        if images:
            self._place([self.vq], self._vq_memory(_sizes(images)))
        chat = chat.ask(self.model, question, images)
        return chat, chat.prompt(self.model)

    def likelihoods(self, prompt: Prompt, grids: Sequence[TokenGrid]) -> list[float]:
        """How likely this model finds pictures drawn of a prompt: mean log-probabilities of their codes."""
        tokens = len(prompt.tokens) + max(grid.codes.numel() for grid in grids)
        self._place([self.transformer], lumina_core.pass_nbytes(self.model.transformer, tokens))
        return lumina_core.likelihoods(self.model, prompt, grids, _watched)

    def agreements(self, question: str, pictures: Sequence[Image.Image]) -> list[float]:
        """How much rather this model answers a question about each picture with yes than with no, 0 to 1."""
        self._place([self.vq], self._vq_memory(_sizes(pictures)))
        prompts = lumina_core.question_prompts(self.model, question, pictures, _watched)
        tokens = max(len(prompt.tokens) for prompt in prompts)
        self._place([self.transformer], lumina_core.pass_nbytes(self.model.transformer, tokens))
        return lumina_core.agreements(self.model, prompts, _watched)

    def pictures(self, grids: Sequence[TokenGrid]) -> list[Image.Image]:
        """The pictures of code grids, the last panel alone where there are several."""
        factor = self.model.vq.config.factor
        self._place(
            [self.vq],
            self._vq_memory([(g.codes.shape[1] * factor, g.codes.shape[0] * factor) for g in grids]),
        )
        return lumina_core.decoded(self.model, grids, _watched)

    def _place_to_draw(self, prompt: Prompt, working: int) -> Preview | None:
        """Brings the parts in place that drawing takes, and gives the preview where previews are switched on."""
        if args.preview_method == LatentPreviewMethod.NoPreviews:
            self._place([self.transformer], working)
            return None
        preview = Preview(self.model, min(512, args.preview_size))
        self._place([self.transformer, self.vq], working + self._vq_memory([preview.strip(prompt)]))
        return preview

    def _served(self, events: Iterator, preview: Preview | None, what: str) -> Iterator:
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

    def asked(
        self,
        task: str,
        images: Sequence[Image.Image],
        text: str = "",
        tokens: Sequence[TokenGrid] = (),
        **options,
    ) -> list[Request]:
        """What is asked about each picture, or about the `tokens` it was drawn as; the pictures are encoded."""
        if tokens and len(tokens) != len(images):
            raise InputError(
                f"{len(tokens)} pictures come as tokens and {len(images)} as image; connect tokens and image of the "
                "same node, or the image alone."
            )
        size, side = options.get("size"), options.get("side", 0)
        sizes = [size or lumina_core.working_size(self.model, task, image, side) for image in images]
        self._place([self.vq], self._vq_memory(sizes))
        grids = list(tokens) or [None] * len(images)
        return [
            lumina_core.ask(self.model, task, image, text, tokens=grid, **options)
            for image, grid in _watched(list(zip(images, grids, strict=True)))
        ]

    def answered(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Request, TokenGrid]]:
        """The panels that answer, each with its request; every picture is asked about with the same seed."""
        found = []
        for n, request in enumerate(requests):
            if len(requests) > 1:
                show_on_node(f"picture {n + 1} of {len(requests)}")
            for event in self.draw(request.prompt, sampling):
                if isinstance(event, PictureFinished):
                    found.append((request, request.panel(event.grid)))
        return found

    def placed(self, answers: Sequence[tuple[Request, TokenGrid]], keep_size: bool = True) -> torch.Tensor:
        """Answers as an IMAGE batch, brought to lie on their pictures unless their own size is wanted."""
        self._place([self.vq], self._vq_memory([request.placement.size for request, _ in answers]))
        drawn = [r.place(self.model.decode(grid.codes), keep_size) for r, grid in _watched(answers)]
        return lumina_core.to_tensor(drawn).to(mm.intermediate_device())

    def found(
        self, answers: Sequence[tuple[Request, TokenGrid]], label: str
    ) -> tuple[torch.Tensor, str, torch.Tensor]:
        """The boxes that answers show: drawn as an IMAGE batch, as JSON, and as masks."""
        self._place([self.vq], self._vq_memory([request.placement.size for request, _ in answers]))
        found = lumina_core.detections(self.model, list(_watched(answers)), label)
        device = mm.intermediate_device()
        return lumina_core.to_tensor(found.drawn()).to(device), found.json(), found.masks().to(device)

    def panels(self, prompt: Prompt, sampling: Sampling) -> list[torch.Tensor]:
        """What is drawn of a prompt of several panels: an IMAGE batch of each panel, from top to bottom."""
        drawn = [e.grid for e in self.draw(prompt, sampling) if isinstance(e, PictureFinished)]
        return [self.decode(panels)[0] for panels in zip(*(grid.split() for grid in drawn), strict=True)]

    def _place(self, parts: list[ModelPatcher], working: int) -> None:
        mm.load_models_gpu(parts, memory_required=working)

    def _vq_memory(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the image tokenizer takes for the largest picture; encoding takes less than decoding."""
        return max(lumina_core.decode_nbytes(self.model.vq.config, size) for size in sizes)


def _poll_cancel(*_) -> None:
    mm.throw_exception_if_processing_interrupted()


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    return [image.size for image in images]


def _watched(items: Sequence) -> Iterator:
    """The items, with a step of the progress bar after each and Cancel polled before."""
    bar = comfy.utils.ProgressBar(len(items))
    for item in items:
        mm.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)
