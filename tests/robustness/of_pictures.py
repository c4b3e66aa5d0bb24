"""Pictures: given to a task, and drawn before, from which a file of prompts goes on."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, PngImagePlugin

from lumina_core import Sampling, many
from lumina_core.talk import read_picture
from tests.robustness import mutations as m
from tests.robustness.mutations import Case
from tests.robustness.of_texts import build_prompts
from tests.robustness.opening import Target, model_of

# pictures


def build_pictures(home: Path) -> None:
    home.mkdir()
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, options in PICTURES.items():
        kind = picture.convert("P") if suffix == "gif" else picture
        more = {"exif": exif} if suffix in ("jpg", "png", "webp", "tiff") else {}
        kind.save(home / f"picture.{suffix}", **options, **more)


PICTURES = {
    "png": {},
    "jpg": {},
    "webp": {},
    "gif": {},
    "bmp": {},
    "tiff": {"compression": "tiff_lzw"},
    "ppm": {},
}


def open_pictures(home: Path) -> None:
    for suffix in PICTURES:
        read_picture(home / f"picture.{suffix}").convert("RGBA")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], kind: int = 2, depth: int = 8) -> bytes:
    """A PNG by hand, whatever it says."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), *chunks, (b"IEND", b"")):
        out += (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )
    return out


def picture_cases(home: Path) -> Iterator[Case]:
    for suffix in PICTURES:
        name = f"picture.{suffix}"
        data = (home / name).read_bytes()
        yield from m.truncated(name, data, 16)
        yield from m.flipped(name, data, 40, 0, 200)
        yield from m.flipped(name, data, 12)
    yield from m.foreign("picture.png")
    empty = zlib.compress(bytes(1000))
    sides = (
        (0, 0),
        (0, 5),
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (1 << 20, 1),
        (1, 1 << 20),
        (20_000, 20_000),
    )
    for w, h in (*sides, (13_000, 13_000), (8000, 7700)):
        for depth, kind in ((8, 2), (1, 0), (16, 6)):
            yield Case(
                f"picture.png: {w}x{h} depth {depth} kind {kind}",
                {"picture.png": png(w, h, (b"IDAT", empty), kind=kind, depth=depth)},
            )
    bomb = zlib.compress(bytes(1 << 27), 9)
    for chunk in (b"zTXt", b"iCCP"):
        content = (b"k\0\0" if chunk == b"zTXt" else b"k\0\0") + bomb
        yield Case(
            f"picture.png: a bomb in {chunk!r}",
            {"picture.png": png(4, 4, (chunk, content), (b"IDAT", empty))},
        )
    yield Case("picture.png: more data than pixels", {"picture.png": png(4, 4, (b"IDAT", bomb))})
    exif = b"II*\0\x08\0\0\0" + b"\xff" * 200
    sound = (b"IDAT", zlib.compress(bytes(60)))
    yield Case("picture.png: odd exif", {"picture.png": png(4, 4, (b"eXIf", exif), sound)})
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"
    for magic in (program, b"<svg xmlns='x'/>", b"%PDF-1.4\n"):
        yield Case(f"picture.png: {magic[:9]!r}", {"picture.png": magic})
    packer, row = zlib.compressobj(1), bytes(1 + 3 * 7900)
    rows = b"".join(packer.compress(row) for _ in range(7800)) + packer.flush()
    yield Case(
        "picture.png: 61 million sound pixels", {"picture.png": png(7900, 7800, (b"IDAT", rows))}, "opened"
    )
    frames = [Image.new("P", (2000, 2000), n) for n in range(2)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=[frames[n % 2] for n in range(200)])
    yield Case("picture.gif: 200 frames of 2000x2000", {"picture.gif": out.getvalue()})


def open_resumed(home: Path) -> None:
    [job] = many.read(model_of(home), home / "prompts.jsonl", home / "out", Sampling(), (32, 32))
    many._is_there(job)


def build_resumed(home: Path) -> None:
    build_prompts(home)
    [job] = many.read(model_of(home), home / "prompts.jsonl", home / "out", Sampling(), (32, 32))
    many.save(job.file, Image.new("RGB", (32, 32)), job.info)


def resumed_cases(home: Path) -> Iterator[Case]:
    file = next((home / "out").glob("*.png"))
    name, data = f"out/{file.name}", file.read_bytes()
    pixels = (b"IDAT", zlib.compress(bytes(97 * 32)))
    deep = b"[" * m.DEEP
    for text in (
        b"null",
        b"[]",
        deep,
        b"{}",
        b'{"a":',
        b"9" * 5000,
        b"\xff",
        b"",
        b'{"prompt": NaN}',
        b"{" * 9,
    ):
        chunks = (b"tEXt", b"lumina_mgpt\0" + text), (b"zTXt", b"lumina_mgpt\0\0" + zlib.compress(text))
        for chunk in chunks:
            yield Case(f"{name}: says {text[:9]!r} in {chunk[0]!r}", {name: png(32, 32, chunk, pixels)})
    bomb = b"lumina_mgpt\0\0" + zlib.compress(bytes(1 << 27), 9)
    yield Case(f"{name}: a bomb of text", {name: png(32, 32, (b"zTXt", bomb), pixels)})
    more = [(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1 << 19), 9)) for n in range(500)]
    yield Case(f"{name}: many small bombs", {name: png(32, 32, *more, pixels)})
    yield Case(f"{name}: says its text with an odd size", {name: png(2**31 - 1, 2**31 - 1, pixels)})
    for kind in ("JPEG", "WEBP", "GIF", "TIFF"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, kind)
        yield Case(f"{name}: is a {kind}", {name: out.getvalue()})
    info = PngImagePlugin.PngInfo()
    info.add_itxt("lumina_mgpt", "{" * 100_000)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    yield Case(f"{name}: deep text", {name: out.getvalue()})
    yield from m.foreign(name)
    yield from m.truncated(name, data, 30)
    yield from m.flipped(name, data, 80)


TARGETS = (
    Target("pictures", build_pictures, open_pictures, picture_cases),
    Target("resumed", build_resumed, open_resumed, resumed_cases),
)
