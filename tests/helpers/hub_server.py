"""A Hub on localhost: the parts of the protocol that the huggingface_hub client uses here, with faults on demand.

    with HubServer() as hub: ...    HF_ENDPOINT=hub.url, HF_TOKEN=WRITE or READ, HF_HUB_DISABLE_XET=1

Each commit is a whole state of its repository with an id of its own, so that `revision=` means something. Small text
files are git objects, all others large files (LFS); it speaks no Xet, which the client leaves out when told.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_tokenThatMayWrite", "hf_tokenThatMayRead"
LARGE = (".safetensors", ".pt", ".pth", ".parquet", ".png", ".bin", ".tfevents")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """As git names it; for a large file, that of what stands for it in git."""
        content = self.content
        if self.large:
            content = f"oid sha256:{self.sha256}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def described(self, path: str) -> dict:
        large = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        found = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        return found | ({"lfs": large} if self.large else {})


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        state = json.dumps([message, len(self.commits), {path: file.oid for path, file in files.items()}])
        commit = hashlib.sha1(state.encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.branches[branch] = files, message, commit
        return commit

    @property
    def files(self) -> dict[str, bytes]:
        """What is on the main branch."""
        return {path: file.content for path, file in self.commits[self.branches["main"]].items()}


@dataclass
class Fault:
    """What happens to requests instead: an HTTP status, "cut" in the middle of their body, or an event waited for."""

    method: str
    path: str
    how: int | str | threading.Event
    times: int


class HubServer(ThreadingHTTPServer):
    """Attributes: `repos` by (type, id), `requests` as "METHOD path", `large` the store of large files by SHA-256."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """Where large files lie: another host, as far as the client can tell, and it is not sent the token."""
        return f"http://localhost:{self.server_port}/large"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def new(self, kind: str, name: str, files: dict[str, bytes]) -> Repo:
        """Makes a repository as someone else would have left it."""
        self.repos[kind, name] = repo = Repo(private=False)
        repo.commit("main", {path: File(content, False) for path, content in files.items()}, "by someone else")
        return repo

    def fail(self, method: str, path: str, how: int | str | threading.Event, times: int = 1) -> Fault:
        """The next so many requests of this method whose path matches the regular expression fail."""
        self.faults.append(Fault(method, path, how, times))
        return self.faults[-1]

    def handle_error(self, request, client_address) -> None:
        pass  # clients that went away


class Stop(Exception):
    """The answer was given."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the other side
    server: HubServer

    def log_message(self, *args) -> None:
        pass

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.route}")
            may_fail = (f for f in self.server.faults if f.times and f.method == self.command)
            if fault := next((f for f in may_fail if re.search(f.path, self.route)), None):
                fault.times -= 1
        try:
            if fault and fault.how == "cut":
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.close_connection = True
                raise Stop
            self.body = self.read_body()
            if fault and isinstance(fault.how, threading.Event):
                fault.how.wait(60)
            elif fault:
                self.error(fault.how, "made to fail", {"Retry-After": "0"} if fault.how == 429 else {})
            for method, pattern, answer in ROUTES:
                if (method == self.command or (method, self.command) == ("GET", "HEAD")) and (
                    found := re.fullmatch(pattern, self.route)
                ):
                    answer(self, *found.groups())
            self.error(404, "no such address")
        except Stop:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        raise Stop

    def json(self, value, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, message: str, headers: dict[str, str] | None = None, code: str = "") -> None:
        content = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json", "X-Error-Message": message, **(headers or {})}
        self.answer(status, content, headers | ({"X-Error-Code": code} if code else {}))

    # Who asks, and for what

    def allow(self, writing: bool, private: bool = False) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITE, READ):
            self.error(401, "Invalid credentials in Authorization header")
        if not token and (writing or private):
            self.error(401, "Invalid username or password.")
        if writing and token == READ:
            self.error(403, "Forbidden: this token may only read")

    def repo(self, kind: str, name: str, writing: bool = False) -> Repo:
        found = self.server.repos.get((kind, name))
        self.allow(writing, found is not None and found.private)
        if found is None:
            self.error(404, "Repository not found", code="RepoNotFound")
        return found

    def commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.branches.get(revision) or repo.tags.get(revision) or (revision in repo.commits and revision)
        if not commit:
            self.error(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return commit

    # Answers

    def who_am_i(self) -> None:
        self.allow(writing=False, private=True)
        self.json({"type": "user", "name": "me", "orgs": [{"name": "org"}]})

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        self.allow(writing=True)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if kind == "space" and not asked.get("sdk"):
            self.error(400, "a Space needs an sdk")
        with self.server.lock:
            if (kind, name) in self.server.repos:
                self.json({"error": f"You already created this {kind} repo", "url": url}, 409)
            self.server.repos[kind, name] = repo = Repo(asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.json({"url": url, "name": name})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo = self.repo(kind, name)
        commit = self.commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        found = {"_id": "1", "id": name, "sha": commit, "private": repo.private, "gated": False, "disabled": False}
        self.json(found | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "lastModified": DATE})

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        repo = self.repo(kind, name)
        files = repo.commits[self.commit_of(repo, revision)]
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for path, file in files.items():
            if not path.startswith(prefix):
                continue
            *folders, _ = path[len(prefix) :].split("/")
            for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
                inner = prefix + "/".join(folders[:depth])
                entries[inner] = {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                entries[path] = file.described(path)
        if prefix and not entries:
            self.error(404, "no such folder", code="EntryNotFound")
        self.json(list(entries.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name)
        files = repo.commits[self.commit_of(repo, revision)]
        fields = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
        found = []
        for path in fields["paths"]:
            if path in files:
                found.append(files[path].described(path))
            elif any(other.startswith(f"{path}/") for other in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.json(found)

    def refs(self, kind: str, name: str) -> None:
        repo = self.repo(kind, name)
        described = [
            [{"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": commit} for ref, commit in refs.items()]
            for place, refs in (("heads", repo.branches), ("tags", repo.tags))
        ]
        self.json({"branches": described[0], "tags": described[1], "converts": []})

    def create_ref(self, kind: str, name: str, place: str, ref: str) -> None:
        repo, asked = self.repo(kind, name, writing=True), json.loads(self.body or b"{}")
        named = asked.get("tag") or ref
        refs = repo.tags if place == "tag" else repo.branches
        if named in refs:
            self.error(409, f"{place} {named} exists already")
        refs[named] = self.commit_of(repo, ref if place == "tag" else asked.get("startingPoint") or "main")
        self.json({})

    def delete_tag(self, kind: str, name: str, tag: str) -> None:
        if self.repo(kind, name, writing=True).tags.pop(tag, None) is None:
            self.error(404, f"no tag {tag}", code="RevisionNotFound")
        self.json({})

    def validate_yaml(self) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name, writing=True)
        files = repo.commits[self.commit_of(repo, revision)]
        answers = []
        for asked in json.loads(self.body)["files"]:
            large = asked["size"] > 10_000_000 or any(ending in asked["path"] for ending in LARGE)
            there = files.get(asked["path"])
            oid = {"oid": there.etag} if there else {}
            mode = "lfs" if large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        self.json({"files": answers})

    def batch(self, prefix: str | None, name: str) -> None:
        self.repo(prefix.rstrip("s/") if prefix else "model", name, writing=True)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            place = {"href": f"{self.server.store}/{asked['oid']}", "header": {}}
            verify = {"href": f"{self.server.url}/verify", "header": {}}
            there = asked["oid"] in self.server.large
            answers.append(asked if there else asked | {"actions": {"upload": place, "verify": verify}})
        self.json({"transfer": "basic", "objects": answers})

    def put_large(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            self.error(400, "the content is not what was announced")
        self.server.large[sha256] = self.body
        self.answer(200, b"", {"ETag": f'"{sha256}"'})

    def verify(self) -> None:
        self.json({}, 200 if json.loads(self.body)["oid"] in self.server.large else 404)

    def commit(self, kind: str, name: str, branch: str) -> None:
        repo = self.repo(kind, name, writing=True)
        with self.server.lock:
            files = dict(repo.commits[self.commit_of(repo, branch)])
            for line in self.body.splitlines():
                key, value = (part := json.loads(line))["key"], part["value"]
                if key == "header":
                    message = value["summary"]
                    if value.get("parentCommit") not in (None, repo.branches[branch]):
                        self.error(412, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), False)
                elif key == "lfsFile":
                    if value["oid"] not in self.server.large:
                        self.error(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = File(self.server.large[value["oid"]], True)
                elif key == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        self.error(404, "A file with this name doesn't exist", code="EntryNotFound")
                elif key == "deletedFolder":
                    files = {p: f for p, f in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
            oid = repo.commit(branch, files, message)
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repo = self.repo(prefix.rstrip("s/") if prefix else "model", name)
        commit = self.commit_of(repo, revision)
        headers = {"X-Repo-Commit": commit}
        file = repo.commits[commit].get(path)
        if file is None:
            self.error(404, "Entry not found", headers, code="EntryNotFound")
        if not file.large:
            self.send_content(file.content, headers | {"ETag": f'"{file.etag}"'})
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        self.answer(302, b"", headers | linked | {"Location": f"{self.server.store}/{file.sha256}"})

    def get_large(self, sha256: str) -> None:
        self.send_content(self.server.large[sha256], {"ETag": f'"{sha256}"'})

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        headers["Accept-Ranges"] = "bytes"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], headers)


_API, _PAGE = r"/api/(model|dataset|space)s/([^/]+/[^/]+)", r"/(datasets/)?([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", Handler.who_am_i),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", _API, Handler.info),
    ("GET", _API + "/revision/(.+)", Handler.info),
    ("GET", _API + r"/tree/([^/]+|refs/[^/]+/[^/]+)(/.*)?", Handler.tree),
    ("POST", _API + "/paths-info/(.+)", Handler.paths_info),
    ("GET", _API + "/refs", Handler.refs),
    ("POST", _API + "/(tag|branch)/(.+)", Handler.create_ref),
    ("DELETE", _API + "/tag/(.+)", Handler.delete_tag),
    ("POST", _API + "/preupload/(.+)", Handler.preupload),
    ("POST", _API + "/commit/(.+)", Handler.commit),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/large/([0-9a-f]+)", Handler.put_large),
    ("POST", "/verify", Handler.verify),
    ("GET", _PAGE + "/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", "/large/([0-9a-f]+)", Handler.get_large),
]
