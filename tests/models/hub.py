"""A model hub on this machine: a folder a repository, served as the real one serves files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Hub:
    """What is asked of it, and where it is."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address = root, address
        self.asked: list[tuple[str, str, str | None]] = []  # repository, revision, token

    def repositories(self) -> set[str]:
        return {repository for repository, _, _ in self.asked}


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve `root/<owner>/<name>/…` until the block is left."""
    served: list[Hub] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer()

        def do_GET(self):
            self._answer()

        def _answer(self):
            parts = unquote(self.path.split("?")[0]).strip("/").split("/")
            if len(parts) < 5 or parts[2] != "resolve":
                self.send_response(200 if parts == [""] else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            served[0].asked.append((repository, revision, self.headers.get("Authorization")))
            file = root / repository / name
            missing = None if file.is_file() else "EntryNotFound" if file.parent.is_dir() else "RepoNotFound"
            content = b"" if missing else file.read_bytes()
            self.send_response(404 if missing else 200)
            if missing:
                self.send_header("X-Error-Code", missing)
            self.send_header("X-Repo-Commit", hashlib.sha1(repository.encode()).hexdigest())
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.append(Hub(root, f"http://127.0.0.1:{server.server_port}"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served[0]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
