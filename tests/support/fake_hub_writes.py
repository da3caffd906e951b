"""The fake Hub with accounts that may write: repositories, branches, pull requests, uploads, commits, and faults."""

import base64
import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

from support.fake_hub import FakeHub, FakeRepository, Handler, git_hash, is_large


class FakeWritableHub(FakeHub):
    """`users`: token -> name; `roles`: token -> role of a token that is not "write".

    `failures`: {"PUT /upload": 2} answers two such requests with 500, "hang up on PUT /upload" breaks the connection
    in the middle of the body. `before_commit` is called before a commit is looked at. `store`: what was uploaded, by
    SHA-256, whether a commit names it or not; `uploads`: how often each was.
    """

    def __init__(self):
        super().__init__(WritingHandler)
        self.users: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.failures: Counter[str] = Counter()
        self.refusals: dict[str, tuple[int, str]] = {}
        self.ignored: set[str] = set()
        self.before_commit = lambda: None
        self.store: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.commits: list[dict] = []
        self.xet_folder: Path | None = None

    def add_user(self, name: str, token: str, role: str = "write") -> None:
        self.users[token] = name
        self.roles[token] = role
        self.tokens.add(token)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[name].at(revision)[1]


class WritingHandler(Handler):
    hub: FakeWritableHub

    def do_GET(self):  # noqa: N802  # named by the base class's base
        if self._take(f"hang up on {self.command}"):
            return self._hang_up()
        if self._fails():
            return self._note()
        if "/xet-write-token/" in self.path and self.hub.xet_folder:
            return self._xet_token()
        if urlparse(self.path).path != "/api/whoami-v2":
            return super().do_GET()
        self._note()
        user = self._user()
        if user is None:
            return self._refuse(401, "Invalid username or password.")
        token = {"role": self.hub.roles[self._token()], "displayName": "a token"}
        return self._json({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": token}})

    def do_POST(self):  # noqa: N802  # named by the base class's base
        if (body := self._body()) is None:
            return None
        path = unquote(urlparse(self.path).path)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": [{"message": "a remark\x1b[31m"}]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            return self._write(match[1], match[2], match[3], body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match[1], json.loads(body))
        return self._json({}) if path == "/verify" else self._refuse(404, "Not found")

    def do_PUT(self):  # noqa: N802  # named by the base class's base
        if (body := self._body()) is None:
            return None
        digest = self.path.removeprefix("/upload/")
        if hashlib.sha256(body).hexdigest() != digest:
            return self._refuse(400, "not the bytes that were announced")
        self.hub.store[digest] = body
        self.hub.uploads[digest] += 1
        return self._send(200, b"", {"etag": digest})

    def _xet_token(self):
        """hf_xet knows folders as stores, for tests; what it writes there it does not tell the Hub."""
        self._note()
        expires, store = int(time.time()) + 3600, f"local://{self.hub.xet_folder}"
        headers = {"x-xet-cas-url": store, "x-xet-access-token": "t", "x-xet-token-expiration": str(expires)}
        self._send(200, json.dumps({"casUrl": store, "exp": expires, "accessToken": "t"}).encode(), headers)

    def _create(self, asked):
        user = self._user()
        if user is None:
            return self._refuse(401, "Invalid username or password.")
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if owner != user:
            return self._refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.hub.repositories:
            there = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            return self._send(409, json.dumps(there).encode())
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[name] = FakeRepository(private=private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _write(self, name, what, revision, body):
        asks = parse_qs(urlparse(self.path).query).get("create_pr") == ["1"]
        repository = self._writable(name, asks)
        if repository is None:
            return None
        if what == "branch":
            if revision in repository.refs:
                return self._refuse(409, "Reference already exists")
            repository.refs[revision] = repository.refs["main"]
            return self._json({})
        if revision not in repository.refs:
            return self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if what == "preupload":
            return self._preupload(repository.at(revision)[1], json.loads(body))
        return self._commit(name, repository, revision, [json.loads(line) for line in body.splitlines()], asks)

    def _preupload(self, files, asked):
        answers = [
            {
                "path": one["path"],
                "shouldIgnore": one["path"] in self.hub.ignored,
                "uploadMode": "lfs" if is_large(one["path"]) else "regular",
                "oid": _identity(one["path"], files[one["path"]]) if one["path"] in files else None,
            }
            for one in asked["files"]
        ]
        return self._json({"files": answers})

    def _batch(self, name, asked):
        if self._writable(name, asks=True) is None:
            return None
        upload = {"verify": {"href": f"{self.hub.url}/verify"}}
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | ({} if one["oid"] in self.hub.store else
               {"actions": upload | {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}})
            for one in asked["objects"]
        ]  # fmt: skip
        # huggingface_hub 1.x asks which way to take; 2.x takes Xet's where it is installed.
        by_xet = self.hub.xet_folder is not None and "xet" in asked.get("transfers", ())
        return self._json({"transfer": "xet" if by_xet else "basic", "objects": objects})

    def _commit(self, name, repository, revision, lines, asks):
        self.hub.before_commit()
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.refs[revision]):
            return self._refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.at(revision)[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.store[value["oid"]]
            else:
                del files[value["path"]]
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        sha = repository.commit(files, f"refs/pr/{number}" if asks else revision)
        self.hub.commits.append(
            {"header": header, "changes": [(one["key"], one["value"]["path"]) for one in lines[1:]]}
        )
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}
        if asks:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        return self._json(answer)

    def _writable(self, name, asks):
        user = self._user()
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and user != name.split("/")[0]):
            return self._refuse(404 if user else 401, "Repository not found", "RepoNotFound")
        if user is None or (user != name.split("/")[0] and not asks):
            return self._refuse(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def _body(self):
        """What was sent; None where the request was answered, or broken off, already."""
        self._note()
        size = int(self.headers.get("content-length") or 0)
        chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self._take(f"hang up on {self.command}"):
            self.rfile.read(0 if chunked else min(size, 1000))
            return self._hang_up()
        body = self._chunks() if chunked else self.rfile.read(size)
        return None if self._fails() else body

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fails(self):
        path = urlparse(self.path).path
        for start, (status, message) in self.hub.refusals.items():
            if f"{self.command} {path}".startswith(start):
                self._refuse(status, message)
                return True
        if self._take(self.command):
            self._refuse(500, "injected")
            return True
        return False

    def _take(self, what):
        path = urlparse(self.path).path
        for start, left in self.hub.failures.items():
            if left > 0 and f"{what} {path}".startswith(start):
                self.hub.failures[start] -= 1
                return True
        return False

    def _note(self):
        self.hub.requests.append((self.command, unquote(urlparse(self.path).path), ""))

    def _token(self):
        return (self.headers.get("authorization") or "").removeprefix("Bearer ")

    def _user(self):
        return self.hub.users.get(self._token())

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})


def _identity(name, data):
    return hashlib.sha256(data).hexdigest() if is_large(name) else git_hash(data)
