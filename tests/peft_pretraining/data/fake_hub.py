"""A hub on the loopback that serves C4-format shards, and misbehaves on demand."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_KINDS = {"/resolve/": "", "/tree/": "tree", "/api/datasets/allenai/c4": "info"}
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class FakeHub:
    """Files under `folder` as the dataset allenai/c4.

    `plan` maps a word in a request's path to the faults that the next requests for it meet, in order: a status,
    "cut" (half of the body), "reset" (no answer), ("stall", seconds) or "trickle" (a byte a second). `asked` counts
    requests by kind: "info" and "tree" of the repository, the names of files, and "other".
    """

    def __init__(self, folder: Path, plan: dict[str, list[Any]]) -> None:
        self.folder, self.plan = folder, plan
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def fault(self, path: str) -> Any:
        """The next fault for a path; None for a good answer."""
        with self.lock:
            for word, faults in self.plan.items():
                if word in path and faults:
                    return faults.pop(0)
        return None

    def listing(self) -> list[dict[str, Any]]:
        """The answer to a question for the tree."""
        return [
            {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": f"en/{path.name}"}
            for path in sorted((self.folder / "en").iterdir())
        ]


@contextmanager
def serve(folder: Path, plan: dict[str, list[Any]] | None = None) -> Iterator[tuple[FakeHub, str]]:
    """(the hub, its address) while the body runs."""
    hub = FakeHub(folder, plan or {})

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def log_message(self, *_: Any) -> None:
        """Keeps the tests' output clean."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        kind = next((kind for word, kind in _KINDS.items() if word in path), "other")
        kind = kind or path.rsplit("/", 1)[-1]
        with self.served.lock:
            self.served.asked[kind] += 1
        fault = self.served.fault(path)
        if isinstance(fault, int):
            self._send(fault, b"", {})
        elif fault == "reset":
            self.close_connection = True
        else:
            self._answer(kind, fault)

    def _answer(self, kind: str, fault: Any) -> None:
        if kind == "info":
            self._send(200, json.dumps({"id": "allenai/c4", "sha": COMMIT, "siblings": []}).encode(), {})
        elif kind == "tree":
            self._send(200, json.dumps(self.served.listing()).encode(), {}, fault)
        else:
            self._send_range((self.served.folder / "en" / kind).read_bytes(), fault)

    def _send_range(self, data: bytes, fault: Any) -> None:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2]), len(data) - 1)) if match else (0, len(data) - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": '"0"'}
        self._send(206, data[first : last + 1], headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Any = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        elif isinstance(fault, tuple):
            time.sleep(fault[1])
        try:
            if fault == "trickle":
                for index in range(len(body)):
                    self.wfile.write(body[index : index + 1])
                    time.sleep(1)
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
