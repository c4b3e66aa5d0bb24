"""The table and the JSON of a bench."""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import __version__
from .floor import Floor
from .measure import Run

WINDOWED = ("jacobi", "coupled")  # modes with a window
OTHER = "transformers"


@dataclass(frozen=True)
class Row:
    """Medians of one way to draw a picture."""

    model: str
    size: tuple[int, int]
    mode: str
    window: int | None  # tokens of one picture that most passes were fed; None: one at a time
    passes: float
    tokens_per_pass: float  # codes drawn a pass; row ends, which are forced, do not count
    ms_per_pass: float
    ms_per_token: float  # decoding by the tokens drawn, prefill by all of the picture
    prefill: float  # seconds
    decode: float
    vq: float
    capture: float  # seconds of recording CUDA graphs, part of `decode` but not of `ms_per_pass`
    first: float  # seconds of the warm-up beyond what as many tokens take later
    gb_per_second: float
    floor_share: float | None
    peak: int | None  # bytes
    seeds: int
    drawn: float  # tokens drawn, row ends among them; fewer than the picture's where it was cut short


def row_of(
    names: tuple[str, tuple[int, int], str],
    runs: Sequence[Run],
    first: Run,
    shape: tuple[int, int],
    floor: Floor,
) -> Row:
    """The row of some runs of one mode; `shape` (h, w) are the codes of the whole picture, `first` is the warm-up."""
    rows, columns = shape
    figures = ("passes", "tokens", "prefill", "decode", "vq", "capture")
    passes, drawn, prefill, decode, vq, capture = (
        statistics.median(getattr(r, name) for r in runs) for name in figures
    )
    each = (decode - capture) / passes
    return Row(
        *names,
        window=max(r.width for r in runs) if names[2] in WINDOWED else None,
        passes=passes,
        tokens_per_pass=(drawn - drawn // (columns + 1)) / passes,
        ms_per_pass=1000 * each,
        ms_per_token=1000 * (prefill / (rows * (columns + 1)) + decode / drawn),
        prefill=prefill,
        decode=decode,
        vq=vq,
        capture=capture,
        first=max(0.0, first.prefill - prefill + first.decode - decode * first.tokens / drawn),
        gb_per_second=floor.bytes / each / 1e9,
        floor_share=floor.share(each),
        peak=max((r.peak for r in runs if r.peak is not None), default=None),
        seeds=len(runs),
        drawn=drawn,
    )


COLUMNS = {  # heading -> what stands there
    "mode": lambda r: r.mode,
    "window": lambda r: r.window or "-",
    "seeds": lambda r: r.seeds,
    "tokens": lambda r: f"{r.drawn:g}",
    "passes": lambda r: f"{r.passes:g}",
    "tokens/pass": lambda r: f"{r.tokens_per_pass:.2f}",
    "ms/pass": lambda r: f"{r.ms_per_pass:.2f}",
    "ms/token": lambda r: f"{r.ms_per_token:.2f}",
    "prefill s": lambda r: f"{r.prefill:.3f}",
    "decode s": lambda r: f"{r.decode:.3f}",
    "VQ s": lambda r: f"{r.vq:.3f}" if r.vq else "-",
    "capture s": lambda r: f"{r.capture:.2f}" if r.capture else "-",
    "first +s": lambda r: f"{r.first:.2f}",
    "GB/s": lambda r: f"{r.gb_per_second:.1f}",
    "of floor": lambda r: "-" if r.floor_share is None else f"{r.floor_share:.0%}",
    "peak MB": lambda r: "-" if r.peak is None else f"{r.peak / 1e6:.0f}",
}


def heading() -> str:
    """The first line of the table."""
    return _aligned(list(COLUMNS))


def line(row: Row) -> str:
    """A row of the table; its place in a column is known before the other rows are."""
    return _aligned([str(show(row)) for show in COLUMNS.values()])


def _aligned(cells: Sequence[str]) -> str:
    """The first cell to the left, as wide as the longest mode; the others, which are numbers, to the right."""
    widths = [max(6, len(name)) for name in COLUMNS]
    first = cells[0].ljust(len(OTHER))
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])


@dataclass(frozen=True)
class Ratio:
    """How one way to draw compares with plain decoding and with transformers; None where those were not measured."""

    mode: str
    fewer_passes: float | None
    faster_than_ar: float | None
    faster_than_transformers: float | None

    def line(self) -> str:
        parts = []
        if self.fewer_passes is not None:
            parts.append(f"{self.fewer_passes:.2f} times fewer passes than ar")
        if self.faster_than_ar is not None:
            parts.append(f"{self.faster_than_ar:.2f} times as fast as ar")
        if self.faster_than_transformers is not None:
            parts.append(f"{self.faster_than_transformers:.2f} times as fast as transformers")
        return f"{self.mode}: {', '.join(parts)}"


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """How our modes compare, by passes and by time a token."""
    plain = next((r for r in rows if r.mode == "ar"), None)
    other = next((r for r in rows if r.mode == OTHER), None)
    out = []
    for row in rows:
        if row is other or (row is plain and other is None) or (plain is None and other is None):
            continue
        beside = plain if row is not plain else None
        name = row.mode if row.window is None else f"{row.mode}, window {row.window}"
        out.append(
            Ratio(
                name,
                beside and beside.passes / row.passes,
                beside and beside.ms_per_token / row.ms_per_token,
                other and other.ms_per_token / row.ms_per_token,
            )
        )
    return out


def about(device: torch.device) -> dict[str, object]:
    """Where and when this was measured."""
    out = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "commit": _told("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",  # `platform.platform` starts a program
        "device": str(device),
    }
    if device.type == "cpu":
        return {
            **out,
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        }
    if device.type == "cuda":
        fields = "driver_version,clocks.sm,clocks.max.sm,power.limit"
        out["device"] = torch.cuda.get_device_name(device)
        out[fields] = _told(
            "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"-i={device.index or 0}"
        )
        out["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return out


def _told(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def document(rows: Sequence[Row], settings: dict, floor: Floor, device: torch.device) -> dict:
    """All that was measured, for a JSON file."""
    return {
        "about": about(device),
        "settings": settings,
        "floor": {**asdict(floor), "bytes": floor.bytes},
        "rows": [asdict(r) for r in rows],
        "ratios": [asdict(r) for r in ratios(rows)],
    }
