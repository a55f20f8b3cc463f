"""Start the demo as a user would, log in, run a task, and stop it with a signal.

Usage: try_demo.py FOLDER COMMAND
The command is a line of shell that ends in ``manage.py demo``; it is run in the folder.
Exits with a message if the demo does not come up, a run does not succeed, a customer gets no
report, the demo does not go down, or leaves a process.
"""

import contextlib
import http.cookiejar
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

START_SECONDS = 420
RUN_SECONDS = 30
#: A report takes twelve seconds, so that one can watch it.
REPORT_SECONDS = 60
STOP_SECONDS = 40


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_hello(process: subprocess.Popen, log: Path) -> str:
    """Return the address that the demo prints once it runs."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = re.search(r"The demo runs: (\S+)", log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            raise SystemExit(f"The demo ended with code {process.returncode}:\n{log.read_text()}")
        time.sleep(0.5)
    raise SystemExit(f"The demo did not start:\n{log.read_text()}")


def wait_for_end(log: Path) -> None:
    """Return when the demo says that everything has stopped."""
    deadline = time.monotonic() + STOP_SECONDS
    while "Stopped." not in log.read_text():
        if time.monotonic() > deadline:
            raise SystemExit(f"The demo did not stop in order:\n{log.read_text()}")
        time.sleep(0.2)


def log_in(url: str, user: str, *, page: str, greeting: str) -> urllib.request.OpenerDirector:
    """Log in as one of the demo's users; the page that follows must greet them.

    Returns what opens pages as that user.
    """
    cookies = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    opener.open(f"{url}login/", timeout=20).read()
    token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
    form = {"username": user, "password": user, "csrfmiddlewaretoken": token, "next": page}
    answer = opener.open(f"{url}login/", urllib.parse.urlencode(form).encode(), timeout=20)
    text = answer.read().decode()
    if greeting not in text:
        raise SystemExit(f"{user} could not log in:\n{text}")
    # The token is another one after the login, and comes with the next form.
    opener.open(urllib.parse.urljoin(url, page), timeout=20).read()
    token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
    opener.addheaders.append(("X-CSRFToken", token))
    return opener


def run_task(url: str, opener: urllib.request.OpenerDirector) -> None:
    """Run a task, and wait until its page says that it has succeeded."""
    request = urllib.request.Request(
        f"{url}celery_admin_runner/celerytask/shop.tasks.add_vat/run/",
        b'{"args": ["10.50"]}',
        {"Content-Type": "application/json"},
    )
    run = json.load(opener.open(request, timeout=20))
    page = urllib.parse.urljoin(url, run["url"])
    deadline = time.monotonic() + RUN_SECONDS
    while "Succeeded" not in opener.open(page, timeout=20).read().decode():
        if time.monotonic() > deadline:
            raise SystemExit(f"The run did not succeed: {run}")
        time.sleep(0.2)


def runs_shown(site: str, opener: urllib.request.OpenerDirector) -> list[dict[str, Any]]:
    """Return the runs that this user is shown."""
    return json.load(opener.open(f"{site}task-runs/", timeout=20))["runs"]


def build_report(site: str, opener: urllib.request.OpenerDirector) -> None:
    """Build a customer's report, follow it as the page does, and open it.

    The database may know reports of an earlier demo, and these are shown too.
    """
    known = {run["task_id"] for run in runs_shown(site, opener)}
    opener.open(f"{site}reports/", b"period=all", timeout=20).read()
    deadline = time.monotonic() + REPORT_SECONDS
    while True:
        [run] = [run for run in runs_shown(site, opener) if run["task_id"] not in known]
        if run["finished"]:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"The report was not built: {run}")
        time.sleep(0.5)
    text = opener.open(urllib.parse.urljoin(site, run["url"]), timeout=20).read().decode()
    if run["state"] != "SUCCESS" or "Still to pay" not in text:
        raise SystemExit(f"There is no report: {run}\n{text}")


def processes_in(folder: Path) -> dict[int, str]:
    """Return the ids and commands of the processes that work in ``folder``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                place = Path(os.readlink(entry / "cwd"))
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # It has ended, or is another user's.
            if place == folder:
                found[int(entry.name)] = command
    return found


def end_all(processes: Iterable[int]) -> None:
    """Leave nothing behind, whatever went wrong."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def main(folder_name: str, command: str) -> None:
    """Start it, use it, stop it."""
    folder = Path(folder_name).resolve()
    log = folder / "demo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"{command} --port {free_port()}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = wait_for_hello(process, log)
        for user in ("admin", "operator", "auditor"):
            opener = log_in(url, user, page="/admin/", greeting=f"<strong>{user}</strong>")
            if user != "auditor":
                run_task(url, opener)
        site = urllib.parse.urljoin(url, "/")
        opener = log_in(site, "customer", page="/reports/", greeting="Build my report")
        build_report(site, opener)
        # To the shell and the demo alike, as a terminal does.
        os.killpg(process.pid, signal.SIGTERM)
        wait_for_end(log)
        left = processes_in(folder / "example_project")
    finally:
        end_all([process.pid, *processes_in(folder / "example_project")])
    if left:
        raise SystemExit(f"The demo left processes behind: {left}")
    print(log.read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
