"""A hub on this machine, as far as `huggingface_hub` asks it for a model, and its cache."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_of(folder):
    """The files of a folder by their path in the repository."""
    return {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }


def fill_cache(cache, model, folder, *, commit=COMMIT, refs=("main",), leave_out=()):
    """Lay a pipeline into a cache as a download does: blobs, a snapshot of links, refs."""
    storage = cache / f"models--{model.replace('/', '--')}"
    for file, path in files_of(folder).items():
        if file in leave_out:
            continue
        blob = storage / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = storage / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    for ref in refs:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / ref).write_text(commit)


class Hub:
    """One repository and what was asked of it.

    `errors` maps a model id to the status and error code that the hub answers with.
    """

    def __init__(self, model, folder, errors):
        self.model, self.files, self.errors = model, files_of(folder), errors
        self.asked = []
        self.fetched = set()

    def answer(self, path):
        """Status, headers and body for a path of the hub."""
        for model, (status, code) in self.errors.items():
            if f"/{model}/" in path:
                return status, {"X-Error-Code": code}, b""
        if path == f"/api/models/{self.model}/revision/main":
            return self.json({"id": self.model, "sha": COMMIT, "siblings": []})
        if path == f"/api/models/{self.model}/tree/{COMMIT}":
            return self.json(
                [
                    {"type": "file", "path": file, "size": path.stat().st_size, "oid": "0" * 40}
                    for file, path in self.files.items()
                ]
            )
        file = path.removeprefix(f"/{self.model}/resolve/{COMMIT}/")
        if file in self.files:
            body = self.files[file].read_bytes()
            self.fetched.add(file)
            etag = hashlib.sha256(body).hexdigest()
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, body
        code = "RevisionNotFound" if "/revision/" in path else "EntryNotFound"
        return 404, {"X-Error-Code": code}, b""

    @staticmethod
    def json(value):
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve(model, folder, **errors):
    """Run a hub in a thread; yields it and its address."""
    hub = Hub(model, folder, errors)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
