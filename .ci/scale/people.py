"""Who works with the site's pages: by HTTP and by websocket, at whichever web process."""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse
from typing import Any

from scale.processes import PATIENCE, Wrong

BASE = "/admin/celery_admin_runner"


class Operator:
    """Who works with the pages, at whichever web process."""

    def __init__(self, port: int, name: str) -> None:
        self._cookies: dict[str, str] = {}
        self.ask(port, "/admin/login/")
        form = {"username": name, "password": name, "next": "/admin/"}
        if self.ask(port, "/admin/login/", form)[0] != 302:
            raise Wrong(f"{name} could not log in")

    def ask(
        self, port: int, path: str, form: dict[str, str] | None = None, *, data: Any = None
    ) -> tuple[int, str, str]:
        """Return status, text and location of an answer; raises OSError."""
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        headers = {"Cookie": cookies, "X-CSRFToken": self._cookies.get("csrftoken", "")}
        body = None
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif data is not None:
            body = json.dumps(data)
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        return answer.status, text, answer.headers.get("Location", "")

    def run(self, port: int, task: str, *args: Any, **options: Any) -> tuple[int, str]:
        """Run a task by JSON; return the status and the task id."""
        path = f"{BASE}/celerytask/scale.tasks.{task}/run/"
        status, text, _ = self.ask(port, path, data={"args": args, "options": options})
        return status, json.loads(text).get("task_id", "")

    def press(self, port: int, pk: int, button: str, **form: str) -> None:
        """Press a button on the page of a run, which must lead back to it."""
        status, text, _ = self.ask(port, f"{BASE}/taskrunrecord/{pk}/{button}/", form)
        if status != 302:
            raise Wrong(f"{button} was answered by {status}:\n{text}")

    def listen(self, port: int) -> "Ears":
        """Open the websocket of one's own runs."""
        return Ears(port, self._cookies["sessionid"])


class Ears:
    """An open websocket, and what was heard by it."""

    def __init__(self, port: int, session: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        lines = [
            "GET /ws/task-runs/ HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Origin: http://127.0.0.1:{port}",
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Cookie: sessionid={session}",
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._stream = self._socket.makefile("rb")
        if b"101" not in (answer := self._stream.readline()):
            raise Wrong(f"The websocket was refused: {answer!r}")
        while self._stream.readline().strip():
            pass
        self.heard: dict[str, tuple[str, float]] = {}
        self.has_snapshot = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        if not self.has_snapshot.wait(PATIENCE):
            raise Wrong("The websocket told nothing")

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while head := self._stream.read(2):
                length = head[1] & 127
                if length > 125:
                    length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
                text = self._stream.read(length)
                if head[0] & 15 == 1:
                    self._hear(json.loads(text))

    def _hear(self, message: dict[str, Any]) -> None:
        for run in message.get("runs", [message["run"]] if "run" in message else []):
            self.heard[run["task_id"]] = (run["state"], time.monotonic())
        self.has_snapshot.set()


def answers(port: int) -> bool:
    """Tell whether a web process serves pages."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/admin/login/")
        return connection.getresponse().status == 200
    return False
