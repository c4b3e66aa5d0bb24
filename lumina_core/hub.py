"""Fetches the files of a released checkpoint through `huggingface_hub`. Only on the user's own request."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from .errors import InputError, LuminaError
from .files import cannot_write, user_path

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "text_tokenizer.json",
    "model*.safetensors*",
)
CHAMELEON = (
    "{title} is built on Meta's Chameleon and comes under the Chameleon Research License: research and other "
    "non-commercial use only. Read it before you go on: https://ai.meta.com/resources/models-and-libraries/"
    "chameleon-license"
)


@dataclass(frozen=True)
class RemoteFile:
    """One file in a repository; size and sha256 are None where the repository does not say."""

    repo: str
    name: str
    nbytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Release:
    """A released checkpoint and the image tokenizer it needs."""

    name: str
    family: str
    title: str
    repo: str
    about: str
    nbytes: int  # of the weights, about
    vq: RemoteFile | None
    licence: str | None = None
    by_hand: str | None = None  # what nobody offers for download without signing


class Hub(Protocol):
    """What is used of the module `huggingface_hub`; tests hand in their own.

    With `file_download.http_get`, which every release since 2023 has, broken-off files are gone on with; without it
    `hf_hub_download` begins them anew.
    """

    def hf_hub_download(self, *, repo_id: str, filename: str, local_dir: str) -> str: ...

    def HfApi(self): ...


VQGAN = (
    "The image tokenizer of Lumina-mGPT 1.0 (vqgan.ckpt, 275 MB, and vqgan.yaml) cannot be fetched from here: Meta "
    "gives it out with Chameleon at https://github.com/facebookresearch/chameleon. Put vqgan.ckpt into {folder}."
)
MOVQ = RemoteFile("ai-forever/MoVQGAN", "movqgan_270M.ckpt")
VQ8 = RemoteFile("FoundationVision/LlamaGen", "vq_ds8_c2i.pt")


def _mgpt1(size: str, about: str, nbytes: int) -> Release:
    name = f"Lumina-mGPT-{size}"
    return Release(
        name,
        "mgpt1",
        "Lumina-mGPT 1.0",
        f"Alpha-VLLM/{name}",
        about,
        nbytes,
        None,
        CHAMELEON.format(title="Lumina-mGPT 1.0"),
        VQGAN,
    )


def _mgpt2(name: str, about: str) -> Release:
    return Release(name, "mgpt2", "Lumina-mGPT 2.0", f"Alpha-VLLM/{name}", about, 15_760_000_000, MOVQ)


RELEASES: dict[str, Release] = {
    r.name: r
    for r in (
        _mgpt1("7B-512", "text to image at 512 px, captions", 14_030_000_000),
        _mgpt1("7B-768", "text to image at 768 px, captions", 14_030_000_000),
        _mgpt1("7B-768-Omni", "all tasks at 768 px", 14_030_000_000),
        _mgpt1("7B-1024", "text to image at 1024 px, captions", 14_030_000_000),
        _mgpt1("34B-512", "text to image at 512 px, captions", 68_590_000_000),
        _mgpt2("Lumina-mGPT-2.0", "text to image and image pairs at 768 px"),
        _mgpt2("Lumina-mGPT-2.0-Omni", "all tasks"),
        Release(
            "PURE",
            "pure",
            "PURE",
            "nonwhy/PURE",
            "super-resolution of real-world pictures",
            14_160_000_000,
            VQ8,
            CHAMELEON.format(title="PURE"),
        ),
    )
}


def find(name: str) -> Release:
    """A release by its name, its repository, or a family's id when that has one release only."""
    low = name.lower()
    hits = [r for r in RELEASES.values() if low in (r.name.lower(), r.repo.lower())]
    hits = hits or [r for r in RELEASES.values() if low == r.family]
    if len(hits) != 1:
        which = [r.name for r in hits] or list(RELEASES)
        raise InputError(f"'{name}' is no release that can be fetched; choose one of {', '.join(which)}.")
    return hits[0]


def release_of(name: str) -> Release | None:
    """The release whose folder has this name; None where it is none's."""
    return next((r for r in RELEASES.values() if name in (r.name, r.repo.rpartition("/")[2])), None)


