"""A small hub on this machine that can misbehave: it serves a mirror (OWNER/NAME/...) as data sets, with faults.

with FaultyHub(mirror) as hub:
    hub.faults = [Fault("status 503", "GET .*parquet", times=3)]
    ... HF_ENDPOINT=hub.url, and an HF_HOME of its own ...
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What happens to requests whose "METHOD PATH" `where` matches, `times` times after the first `after` of them.

    `does`: "status N", "reset" (no answer), "hang N" (seconds of silence), "cut" (half of the body), "slow N" (bytes a
    second), "flip" (one bit of the body in the middle).
    """

    does: str
    where: str
    times: int = 1_000_000
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    met: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.where, request):
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times

    @property
    def number(self) -> float:
        return float(self.does.split()[1])


class FaultyHub:
    """The server, in threads of this process; `seen` lists the requests as "METHOD PATH"."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, request: str) -> Fault | None:
        with self.lock:
            self.seen.append(request)
            return next((fault for fault in self.faults if fault.strikes(request)), None)

    def files(self, repository: str) -> dict[str, Path]:
        folder = self.root / repository
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, repository: str) -> str:
        digest = hashlib.sha1()
        for name, path in self.files(repository).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FaultyHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        fault = self.hub.fault_of(f"{self.command} {path}")
        kind = fault.does.split()[0] if fault else ""
        try:
            if fault and kind == "status":
                return self._send(int(fault.number), b"{}", fault.headers)
            if kind == "reset":
                return self._break_off()
            if fault and kind == "hang":
                time.sleep(fault.number)
            api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
            file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repository, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", None)
            if not repository or not self.hub.files(repository):
                return self._missing("RepoNotFound")
            commit = self.hub.commit(repository)
            if revision not in (None, "main", commit):
                return self._missing("RevisionNotFound")
            if api:
                return self._api(api[2], repository, commit, api[4] or "", body)
            assert file is not None
            return self._file(repository, commit, file[3], fault, kind)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = _answer

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str], kind: str = "", speed: float = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._break_off()
            return
        step = max(1, int(speed / 10)) if kind == "slow" else max(len(body), 1)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            time.sleep(0.1 if kind == "slow" else 0)

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)

    def _api(self, verb: str | None, repository: str, commit: str, inside: str, body: bytes) -> None:
        files = self.hub.files(repository)
        answer: Any
        if verb == "tree":
            prefix = f"{inside}/" if inside else ""
            below = [name for name in files if name.startswith(prefix)]
            if inside and not below:
                return self._missing("EntryNotFound")
            deep = "recursive=true" in self.path.lower()
            names = {name if deep else prefix + name[len(prefix) :].split("/")[0] for name in below}
            if deep:
                names |= {str(parent) for name in below for parent in Path(name).parents if str(parent) != "."}
            answer = [self._entry(name, files) for name in sorted(names)]
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"]
            answer = [
                self._entry(name, files)
                for name in wanted
                if name in files or any(other.startswith(f"{name}/") for other in files)
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            answer = {"id": repository, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        return self._send(200, json.dumps(answer).encode(), {})

    @staticmethod
    def _entry(name: str, files: dict[str, Path]) -> dict[str, Any]:
        if name not in files:
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        data = files[name].read_bytes()
        return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}

    def _file(self, repository: str, commit: str, name: str, fault: Fault | None, kind: str) -> None:
        files = self.hub.files(repository)
        if name not in files:
            return self._missing("EntryNotFound")
        data = files[name].read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, part = 200, data
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            status, part = 206, data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if kind == "flip" and part:
            middle = len(part) // 2
            part = part[:middle] + bytes([part[middle] ^ 1]) + part[middle + 1 :]
        return self._send(status, part, headers, kind, fault.number if fault and kind == "slow" else 0)
