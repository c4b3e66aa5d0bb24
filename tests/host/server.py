"""A real ComfyUI for tests: found, started on a throw-away folder with this extension in it, asked, stopped.

The server keeps to the loopback and the CPU.
"""

from __future__ import annotations

import atexit
import base64
import functools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lumina_core.convert import convert
from tests import tiny
from tests.core import checkpoints

ROOT = Path(__file__).parent.parent.parent
FOLDER = "Some_folder-name"  # the extension's folder under custom_nodes: any name does, but see README for help pages


def find_host() -> Path | None:
    """The ComfyUI to test with: COMFYUI_PATH, comfy-cli's default workspace, or the one this extension lies in."""
    places = [os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI"]
    if ROOT.parent.name == "custom_nodes":
        places.append(ROOT.parent.parent)
    return next((Path(p) for p in places if p and (Path(p) / "comfy_api").is_dir()), None)


def find_python(host: Path) -> str:
    """The interpreter of a ComfyUI: COMFYUI_PYTHON, its own environment, or the one that runs the tests."""
    own = [host / env / part for env in (".venv", "venv") for part in ("bin/python", "Scripts/python.exe")]
    own.append(host.parent / "python_embeded" / "python.exe")
    places = [os.environ.get("COMFYUI_PYTHON"), *own, sys.executable]
    return next(str(p) for p in places if p and Path(p).exists())


@dataclass
class Run:
    """What a prompt did: status, error text, progress values by node, previews, cached nodes, seconds, files."""

    status: str = ""
    error: str = ""
    kind: str = ""  # of the error
    node: str = ""  # that failed
    seconds: float = 0.0
    progress: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    previews: list[bytes] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    outputs: dict = field(default_factory=dict)
    cancel_took: float | None = None  # seconds from Cancel until the queue is idle
    slowdown: float = 1.0  # of this machine at that time

    def answered_within(self, seconds: float) -> bool:
        """Whether Cancel ended the run, in this time on a machine that does nothing else."""
        return self.status == "interrupted" and self.cancel_took <= seconds * max(1.0, self.slowdown)


def slowdown() -> float:
    """How many times longer work takes now than on a machine that does nothing else: a fixed piece of it tells."""
    passed, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < 0.2:
        sum(range(1000))
    return (time.perf_counter() - passed) / (time.thread_time() - worked)


class Comfy:
    """A running server."""

    def __init__(self, host: Path, folder: str = FOLDER):
        self.host, self.python = host, find_python(host)
        self.base = Path(tempfile.mkdtemp(prefix="lumina-host-"))
        for name in (
            "custom_nodes",
            "models/lumina_mgpt",
            "models/vae",
            "models/loras",
            "input",
            "output",
            "temp",
            "user",
            "extra",
        ):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / folder).symlink_to(ROOT, target_is_directory=True)
        self._make_checkpoints()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = self.base / "server.log"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _make_checkpoints(self) -> None:
        models = self.base / "models" / "lumina_mgpt"
        folder = tiny.build(models / "tiny", positions=20000)
        shutil.copytree(folder, models / "owner" / "cut")
        weights = models / "owner" / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        shutil.copytree(folder, models / "no-vq", ignore=shutil.ignore_patterns("movq*"))
        shutil.copytree(folder, self.base / "extra" / "elsewhere")
        shutil.copytree(folder, models / "other")
        (models / "other" / "config.json").write_text('{"model_type": "llama", "vocab_size": 10}', "utf-8")
        convert(folder, models / "owner" / "packed.safetensors", "int8")
        (models / "owner" / "other-kind.safetensors").write_bytes(bytes(100))
        for family, file in (("mgpt1", "vqgan.safetensors"), ("pure", "vq_ds8_c2i.pt")):
            checkpoints.build(
                models / family, family, vq=False, dtype=torch.float32, max_position_embeddings=600
            )
            checkpoints.save_vq(family, self.base / "models" / "vae" / file)
        paths = f"tests:\n  base_path: {self.base}\n  lumina_mgpt: extra\n"
        (self.base / "paths.yaml").write_text(paths, "utf-8")

    def start(self, *more: str, timeout: float = 300, **settings: str) -> None:
        """Starts it with `more` arguments and with `settings` in its environment."""
        args = ["--listen", "127.0.0.1", "--port", str(self.port), "--cpu", "--disable-auto-launch"]
        args += ["--base-directory", str(self.base), "--preview-method", "auto"]
        args += ["--extra-model-paths-config", str(self.base / "paths.yaml")]
        args += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        args += more
        known = (self.host / "comfy" / "cli_args.py").read_text("utf-8", "replace")
        args += [flag for flag in ("--disable-api-nodes",) if f'"{flag}"' in known]
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self.python, "main.py", *args],
                cwd=self.host,
                env=os.environ | quiet | settings,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        text = self.log_text()
        self.stop()
        raise RuntimeError(f"ComfyUI in {self.host} did not start:\n{text[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def memory(self) -> int:
        """Bytes of main memory that the server holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def get_bytes(self, path: str, data: dict | None = None) -> tuple[int, bytes]:
        """Status and body of a request; a POST when there is data."""
        body = None if data is None else json.dumps(data).encode()
        url = f"http://127.0.0.1:{self.port}{urllib.parse.quote(path, safe='/?&=%')}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as e:
            return e.code, e.read()

    def get(self, path: str, data: dict | None = None):
        """The JSON of a reply, or None when it is empty."""
        body = self.get_bytes(path, data)[1]
        return json.loads(body) if body else None

    @functools.cached_property
    def info(self) -> dict:
        """Schemas of all nodes, as the browser gets them."""
        return self.get("/object_info")

    def pictures(self, run: Run) -> list[bytes]:
        """The image files a run saved, as they were written."""
        found = [p for node in run.outputs.values() for p in node.get("images", [])]
        keys = ("filename", "subfolder", "type")
        return [self.get_bytes("/view?" + urllib.parse.urlencode({k: p[k] for k in keys}))[1] for p in found]

    def run(
        self,
        prompt: dict,
        *,
        cancel: Callable[[int, int], bool] = lambda done, total: False,
        cancel_in: str = "",
        wait: Callable[[], object] = lambda: None,
        timeout: float = 240,
    ) -> Run:
        """Runs a prompt to its end.

        It is cancelled after a `wait` that begins when `cancel` says so of some node's progress, or a node begins.
        """
        client = uuid.uuid4().hex
        run, start, asked = Run(), time.monotonic(), None
        messages = listen(self.port, f"/ws?clientId={client}", timeout)
        next(messages)
        reply = self.get("/prompt", {"prompt": prompt, "client_id": client})
        if reply.get("node_errors") or "prompt_id" not in reply:
            faults = [e for node in reply.get("node_errors", {}).values() for e in node["errors"]]
            text = "\n".join(f"{e['message']}: {e['details']}" for e in faults)
            return Run("refused", text or json.dumps(reply["error"]))
        for message in messages:
            if isinstance(message, bytes):
                collect_binary(message, run)
                continue
            kind, data = message["type"], message.get("data") or {}
            if kind == "progress_state":
                for node, state in data["nodes"].items():
                    run.progress.setdefault(node, []).append((int(state["value"]), int(state["max"])))
                    running = state["state"] == "running"
                    wanted = node == cancel_in or cancel(int(state["value"]), int(state["max"]))
                    if running and asked is None and wanted:
                        wait()
                        asked = time.monotonic()
                        self.get_bytes("/interrupt", {})
            elif kind == "execution_cached":
                run.cached = data["nodes"]
            elif kind in ("execution_success", "execution_error", "execution_interrupted"):
                run.status = kind.removeprefix("execution_")
                run.error, run.kind = (
                    data.get("exception_message", "").strip(),
                    data.get("exception_type", ""),
                )
                run.node = str(data.get("node_id", ""))
                break
        run.seconds = time.monotonic() - start
        messages.close()
        if asked is not None:
            while self.busy():
                time.sleep(0.01)
            run.cancel_took = time.monotonic() - asked
            run.slowdown = slowdown()
        run.outputs = self._outputs(reply["prompt_id"])
        return run

    def busy(self) -> bool:
        """Whether a prompt runs or waits."""
        queue = self.get("/queue")
        return bool(queue["queue_running"] or queue["queue_pending"])

    def free(self) -> None:
        """Asks for all models and results to be given up, as the buttons do."""
        self.get_bytes("/free", {"unload_models": True, "free_memory": True})

    def _outputs(self, prompt_id: str) -> dict:
        for _ in range(100):  # the history is written a moment after the last message
            if found := self.get(f"/history/{prompt_id}").get(prompt_id):
                return found["outputs"]
            time.sleep(0.02)
        return {}


def collect_binary(message: bytes, run: Run) -> None:
    kind = struct.unpack(">I", message[:4])[0]
    if kind == 1:  # preview: image type, then the file
        run.previews.append(message[8:])
    elif kind == 3:  # text: length of the node's id, id, text
        size = struct.unpack(">I", message[4:8])[0]
        run.texts[message[8 : 8 + size].decode()] = message[8 + size :].decode()


def listen(port: int, path: str, timeout: float) -> Iterator[dict | bytes | None]:
    """Messages of a websocket (RFC 6455, receiving only), JSON ones parsed; None first, once connected."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as s, s.makefile("rb") as stream:
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        s.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        while stream.readline().strip():
            pass
        yield None
        whole, kind = b"", 0
        while True:
            first, size = stream.read(2)
            if size >= 126:
                size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
            data, code = stream.read(size), first & 15
            if code == 8:
                raise ConnectionError("the server closed the websocket")
            if code < 3:
                kind, whole = code or kind, whole + data
                if first & 0x80:
                    yield json.loads(whole) if kind == 1 else whole
                    whole = b""


@functools.cache
def server() -> Comfy | None:
    """The one server of a test session, or None where there is no ComfyUI; it ends with the session."""
    host = find_host()
    if host is None:
        return None
    comfy = Comfy(host)
    comfy.start()
    atexit.register(comfy.stop)
    return comfy
