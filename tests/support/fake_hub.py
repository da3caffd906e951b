"""A small Hugging Face Hub on localhost, for reading: listing, commits, ranges, gates, and faults on demand."""

import hashlib
import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

FAULTS = ("server error", "whole file", "shifted range", "other size", "cut short", "too much", "gzip", "hang up")


@dataclass
class FakeRepository:
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = repr((sorted(files.items()), len(self.commits)))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class FakeHub:
    """`tokens` may read private and gated repositories. `faults` counts down: {"cut short": 2} spoils two reads."""

    def __init__(self, handler: "type[Handler] | None" = None) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.tokens: set[str] = set()
        self.faults: Counter[str] = Counter()
        self.listing_failures = 0
        # Like the real Hub, send readers of weights on to another host, which must never see a token.
        self.redirects = False
        self.tokens_seen_elsewhere: list[str] = []
        self.requests: list[tuple[str, str, str]] = []
        bound = type("Handler", (handler or Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def take_fault(self) -> str | None:
        for fault in FAULTS:
            if self.faults[fault] > 0:
                self.faults[fault] -= 1
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        quoted = urlparse(self.path).path
        path = unquote(quoted)
        self.hub.requests.append((self.command, path, self.headers.get("range", "")))
        # Branches such as refs/pr/1 come with their slashes quoted.
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", quoted):
            return self._list(match[1], match[2], unquote(match[3] or "main"))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/elsewhere/([0-9a-f]{64})", path):
            return self._serve_elsewhere(match[1])
        return self._refuse(404, "Not found")

    def _serve_elsewhere(self, digest):
        if token := self.headers.get("authorization"):
            self.hub.tokens_seen_elsewhere.append(token)
        commits = [files for repository in self.hub.repositories.values() for files in repository.commits.values()]
        data = next(data for files in commits for data in files.values() if _sha256(data) == digest)
        return self._send_data(data, {})

    def _list(self, name, kind, revision):
        if self.hub.listing_failures > 0:
            self.hub.listing_failures -= 1
            return self._refuse(503, "over capacity")
        found = self._revision(name, revision, metadata=True)
        if found is None:
            return None
        sha, files = found
        if kind == "tree":
            return self._send(200, json.dumps([_tree_entry(name, data) for name, data in files.items()]).encode())
        siblings = [_sibling(name, data) for name, data in files.items()]
        private = self.hub.repositories[name].private
        answer = {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": []}
        return self._send(200, json.dumps(answer).encode())

    def _resolve(self, name, revision, file):
        found = self._revision(name, revision, metadata=False)
        if found is None:
            return None
        sha, files = found
        if file not in files:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        data = files[file]
        headers = {"etag": f'"{_sha256(data)}"', "x-repo-commit": sha, "accept-ranges": "bytes"}
        if self.hub.redirects and file.endswith(".safetensors"):
            port = self.server.server_address[1]
            headers |= {"location": f"http://localhost:{port}/elsewhere/{_sha256(data)}"}
            headers |= {"x-linked-etag": headers["etag"], "x-linked-size": str(len(data))}
            return self._send(302, b"", headers)
        return self._send_data(data, headers)

    def _send_data(self, data, headers):
        fault = self.hub.take_fault() if self.command == "GET" else None
        if fault == "server error":
            return self._refuse(500, "injected")
        if fault == "hang up":
            return self._hang_up()
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("range", ""))
        if match is None or fault == "whole file":
            return self._send(200, data, headers)
        first, last = int(match[1]), int(match[2] or len(data) - 1)
        return self._send_range(data, first, last, headers, fault)

    def _send_range(self, data, first, last, headers, fault):
        body = data[first : last + 1]
        size = len(data) + (fault == "other size")
        if fault == "shifted range":
            first, last = first + 1, last + 1
        if fault == "gzip":
            headers["content-encoding"] = "gzip"
        if fault == "too much":
            body += b"!"
        headers["content-range"] = f"bytes {first}-{last}/{size}"
        if fault == "cut short":
            headers["content-length"] = str(len(body))
            self._send(206, body[: len(body) // 2], headers)
            return self._hang_up()
        return self._send(206, body, headers)

    def _hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _revision(self, name, revision, metadata):
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self._refuse(401, "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not token):
            return self._refuse(404 if token else 401, "Repository not found", "RepoNotFound")
        if repository.gated and not token and not metadata:
            return self._refuse(401, "Access to this model is restricted", "GatedRepo")
        found = repository.at(revision)
        if found is None:
            return self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _refuse(self, status, message, code=""):
        headers = {"x-error-message": message} | ({"x-error-code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status, body, headers=None):
        headers = {"content-length": str(len(body))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name):
    """Whether the Hub keeps a file outside of git."""
    return name.endswith(".safetensors")


def _sibling(name, data):
    entry = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
    if is_large(name):
        entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _tree_entry(name, data):
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
    if is_large(name):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry
