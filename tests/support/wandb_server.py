"""A local server with the part of W&B's protocol that a run needs: GraphQL to create it, file_stream for its rows.

https://github.com/wandb/wandb, ``core/internal``: ``gql`` has the queries, ``filestream`` the uploads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WandbServer:
    """What it has received, and with which HTTP status it answers uploads of rows."""

    url: str = ""
    upload_status: int = 200
    rows: list[dict[str, object]] = field(default_factory=list)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port of this machine."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            self._answer(200, {})

        def do_PUT(self) -> None:
            self._read()
            self._answer(200, {})

        def do_POST(self) -> None:
            body = self._read()
            if self.path == "/graphql":
                asked = json.loads(body)
                self._answer(200, {"data": _reply(asked["query"], asked["variables"] or {}, state.url)})
            elif self.path.endswith("/file_stream"):
                if state.upload_status == 200:
                    history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"content": []})
                    state.rows += [json.loads(line) for line in history["content"]]
                self._answer(state.upload_status, {})
            else:  # telemetry
                self._answer(200, {})

        def _read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, status: int, reply: object) -> None:
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()


def _reply(query: str, variables: Mapping[str, Sequence[str]], url: str) -> dict[str, object]:
    """Return the data of a GraphQL reply."""
    if "upsertBucket" in query:
        project = {"id": "1", "name": "a-project", "entity": {"id": "1", "name": "me"}}
        bucket = {"id": "1", "name": variables["name"], "displayName": "a run", "config": "{}", "historyLineCount": 0}
        return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
    if "serverInfo" in query:
        return {"serverInfo": {"features": []}}
    if "viewer" in query:
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": f"{url}/{number}"} for number, name in enumerate(variables["files"])]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
    return {"model": None}
