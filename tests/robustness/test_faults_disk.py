"""Disks that are full, files that are replaced or cut while they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from lumina_core import CheckpointError, LuminaError, Sampling, load, many, weights
from lumina_core.convert import convert
from lumina_core.files import write_state, write_whole
from lumina_core.training.runner import Stage
from tests.core import checkpoints
from tests.robustness.workload import picture

ROOT = Path(__file__).parents[2]
FULL = 4096  # bytes that a file may still grow to


@contextmanager
def full_disk(nbytes: int = FULL):
    """Files cannot grow beyond so many bytes meanwhile: writes end with an OSError, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of files are those of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


NOISE = picture(100)
STATE = {"weights": torch.randn(5000), "step": 3}
WRITERS = {
    "picture": ("a.png", lambda file: many.save(file, NOISE, {"prompt": "a circle"})),
    "training state": ("vq.pt", lambda file: Stage(file.parent, "vq", print).save(STATE)),
    "pre-tokenised data": ("64x64.pt", lambda file: write_state(file, STATE)),
    "text": ("a.json", lambda file: write_whole(file, lambda part: part.write_text("x" * 9000, "utf-8"))),
    "bytes": ("tokenizer.json", lambda file: write_whole(file, lambda part: part.write_bytes(b"x" * 9000))),
}


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_or_none(tmp_path, name, there):
    target, write = WRITERS[name]
    if there:
        (tmp_path / target).write_bytes(b"the old one")
    before = files_in(tmp_path)
    with full_disk(), pytest.raises(LuminaError) as held:
        write(tmp_path / target)
    told = str(held.value)
    assert target in told and "cannot be written" in told and "Free some room" in told
    assert files_in(tmp_path) == before
    write(tmp_path / target)
    assert (tmp_path / target).stat().st_size > FULL


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_the_systems_own_word_for_it_is_told(tmp_path):
    with pytest.raises(LuminaError, match="No space left on device"):
        write_whole(tmp_path / "a.png", lambda part: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(LuminaError, match="No space left on device"):
        write_whole(tmp_path / "a.pt", lambda part: write_state_to_full())
    assert files_in(tmp_path) == {}


def write_state_to_full() -> None:
    with Path("/dev/full").open("wb", buffering=0) as f:
        f.write(b"x")


def test_a_line_of_the_history_that_cannot_be_written_is_told(tmp_path):
    stage = Stage(tmp_path, "vq", lambda line: None)
    (tmp_path / "log.jsonl").write_text("x" * FULL)
    with full_disk(), pytest.raises(LuminaError, match="log.jsonl.* cannot be written"):
        stage.log(1, 2, 3.0, loss=0.5)


@pytest.mark.parametrize("precision", [None, "int8"])
def test_a_conversion_onto_a_full_disk_leaves_nothing(tmp_path, precision):
    folder, out = checkpoints.build(tmp_path / "from", "mgpt2"), tmp_path / "to" / "one.safetensors"
    out.parent.mkdir()
    with full_disk(60_000), pytest.raises(LuminaError, match="one.safetensors' cannot be written"):
        convert(folder, out, precision)
    assert files_in(out.parent) == {}
    load(convert(folder, out, precision))


def test_many_pictures_go_on_where_the_disk_was_full(tmp_path, tiny_model):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [json.dumps({"prompt": "a circle", "size": f"{side}x{side}"}) for side in (32, 96)]
    prompts.write_text("\n".join(lines))
    settings = Sampling(cfg=1.0, decode="jacobi", window=16)
    with full_disk(9000), pytest.raises(LuminaError, match="000002.png' cannot be written"):
        many.run(tiny_model, prompts, out, settings)
    assert list(files_in(out)) == ["000001.png"]
    done = many.run(tiny_model, prompts, out, settings)
    assert done.skipped == 1 and [file.name for file in done.drawn] == ["000002.png"]
    for file in out.iterdir():
        with Image.open(file) as whole:
            whole.load()


# Files that change while they are read


def replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


def cut(file: Path) -> None:
    with file.open("r+b") as f:
        f.truncate(file.stat().st_size // 2)


def overwritten(file: Path) -> None:
    with file.open("r+b") as f:
        f.seek(-64, 2)
        f.write(b"\xff" * 64)


def removed(file: Path) -> None:
    file.unlink()


CHANGES = (replaced, cut, overwritten, removed)


@pytest.mark.parametrize("family", ["mgpt1", "mgpt2"])
@pytest.mark.parametrize(
    ("part", "change"),
    [
        *(("transformer", change) for change in CHANGES),
        # a mapped file that is cut may end the process: tried in one of its own
        *(("image tokenizer", change) for change in (replaced, removed)),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, family, part, change):
    """Changed by whoever is told of the first tensor: the header was read, the rest was not."""
    folder = checkpoints.build(tmp_path / family, family, shards=1)
    file = folder / ("model.safetensors" if part == "transformer" else checkpoints.VQ[family][2])
    content, told = file.read_bytes(), []

    def report(done: int, total: int) -> None:
        if not told:
            change(file)
        told.append(done)

    with pytest.raises(CheckpointError) as held:
        load(folder, report=report)
    assert file.name in str(held.value)
    file.write_bytes(content)
    assert load(folder).name == family


CHILD = """
import sys
from pathlib import Path
from lumina_core import CheckpointError, load
from tests.robustness import test_faults_disk as here
folder, change = Path(sys.argv[1]), getattr(here, sys.argv[2])
file, done = folder / "vqgan.ckpt", []
def report(*_):
    if not done:
        change(file)
    done.append(1)
try:
    load(folder, report=report)
except CheckpointError as e:
    print(e)
"""


@pytest.mark.parametrize("change", [cut, overwritten])
def test_a_mapped_file_that_is_cut_does_not_end_the_process(tmp_path, change):
    folder = checkpoints.build(tmp_path / "mapped", "mgpt1")
    command = [sys.executable, "-c", CHILD, str(folder), change.__name__]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    assert "vqgan.ckpt was changed while it was read. Load it again" in run.stdout


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("family", ["mgpt1", "mgpt2", "pure"])
def test_nothing_of_a_loaded_checkpoint_stays_mapped(tmp_path, family):
    """What happens to its files later cannot touch the model: two of the three have a pickle, mapped to be loaded."""
    folder = checkpoints.build(tmp_path / family, family)
    model = load(folder)
    before = [p.clone() for p in (*model.transformer.parameters(), *model.vq.parameters())]
    assert str(folder) not in Path("/proc/self/maps").read_text()
    for file in (*folder.glob("*.safetensors"), folder / checkpoints.VQ[family][2]):
        cut(file)
    after = (*model.transformer.parameters(), *model.vq.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_file_that_changed_before_any_tensor_is_taken_gives_none(tmp_path):
    folder = checkpoints.build(tmp_path / "one", "mgpt2", shards=1)
    entries = weights.entries_of([folder / "model.safetensors"])
    overwritten(folder / "model.safetensors")
    taken = []
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        taken.extend(weights.read_tensors(entries))
    assert taken == []
