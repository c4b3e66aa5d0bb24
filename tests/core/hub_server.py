"""A hub on the loopback for the real `huggingface_hub`: lists, ranges, checksums, and faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "nonwhy/PURE": {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": WEIGHTS},
    "FoundationVision/LlamaGen": {"vq_ds8_c2i.pt": WEIGHTS[:5000]},
}
LARGE = (".safetensors", ".pt")  # files with a checksum


class HubServer(ThreadingHTTPServer):
    """Serves `files`. Every request of a file's bytes is noted in `asked` as (name, first byte)."""

    daemon_threads = True

    def __init__(self, files: dict[str, dict[str, bytes]] = FILES):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[tuple[str, int]] = []
        self.cut: list[
            int
        ] = []  # after how many bytes the next answers about a large file break off; 0: an error
        self.pause = 0.0  # seconds after each 64 KiB
        self.wrong = False  # bytes that are not those of the checksum
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def library(self) -> SimpleNamespace:
        """The module `huggingface_hub` as it is where HF_ENDPOINT names this server."""
        import huggingface_hub as real
        import huggingface_hub.file_download as file_download

        return SimpleNamespace(
            HfApi=partial(real.HfApi, endpoint=self.address),
            hf_hub_url=partial(real.hf_hub_url, endpoint=self.address),
            get_hf_file_metadata=partial(real.get_hf_file_metadata, endpoint=self.address),
            utils=real.utils,
            file_download=file_download,
        )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            self.list(path.removeprefix("/api/models/").removesuffix("/revision/main"))
        else:
            self.serve()

    def do_HEAD(self):
        self.serve()

    def list(self, repo: str) -> None:
        files = []
        for name, data in self.server.files[repo].items():
            entry = {"rfilename": name, "size": len(data), "blobId": "0"}
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            files.append(entry)
        body = json.dumps({"id": repo, "modelId": repo, "sha": "1", "siblings": files, "tags": []}).encode()
        self.answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def serve(self) -> None:
        repo, _, name = urlsplit(self.path).path.removeprefix("/").partition("/resolve/main/")
        data, first = self.server.files[repo][name], 0
        if asked := self.headers["Range"]:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
        head = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "1"}
        head |= {"X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        head["Content-Length"] = str(len(data) - first)
        end = len(data)
        if self.command == "GET":
            self.server.asked.append((name, first))
            if self.server.cut and name.endswith(LARGE):
                end = first + self.server.cut.pop(0)
            if end == first:
                self.answer(500, {"Content-Length": "0"})
                return
        if asked:
            head["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.answer(206 if asked else 200, head)
        if self.command == "GET":
            data = bytes(len(data)) if self.server.wrong and name.endswith(LARGE) else data
            for at in range(first, end, 1 << 16):
                self.wfile.write(data[at : min(end, at + (1 << 16))])
                time.sleep(self.server.pause)

    def answer(self, status: int, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on the terminal."""
