"""A hub of this machine for tests: repositories of datasets and models over HTTP, in the part of the Hugging Face Hub's
API that listing and reading them takes.

huggingface_hub reads HF_ENDPOINT when it is imported, so whoever is to find this hub is a process of its own that
was started with `hub.environment`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_somebody_who_may"  # read gated repositories, that is, and know which there are
PAGE = 3  # entries of a listing that are sent at once

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = r"/api/(?:datasets|models)/"
_INFO = re.compile(rf"{_API}{_REPO}(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"{_API}{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
_PATHS = re.compile(rf"{_API}{_REPO}/paths-info/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/(?:datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")

Files = Mapping[str, bytes]


class Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Repo:
    """Its commits by hash, the newest last."""

    gated: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass
class Hub:
    """What is pushed to it, and what it was asked for."""

    endpoint: str = ""
    home: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def push(self, repo: str, files: Files, *, gated: bool = False) -> str:
        """Commit these files over those that are there; the commit's hash."""
        one = self.repos.setdefault(repo, Repo(gated=gated))
        before = list(one.commits.values())[-1] if one.commits else {}
        sha = hashlib.sha1(f"{repo} {len(one.commits)}".encode()).hexdigest()
        one.commits[sha] = {**before, **files}
        return sha

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What a process is told to find this hub and no other."""
        told = {"HF_ENDPOINT": self.endpoint, "HF_HOME": self.home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return told | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    def commit(self, repo: str, revision: str | None, known: bool) -> tuple[str, dict[str, bytes]]:
        if repo not in self.repos:
            # The Hub itself gives strangers a bare 401, which its client takes so over https alone.
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        commits = self.repos[repo].commits
        sha = list(commits)[-1] if revision in (None, "main") else revision
        if sha not in commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, commits[sha]

    def open(self, repo: str, revision: str, path: str, known: bool) -> tuple[str, bytes]:
        sha, files = self.commit(repo, revision, known)
        if self.repos[repo].gated and not known:
            message = f"Access to dataset {repo} is restricted. You must have access to it and be authenticated."
            raise Refused(401, "GatedRepo", message)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return sha, files[path]


def entry(path: str, files: Files) -> dict[str, object] | None:
    """A file or folder as listings have it; large files are kept apart, as all Parquet is."""
    if path not in files:
        below = any(name.startswith(f"{path}/") for name in files)
        return (
            {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
            if below
            else None
        )
    data = files[path]
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "oid": oid, "size": len(data), "path": path}
    if path.endswith(".parquet"):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


def listing(folder: str, files: Files, recursive: bool) -> list[dict[str, object]]:
    start = f"{folder}/" if folder else ""
    names = set()
    for name in files:
        if name.startswith(start):
            parts = name[len(start) :].split("/")
            depths = range(1, len(parts) + 1) if recursive else (1,)
            names |= {start + "/".join(parts[:depth]) for depth in depths}
    if not names:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist")
    return [found for name in sorted(names) if (found := entry(name, files))]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.hub.asked.append(f"{self.command} {url.path}")
        try:
            self._route(url.path, parse_qs(url.query), parse_qs(body))
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            headers = {**code, "X-Error-Message": refused.message, "X-Request-Id": "Root=1"}
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def _route(self, path: str, query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match := _FILE.fullmatch(path):
            self._send_file(*self.hub.open(match["repo"], unquote(match["revision"]), unquote(match["path"]), known))
            return
        for shape in (_INFO, _TREE, _PATHS):
            if match := shape.fullmatch(path):
                revision = match["revision"] and unquote(match["revision"])
                sha, files = self.hub.commit(match["repo"], revision, known)
                if shape is _INFO:
                    names = [{"rfilename": name} for name in files]
                    about = {"id": match["repo"], "sha": sha, "private": False, "siblings": names, "tags": []}
                    self._send_json(about)
                elif shape is _PATHS:
                    self._send_json([found for name in form["paths"] if (found := entry(name, files))])
                else:
                    self._send_page(unquote(match["path"] or ""), files, query)
                return
        raise Refused(404, None, f"this hub does not know {path}")

    def _send_page(self, folder: str, files: Files, query: dict[str, list[str]]) -> None:
        found = listing(folder, files, query.get("recursive", ["false"])[0].lower() == "true")
        start = int(query.get("cursor", ["0"])[0])
        later = f"{self.hub.endpoint}{self.path.split('&cursor')[0]}&cursor={start + PAGE}"
        more = {"Link": f'<{later}>; rel="next"'} if start + PAGE < len(found) else {}
        self._send(200, json.dumps(found[start : start + PAGE]).encode(), {"Content-Type": "application/json", **more})

    def _send_file(self, sha: str, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._send(200, data, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        self._send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _send_json(self, found: object) -> None:
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(home: Path) -> Iterator[Hub]:
    """An empty hub on a free port."""
    hub = Hub(home=str(home))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
