"""Checkpoints and LoRAs in the model folders, by their names in the menus."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import lumina_core
from ..lumina_core import CheckpointError, InputError, LuminaError
from .host import FOLDER, HostedModel, find_file, hosted, list_files, list_folders, percent_bar, show_on_node

log = logging.getLogger(__name__)

OFF = "off"
DOWNLOADS = (OFF, *lumina_core.RELEASES)
LORA_FOLDER = "loras"  # ComfyUI's own


def checkpoints() -> dict[str, Path]:
    """Every checkpoint by the name in the menu: the bundled ones, then folders and converted files. Never raises."""
    bundled, found = lumina_core.bundled(), lumina_core.listing(list_folders(FOLDER))
    return bundled | {name: path for name, path in found.items() if name not in bundled}


def unknown_checkpoint(name: str) -> str | None:
    """What is wrong with a checkpoint's name and what to do about it, or None when the checkpoint is there."""
    known = checkpoints()
    if name in known:
        return None
    places = " or ".join(list_folders(FOLDER))
    return (
        f"There is no checkpoint '{name}'. Found: {', '.join(known) or 'none'}. Put the checkpoint's folder "
        "(config.json, tokenizer.json, tokenizer_config.json, model*.safetensors and the image tokenizer) or a file "
        f"made by `convert` into {places}, then press R."
    )


def unknown_download(name: str) -> str | None:
    """What is wrong with the name of a download, or None when it is one of `DOWNLOADS`."""
    if name in DOWNLOADS:
        return None
    return f"download is '{name}'; it may be {', '.join(DOWNLOADS)}. Choose one of them."


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
    return [folder for place in (FOLDER, "vae") for folder in list_folders(place)]


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


def load(name: str, precision: str) -> HostedModel:
    """The model of a checkpoint; loaders of the same files and precision share one."""
    if fault := unknown_checkpoint(name):
        raise CheckpointError(fault)
    return hosted(name, checkpoints()[name], precision, fingerprint(name), _vq_folders())


def fetch(name: str) -> str:
    """Fetches a release, as its user asked, unless all is there; its name in the menu.

    It goes into the model folder that has some of it, else into the first. A `CheckpointError` where nothing lacks but
    the image tokenizer that nobody offers for download.
    """
    if fault := unknown_download(name):  # a name that came over a link is not checked by the host
        raise InputError(fault)
    places = [Path(folder) / name for folder in list_folders(FOLDER)]
    path = checkpoints().get(name) or next((place for place in places if place.is_dir()), places[0])
    try:
        lumina_core.vq_file(path, _vq_folders())
        return name
    except LuminaError as e:  # something lacks
        # looked for last, so all else is there; every error about it has its name
        if lumina_core.RELEASES[name].by_hand and "vqgan.ckpt" in str(e):
            raise
    report = percent_bar()
    with lumina_core.Download(name, path.parent) as job:
        if job.release.licence:
            log.info("Lumina-mGPT: %s", job.release.licence)
        before = ""
        for share, doing in job.watch():
            report(int(100 * share), 100)
            if doing != before:
                show_on_node(doing)
                log.info("Lumina-mGPT: %s", doing)
            before = doing
    return name


def loras() -> list[str]:
    """The LoRA files by their names in the menu. Never raises."""
    try:
        return [n for n in list_files(LORA_FOLDER) if Path(n).suffix in lumina_core.LORA_SUFFIXES]
    except OSError:
        return []


def unknown_lora(name: str) -> str | None:
    """What is wrong with a LoRA's name and what to do about it, or None when the file is there."""
    if name in loras():
        return None
    places = " or ".join(list_folders(LORA_FOLDER))
    return f"There is no LoRA '{name}'. Put the file, or the folder that PEFT wrote, into {places}, then press R."


def lora_fingerprint(name: str) -> tuple:
    """Name, size and time of a LoRA's file, and of the configuration that PEFT puts beside it."""
    path = find_file(LORA_FOLDER, name)
    if path is None:
        return (name,)
    files = [Path(path)]
    beside = files[0].with_name("adapter_config.json")
    if files[0].stem == "adapter_model" and beside.is_file():
        files.append(beside)
    stats = [file.stat() for file in files]
    return (path, *((s.st_size, s.st_mtime_ns) for s in stats))


def lora_file(name: str) -> Path:
    """The file of a LoRA, or an `InputError` that says what to do."""
    if fault := unknown_lora(name):
        raise InputError(fault)
    return Path(find_file(LORA_FOLDER, name))
