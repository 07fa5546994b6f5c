"""A stand-in of the Hub: a server on this machine that stores files by repository and revision.

It speaks as much of the Hub's protocol as `huggingface_hub` needs to create a repository and a branch, to upload a
folder, and to download files of a revision. Every byte that it was sent is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandInHub(ThreadingHTTPServer):
    """Use it in a `with` statement; `endpoint` is its address.

    Attributes:
        revisions: content of files by repository (a Space's name begins with "spaces/"), revision and path.
        received: bodies of all requests, and their first lines and headers.
        requests: methods and paths.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        self.received: list[bytes] = []
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def commit_of(self, repo: str, revision: str) -> str:
        files = self.revisions[repo][revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()  # noqa: S324

    def find(self, repo: str, revision: str) -> str | None:
        """The branch that a revision names, by its name or its commit."""
        branches = self.revisions.get(repo, {})
        return next((b for b in branches if revision in (b, self.commit_of(repo, b))), None)


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._answer({"error": code}, 404, {"X-Error-Code": code})

    def do_POST(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        chunks = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            chunks.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = b"".join(chunks)
        hub.requests.append(f"POST {path}")
        hub.received.append(body)
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization') or 'somebody'}/{values['name']}"
            kind = "spaces/" if values.get("type") == "space" else ""
            hub.revisions.setdefault(kind + name, {"main": {}})
            self._answer({"url": f"{hub.endpoint}/{kind}{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = hub.revisions[found[1]]
            branches.setdefault(found[2], dict(branches["main"]))
            self._answer({})
        elif re.fullmatch(r"/api/(?:models/|(?=spaces/)).+/preupload/.+", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif found := re.fullmatch(r"/api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)/commit/(.+)", path):
            files = hub.revisions[found[1]][found[2]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    files[line["value"]["path"]] = content
                    hub.received.append(content)
                elif line["key"] != "header":
                    raise ValueError(f"a commit holds {line['key']}")
            commit = hub.commit_of(found[1], found[2])
            url = f"{hub.endpoint}/{found[1]}/commit/{commit}"
            self._answer({"commitUrl": url, "commitOid": commit, "success": True})
        else:
            self._missing("EntryNotFound")

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0].replace("%2F", "/")
        hub.requests.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            branch = hub.find(found[1], found[2] or "main")
            if branch is None:
                self._missing("RepoNotFound" if found[1] not in hub.revisions else "RevisionNotFound")
                return
            names = [{"rfilename": name} for name in hub.revisions[found[1]][branch]]
            self._answer({"id": found[1], "sha": hub.commit_of(found[1], branch), "siblings": names})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            branch = hub.find(found[1], found[2])
            files = hub.revisions.get(found[1], {}).get(branch or "", {})
            inside = f"{found[3]}/" if found[3] else ""
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": "0"}
                for name, content in files.items()
                if name.startswith(inside)
            ]
            self._answer(rows) if rows else self._missing("EntryNotFound")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            branch = hub.find(found[1], found[2])
            content = hub.revisions.get(found[1], {}).get(branch or "", {}).get(found[3])
            commit = {} if branch is None else {"X-Repo-Commit": hub.commit_of(found[1], branch)}
            if content is None:
                self._answer({}, 404, {"X-Error-Code": "EntryNotFound", **commit})
                return
            tag = hashlib.sha256(content).hexdigest()
            self._answer(content, 200, {"ETag": f'"{tag}"', **commit})
        else:
            self._missing("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815
