"""Cases on pictures alone: allowed sizes, crops, transparency, colour."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .. import color
from ..image import allowed_sizes, crop, on_white, plan_crop
from ..unirep import UNIT
from .case import Case, Mismatch, near, near_bytes, same

MOST_UNITS = 512  # patches a side; the lists grow with its square


def _sizes(target: int | str, *holders: dict) -> list[tuple[int, int]]:
    """The allowed sizes under the patch and ratio of the first holder that gives them."""
    patch = next((h["patch"] for h in holders if "patch" in h), UNIT)
    ratio = next((h["max_ratio"] for h in holders if "max_ratio" in h), 4.0)
    if not 0 < int(target) // patch <= MOST_UNITS:
        raise Mismatch(f"a target of {target} in patches of {patch} has no sizes to list")
    return allowed_sizes(int(target), patch, ratio)


def crop_size_list(case: Case) -> None:
    data = case.json()
    for target, expected in data.get("lists", {}).items():
        same(f"lists[{target}]", [tuple(s) for s in expected], _sizes(target, data))
    for i, extra in enumerate(data.get("extra", [])):
        got = _sizes(extra["target_size"], extra, data)
        same(f"extra[{i}]", [tuple(s) for s in extra["sizes"]], got)


def var_center_crop(case: Case) -> None:
    data, family = case.json(), case.family
    for i, record in enumerate(data["records"]):
        width, height = record["in"]
        where = f"records[{i}] {width}x{height}"
        sizes = _sizes(record.get("target_size", data.get("target_size")), record, data)
        size = family.input_size(width, height, sizes)
        same(f"{where} crop_size", tuple(record["crop_size"]), size)
        plan = plan_crop(width, height, size)
        untouched = record["bicubic_resize"] is None
        same(f"{where} untouched", untouched, "crop_box" in record and (width, height) == size)
        if untouched:
            same(f"{where} crop_box", None, record["crop_box"])
            continue
        same(f"{where} box_halvings", [tuple(s) for s in record["box_halvings"]], list(plan.halvings))
        same(f"{where} bicubic_resize", tuple(record["bicubic_resize"]), plan.resize)
        if "crop_box" in record:
            left, top = plan.centre
            box = [left, top, left + size[0], top + size[1]]
            same(f"{where} crop_box", list(record["crop_box"]), box)
        else:
            same(f"{where} left_range", list(record["left_range"]), [0, plan.slack[0]])
            same(f"{where} upper_range", list(record["upper_range"]), [0, plan.slack[1]])


def crop_pixels(case: Case) -> None:
    data, tensors, family = case.json(), case.tensors(), case.family
    for k, record in enumerate(data["records"]):
        i = record.get("i", k)
        picture = Image.fromarray(tensors[f"in_{i}"].numpy(), "RGB")
        sizes = _sizes(record.get("target_size", data.get("target_size")), record, data)
        size = family.input_size(*picture.size, sizes)
        at = None
        if record.get("random_offsets"):
            plan = plan_crop(*picture.size, size)
            ranges = [[low, high] for low, high, _ in record["random_offsets"]]
            same(f"records[{k}] random_offsets", ranges, [[0, slack] for slack in plan.slack])
            at = tuple(used for _, _, used in record["random_offsets"])
        got = np.asarray(crop(picture, size, at))
        near_bytes(f"out_{i}", tensors[f"out_{i}"].numpy(), got, int(case.tolerance("max_abs", 1)))


def whiten(case: Case) -> None:
    tensors = case.tensors()
    for k, record in enumerate(case.json()["records"]):
        i = record.get("i", k)
        got = np.asarray(on_white(case.picture(record["image"])))
        near_bytes(f"out_{i} ({record.get('mode')})", tensors[f"out_{i}"].numpy(), got)


def color_fix(case: Case) -> None:
    data, tensors = case.json(), case.tensors() if case.has("tensors") else {}
    most = int(case.tolerance("u8_max_abs", 1))
    for k, record in enumerate(data["records"]):
        content, style = (_unit(case.pixels(record[name])) for name in ("content", "style"))
        fixed = color.wavelet_fix(content, style, data.get("levels", color.LEVELS))
        if "float" in record:
            near(record["float"], tensors[record["float"]], fixed[0], case.tolerance("float_atol", 2e-3))
        for name, image in (("wavelet", fixed), ("adain", None)):
            if name in record:
                image = color.adain_fix(content, style) if image is None else image
                got = color.to_bytes(image)[0].numpy()
                near_bytes(f"records[{k}] {name}", case.pixels(record[name]), got, most)


def _unit(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
