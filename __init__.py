"""Lumina-mGPT for ComfyUI. Imported anywhere else it offers nothing; `lumina_core` is the library."""

from importlib.util import find_spec

__all__ = []

if find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint  # noqa: F401

    WEB_DIRECTORY = "./nodes/web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
