"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as sending a model needs.

Written from the requests that huggingface_hub 2.4 makes and the answers it reads; the real Hub
checks much more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "x" * 20


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class FakeHub:
    """What is on it, what was asked of it, and what it refuses (part of a path -> status)."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def bodies(self, part: str) -> list[dict[str, Any]]:
        """What was sent to the addresses with this part."""
        return [body for _, path, body in self.asked if part in path]


class _Answers(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self._body())

    def do_PUT(self) -> None:
        self._handle(self._body())

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _handle(self, raw: bytes) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        is_json = raw[:1] == b"{" and "ndjson" not in self.headers.get("Content-Type", "")
        hub.asked.append((self.command, path, json.loads(raw) if is_json else {}))
        for part, status in hub.refuses.items():
            if part in path:
                return self._answer({"error": f"refused with {status}"}, status)
        if path.startswith("/lfs/"):  # the storage is not the Hub: its addresses are signed
            assert hashlib.sha256(raw).hexdigest() == path[5:]
            hub.blobs[path[5:]] = raw
            return self._answer({})
        if path == "/api/validate-yaml":  # asked without a token too
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            return self._answer({"error": message}, 401, X_Error_Message=message)
        return self._signed_in(path, raw)

    def _signed_in(self, path: str, raw: bytes) -> None:
        if path == "/api/repos/create":
            return self._create(json.loads(raw))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._lfs(json.loads(raw))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit)/main)?", path)
        assert match, path
        repo = self.hub.repos.get(match[1])
        if repo is None:
            return self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        if match[2] == "preupload":
            return self._modes(json.loads(raw))
        if match[2] == "commit":
            return self._commit(match[1], repo, raw)
        siblings = [{"rfilename": name} for name in repo.files]
        info = {"id": match[1], "private": repo.private, "siblings": siblings, "sha": "0" * 40}
        return self._answer(info)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            return self._answer({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.hub.repos[name] = Repo(private, {".gitattributes": b""})
        return self._answer({"url": f"{self.hub.url}/{name}"})

    def _modes(self, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in wanted["files"]
        ]
        self._answer({"files": files})

    def _lfs(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, raw: bytes) -> None:
        for line in raw.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                repo.files[item["value"]["path"]] = content
            elif item["key"] == "lfsFile":
                repo.files[item["value"]["path"]] = self.hub.blobs[item["value"]["oid"]]
            else:
                assert item["key"] == "header", item
        repo.commits += 1
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40})


def start() -> tuple[FakeHub, ThreadingHTTPServer]:
    """A hub on a free port of this machine; `shutdown` and `server_close` end it."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # It is asked often whether to end, so that no test waits for that.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return hub, server
