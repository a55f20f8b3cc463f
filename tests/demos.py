"""The example project as a user starts it: its own processes, and who visits its pages."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import celery_admin_runner
from tests.waiting import wait_until

EXAMPLE = Path(__file__).parent.parent / "example_project"
START_SECONDS = 90
#: What the tests set for themselves, and a user of the example has not set.
FOREIGN = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
#: A report has six steps; its customer need not wait long for each in a test.
SECONDS_A_STEP = 0.5


class Demo:
    """A running ``manage.py demo``, and a browser without a screen."""

    def __init__(self, folder: Path, port: int, **environ: str) -> None:
        self.folder = folder
        self.site = f"http://127.0.0.1:{port}/"
        self.url = f"{self.site}admin/"
        self._printed = folder / "printed.txt"
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._cookies)
        )
        with self._printed.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "demo", "--port", str(port)],
                cwd=EXAMPLE,
                env={**environment(folder), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    def has_come_up(self) -> bool:
        assert self.process.poll() is None, self.printed
        return "The demo runs:" in self.printed

    def log_in(self, user: str) -> str:
        """Log in, and return the page that answers."""
        self._opener.open(f"{self.url}login/", timeout=20).close()
        form = {"username": user, "password": user, "next": "/admin/", **self._token("form")}
        data = urllib.parse.urlencode(form).encode()
        with self._opener.open(f"{self.url}login/", data, timeout=20) as response:
            return str(response.read().decode())

    def run(self, task_name: str, **call: object) -> dict[str, str]:
        """Run a task by the JSON API, and return what it answers."""
        request = urllib.request.Request(
            f"{self.url}celery_admin_runner/celerytask/{task_name}/run/",
            json.dumps(call).encode(),
            {"Content-Type": "application/json", **self._token("header")},
        )
        with self._opener.open(request, timeout=20) as response:
            assert response.status == 201
            return dict(json.load(response))

    def press(self, button: str, **form: object) -> str:
        """Press a button of a page of the journal, or of another; return what answers."""
        data = urllib.parse.urlencode({**form, **self._token("form")}, doseq=True).encode()
        base = "" if button.startswith("shop/") else "celery_admin_runner/taskrunrecord/"
        with self._opener.open(f"{self.url}{base}{button}", data, timeout=20) as response:
            return str(response.read().decode())

    def confirm(self, button: str, **form: object) -> str:
        """Press a button, and say yes to the question that answers."""
        page = self.press(button, **form)
        shown = re.findall(r'name="(known|_confirmed)" value="([^"]*)"', page)
        return self.press(button, **form, **dict(shown))

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the demo's database."""
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            return database.execute(query, values).fetchall()

    def processes(self) -> list[int]:
        """Return the ids of the demo's processes, however they descend from it."""
        mark = f"EXAMPLE_VAR={self.folder}".encode()
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and mark in environ_of(entry)
        ]

    def _token(self, kind: str) -> dict[str, str]:
        name = {"form": "csrfmiddlewaretoken", "header": "X-CSRFToken"}[kind]
        return {name: next(c.value or "" for c in self._cookies if c.name == "csrftoken")}


class Visitor:
    """Somebody on the shop's own pages."""

    def __init__(self, demo: Demo, name: str = "") -> None:
        self.site = demo.site
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._cookies)
        )
        if name:
            self.open("login/")
            self.open("login/", username=name, password=name)

    def open(self, path: str, **form: str) -> str:
        """Open a page, or send it a form; return what answers."""
        tokens = [cookie.value or "" for cookie in self._cookies if cookie.name == "csrftoken"]
        data = urllib.parse.urlencode({**form, "csrfmiddlewaretoken": tokens[0]}) if form else ""
        url = urllib.parse.urljoin(self.site, path)
        with self._opener.open(url, data.encode() or None, timeout=20) as response:
            return str(response.read().decode())

    def answer_to(self, path: str, **form: str) -> int:
        """Return the code with which a page answers."""
        try:
            self.open(path, **form)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def runs(self) -> list[dict[str, str]]:
        """Return what the page shows of one's own runs, the newest first."""
        return list(json.loads(self.open("task-runs/"))["runs"])


def environ_of(entry: Path) -> list[bytes]:
    """Return the environment of a process; empty if it has ended."""
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user, but with a folder of the test's own."""
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    package = Path(celery_admin_runner.__file__).parent.parent
    pace = str(SECONDS_A_STEP)
    return {
        **own,
        "EXAMPLE_VAR": str(folder),
        "EXAMPLE_SECONDS_A_STEP": pace,
        "PYTHONPATH": str(package),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_demo(folder: Path, **environ: str) -> Iterator[Demo]:
    """Start the demo, with more in its environment; and leave no process behind."""
    demo = Demo(folder, free_port(), **environ)
    try:
        wait_until(demo.has_come_up, seconds=START_SECONDS, why="The demo does not come up")
        yield demo
    finally:
        for process in demo.processes():
            os.kill(process, signal.SIGKILL)
        demo.process.wait()
