"""A model hub on loopback: as much of the Hugging Face hub as loading a model asks for."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["COMMIT", "NAME", "Hub", "hub"]

NAME = "owner/teller"
"""The one model there is."""
COMMIT = "a1" * 20
_PART = 1 << 18


@dataclass
class Hub:
    """The files of ``folder`` as a repository with one commit."""

    folder: Path
    address: str = ""
    seconds_per_part: float = 0.0
    """What each 256 KiB of a large file takes."""
    status: int = 0
    """Answered to everything, if it is not 0."""
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """For a program that asks this hub, and has its cache in ``home``."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}

    def names(self) -> list[str]:
        """The files."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """Serves ``folder`` until the end; from then on connections are refused."""
    it = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": it}))
    it.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield it
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keeps quiet."""

    def do_HEAD(self) -> None:  # the library's name
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status:
            self._say(self.hub.status, b"no")
        elif path.startswith(f"/{NAME}/resolve/"):
            self._file(self.hub.folder / path.split("/", 5)[5])
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            files = [{"rfilename": name, "size": (self.hub.folder / name).stat().st_size} for name in self.hub.names()]
            self._say(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode())
        elif path in (f"/api/models/{NAME}/tree/main", f"/api/models/{NAME}/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": name, "size": (self.hub.folder / name).stat().st_size, "oid": "0" * 40}
                for name in self.hub.names()
            ]
            self._say(200, json.dumps(files).encode())
        elif path.startswith(f"/api/models/{NAME}/"):
            self._say(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, file: Path) -> None:
        about = {"X-Repo-Commit": COMMIT}
        if not file.is_file():
            self._say(404, b"no such file", about | {"X-Error-Code": "EntryNotFound"})
            return
        data = file.read_bytes()
        self._say(200, data, about | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _say(self, status: int, data: bytes, about: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(about or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(data), _PART):
            self.wfile.write(data[start : start + _PART])
            if len(data) > _PART:
                time.sleep(self.hub.seconds_per_part)