def download(
    name: str,
    folder: str | Path,
    *,
    report: Callable[[str], None],
    hub: Hub | None = None,
) -> Path:
    """Fetches a release into `folder`/<its name> with its image tokenizer; returns that folder.

    `report` takes lines for the user: first the licence note, then what is fetched. Files that are there in full size
    are skipped. What came of a file that broke off stays as `<name>.part` and is gone on with; it gets its name when
    its size and checksum are the repository's. The library draws the progress bars. Raises `InputError` for the name,
    a full disk or a folder that cannot be written, `LuminaError` when a file cannot be had.
    """
    release = find(name)
    target = user_path(folder) / release.name
    if release.licence:
        report(release.licence)
    hub = hub or _library()
    files = _listed(hub, release)
    try:
        waiting = [f for f in files if not _whole(target, f)]
        need = sum(_lacking(target, f, _http_get(hub) is not None) for f in waiting)
    except OSError as e:
        raise cannot_write(target, e) from None
    report(
        f"{release.title}, {release.about}: {len(files)} files into {target}, {len(files) - len(waiting)} there "
        f"already, {need / 1e9:.1f} GB to fetch"
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
    except OSError as e:
        raise cannot_write(target, e) from None
    if need > free:
        raise InputError(
            f"'{target}' has {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB are to be fetched. Free some room or give "
            "another folder."
        )
    for i, file in enumerate(waiting, 1):
        report(
            f"{i}/{len(waiting)} {file.repo}/{file.name}"
            + (f" {file.nbytes / 1e6:.0f} MB" if file.nbytes else "")
        )
        _fetch(hub, file, target)
    if release.by_hand:
        report(release.by_hand.format(folder=target))
    return target


def _library() -> Hub:
    try:
        import huggingface_hub
    except ImportError:
        raise LuminaError(
            "Downloading needs the package huggingface_hub: `pip install huggingface_hub`, then run the same command."
        ) from None
    with contextlib.suppress(ImportError):
        import huggingface_hub.file_download
    return huggingface_hub


def _listed(hub: Hub, release: Release) -> list[RemoteFile]:
    """The files of a release with their sizes, as the repositories list them now."""
    files = []
    for repo, patterns in (
        (release.repo, WANTED),
        (release.vq and release.vq.repo, (release.vq and release.vq.name,)),
    ):
        if not repo:
            continue
        try:
            listed = hub.HfApi().model_info(repo, files_metadata=True).siblings
        except Exception as e:  # the library has its own errors for network, access and names
            raise LuminaError(
                f"{repo} cannot be listed: {_line(e)}. Check the network, then run it again."
            ) from e
        top = [s for s in listed if "/" not in s.rfilename]
        hits = [s for s in top if any(fnmatch(s.rfilename, p) for p in patterns)]
        if not any(s.rfilename.endswith((".safetensors", *patterns[:1])) for s in hits):
            raise LuminaError(
                f"{repo} does not hold {patterns[0]} any more; look at https://huggingface.co/{repo}."
            )
        files += [RemoteFile(repo, s.rfilename, getattr(s, "size", None), _sha256(s)) for s in hits]
    return files


def _sha256(sibling) -> str | None:
    """The checksum of a large file; small ones have none."""
    lfs = getattr(sibling, "lfs", None)
    return lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)


def _whole(target: Path, file: RemoteFile) -> bool:
    path = target / file.name
    return path.is_file() and file.nbytes in (None, path.stat().st_size)


def _lacking(target: Path, file: RemoteFile, goes_on: bool) -> int:
    """Bytes that are to be fetched of a file; `goes_on` says whether the library can go on with one."""
    part = target / f"{file.name}.part"
    there = part.stat().st_size if goes_on and file.sha256 and part.is_file() else 0
    return max(0, (file.nbytes or 0) - there)


def _http_get(hub: Hub) -> Callable | None:
    return getattr(getattr(hub, "file_download", None), "http_get", None)


def _fetch(hub: Hub, file: RemoteFile, target: Path) -> None:
    part = target / f"{file.name}.part"
    try:
        if http_get := _http_get(hub):
            _go_on(hub, http_get, file, part)
        else:
            hub.hf_hub_download(repo_id=file.repo, filename=file.name, local_dir=str(target))
            (target / file.name).replace(part)
    except InputError:
        raise
    except Exception as e:  # as above
        raise LuminaError(
            f"{file.repo}/{file.name} broke off: {_line(e)}. Run the same command to go on where it stopped."
        ) from e
    _check(file, part)
    try:
        part.replace(target / file.name)
    except OSError as e:
        raise InputError(
            f"'{target / file.name}' cannot be written ({e.strerror or e}); what came stays as {part.name}. Remove "
            "what has that name, or close what uses it, and run the same command again."
        ) from None


def _go_on(hub: Hub, http_get: Callable, file: RemoteFile, part: Path) -> None:
    """Fetches what lacks of a file. Small ones, whose checksum nobody tells, begin anew."""
    url = hub.hf_hub_url(file.repo, file.name)
    found = hub.get_hf_file_metadata(url)
    # an address elsewhere is not told the user's token
    elsewhere = urlsplit(found.location).netloc != urlsplit(url).netloc
    try:
        out = part.open("ab" if file.sha256 else "wb")
    except OSError as e:
        raise cannot_write(part, e) from None
    with out:
        if file.nbytes is not None and out.tell() > file.nbytes:
            out.seek(0)
            out.truncate()
        if out.tell() and out.tell() == file.nbytes:
            return
        http_get(
            found.location,
            out,
            resume_size=out.tell(),
            headers={} if elsewhere else hub.utils.build_hf_headers(),
            expected_size=file.nbytes,
        )


def _check(file: RemoteFile, part: Path) -> None:
    """Raises, and deletes what came, when its size or checksum is not the repository's."""
    size, name = part.stat().st_size, part.with_suffix("")
    if file.nbytes not in (None, size):
        fault = f"{name} has {size} bytes, {file.nbytes} are expected"
    elif file.sha256 and _digest(part) != file.sha256:
        fault = f"{name} arrived damaged: its checksum is not {file.repo}'s"
    else:
        return
    part.unlink()
    raise LuminaError(f"{fault}. It is deleted; run the same command again.")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while part := f.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _line(e: Exception) -> str:
    return (str(e).strip() or repr(e)).splitlines()[0].rstrip(".")
