"""A Hub on this machine: an HTTP server with the endpoints that huggingface_hub uses to send models and to get them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

Files = dict[str, bytes]
Answer = tuple[int, dict[str, str], bytes]
NO_REPO: Answer = (404, {"X-Error-Code": "RepoNotFound"}, b"Repository not found")


@dataclass
class Repo:
    """A repository: the files of every commit, and the newest commit of every branch."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, changes: Files) -> str:
        files = {**self.at(branch), **changes}
        parent = self.branches.get(branch, "")
        sha = hashlib.sha1(repr((parent, sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def sha(self, revision: str) -> str:
        return self.branches.get(revision, revision)

    def at(self, revision: str) -> Files:
        return self.commits.get(self.sha(revision), {})


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """The answer to a request; unknown ones get a 501, which the client reports."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        match method, parts:
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                return self._validate(json.loads(body)["content"])
            case "PUT", ["large-files", oid]:
                self.large_files[oid] = body
                return 200, {}, b""
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                return self._large_files(f"{owner}/{name.removesuffix('.git')}", json.loads(body))
            case "GET" | "POST", ["api", "models", owner, name, *action]:
                repo = self.repos.get(f"{owner}/{name}")
                return NO_REPO if repo is None else self._of_repo(f"{owner}/{name}", repo, action, body)
            case "GET" | "HEAD", [owner, name, "resolve", revision, *file]:
                repo = self.repos.get(f"{owner}/{name}")
                return NO_REPO if repo is None else self._file(repo, revision, "/".join(file))
        return 501, {}, f"{method} {path}".encode()

    def _create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return _json({"url": f"{self.url}/{name}", "error": "You already created this model repo"}, 409)
        repo = self.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return _json({"url": f"{self.url}/{name}", "name": name})

    def _validate(self, card: str) -> Answer:
        """As the Hub: metadata between two lines ---, a backbone with a name of the Hub."""
        metadata = yaml.safe_load(card.split("---\n")[1])
        base = str(metadata.get("base_model", "a/b"))
        errors = (
            [{"message": f'"base_model" with value "{base}" is not valid'}] if base.count("/") != 1 or base[0] == "/" else []
        )
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _large_files(self, repo: str, asked: dict[str, Any]) -> Answer:
        def where(wanted: dict[str, Any]) -> dict[str, Any]:
            return {**wanted, "actions": {"upload": {"href": f"{self.url}/large-files/{wanted['oid']}"}}}

        return _json({"transfer": "basic", "objects": [where(wanted) for wanted in asked["objects"]]})

    def _of_repo(self, name: str, repo: Repo, action: list[str], body: bytes) -> Answer:
        match action:
            case [] | ["revision", _]:
                sha = repo.sha(action[1] if action else "main")
                siblings = [{"rfilename": file} for file in repo.at(sha)]
                return _json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})
            case ["branch", branch]:
                if branch in repo.branches:
                    return 409, {}, b"Reference already exists"
                repo.branches[branch] = repo.sha("main")
                return _json({})
            case ["preupload", _]:
                modes = {True: "lfs", False: "regular"}
                files = [
                    {"path": file["path"], "uploadMode": modes[file["path"].endswith(".safetensors")], "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return _json({"files": files})
            case ["commit", branch]:
                sha = repo.commit(branch, self._changes(body))
                return _json({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})
            case ["tree", revision, *folder]:
                return self._tree(repo.at(revision), "/".join([*folder, ""]))
        return 501, {}, "/".join(action).encode()

    def _tree(self, files: Files, folder: str) -> Answer:
        inside = {file: content for file, content in files.items() if file.startswith(folder.removeprefix("/"))}
        if not inside:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"
        oids = {file: hashlib.sha1(content).hexdigest() for file, content in inside.items()}
        return _json([{"type": "file", "path": file, "oid": oids[file], "size": len(inside[file])} for file in inside])

    def _changes(self, body: bytes) -> Files:
        changes: Files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.large_files[value["oid"]]
        return changes

    def _file(self, repo: Repo, revision: str, file: str) -> Answer:
        content = repo.at(revision).get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.sha(revision)}, b"Entry not found"
        return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo.sha(revision)}, content


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a Hub while the block lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {urlsplit(self.path).path}")
            status, headers, content = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error; `hub.requests` has them."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _json(content: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
