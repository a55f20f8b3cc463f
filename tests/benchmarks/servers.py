"""The processes of a measurement on the database of the tests: an ASGI server, and movers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket as network_socket
from typing import Any
from urllib.request import urlopen

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from tests.benchmarks.sockets import HOST
from tests.waiting import wait_until

APPLICATION = "tests.benchmarks.served:application"
STARTS_WITHIN, ENDS_WITHIN = 60, 10


@dataclass(frozen=True)
class Usage:
    """What a process has used until now: seconds, MB, numbers."""

    at: float
    cpu: float
    memory: float
    most_memory: float
    statements: int
    connections: int
    threads: int

    def share_since(self, before: Usage) -> float:
        """Return how much of one core was used since then, in percent."""
        return (self.cpu - before.cpu) / max(0.001, self.at - before.at) * 100

    def rate_since(self, before: Usage, name: str) -> float:
        """Return how many of something there were a second since then."""
        number = getattr(self, name) - getattr(before, name)
        return float(number / max(0.001, self.at - before.at))


@dataclass(frozen=True, kw_only=True)
class Server:
    """The ASGI process."""

    process: subprocess.Popen[bytes]
    port: int

    def usage(self) -> Usage:
        """Ask the process, and the system about it."""
        figures = json.loads(self.get("/figures"))
        folder = Path(f"/proc/{self.process.pid}")
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        lines = (folder / "status").read_text().splitlines()
        sizes = {name: text for name, _, text in (line.partition(":") for line in lines)}
        memory, most = (int(sizes[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return Usage(at=time.monotonic(), cpu=cpu, memory=memory, most_memory=most, **figures)

    def get(self, path: str) -> bytes:
        """Return what the process answers there."""
        with urlopen(f"http://{HOST}:{self.port}{path}", timeout=STARTS_WITHIN) as answer:
            return bytes(answer.read())


class Mover:
    """A process that changes runs, see ``tests.benchmarks.moves``."""

    def __init__(self, users: Sequence[User], rate: float, seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.moves"],
            # A broker of its own, that nobody has to empty; and PostgreSQL does not wait for its
            # disk, which is not what is measured.
            env=_environment(CELERY_BROKER_URL="memory://", PGOPTIONS="-c synchronous_commit=off"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._input: Any = self._process.stdin
        wanted = {"users": [user.pk for user in users], "rate": rate, "seconds": seconds}
        self._input.write(json.dumps(wanted).encode() + b"\n")
        self._input.flush()
        #: Each change: run, user, rank, moment.
        self.changes: list[tuple[int, int, int, float]] = []
        self.seconds = 0.0

    def wait_until_ready(self) -> None:
        """Return when it only waits for ``begin``."""
        output: Any = self._process.stdout
        assert output.readline(), "a mover has ended"

    def begin(self) -> None:
        """Let it begin."""
        self._input.write(b"\n")
        self._input.flush()

    def finish(self) -> None:
        """Wait until it has ended, and learn what it did."""
        output, _ = self._process.communicate()
        assert output, "a mover has ended"
        told = json.loads(output)
        self.changes, self.seconds = told["changes"], told["seconds"]

    def end(self) -> None:
        """End the process, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def running_movers(
    users: Sequence[User], *, number: int, rate: float, seconds: float
) -> Iterator[list[Mover]]:
    """Have processes that change runs, each those of its own users, ready to begin."""
    number = min(number, len(users))
    movers = [Mover(users[start::number], rate / number, seconds) for start in range(number)]
    try:
        for mover in movers:
            mover.wait_until_ready()
        yield movers
    finally:
        for mover in movers:
            mover.end()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with network_socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _daphne(port: int) -> Sequence[str]:
    return ("daphne", "-b", HOST, "-p", str(port), "--verbosity", "0")


def _uvicorn(port: int) -> Sequence[str]:
    return ("uvicorn", "--host", HOST, "--port", str(port), "--log-level", "warning")


#: Uvicorn is no part of the extra: for comparison, where it is installed.
COMMANDS = {"daphne": _daphne, "uvicorn": _uvicorn}


@contextmanager
def running_server(name: str, port: int = 0, **environment: str) -> Iterator[Server]:
    """Run the ASGI process until it answers, and to its end; show what it said."""
    port = port or free_port()
    log = Path(settings.FOLDER) / f"live-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[name](port), APPLICATION],
            env=_environment(**environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        assert process.poll() is None, f"The server has ended:\n{log.read_text()[-4000:]}"
        with suppress(OSError), network_socket() as client:
            client.connect((HOST, port))
            return True
        return False

    try:
        wait_until(answers, seconds=STARTS_WITHIN, why="the server does not answer")
        yield Server(process=process, port=port)
    finally:
        process.terminate()
        try:
            process.wait(timeout=ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if said := log.read_text().strip():
            sys.stdout.write(f"The server said:\n{said[:4000]}\n")


def _environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process on the database and the channel layer of the tests."""
    return {
        **os.environ,
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
        "TEST_CHANNEL_REDIS": settings.CHANNEL_REDIS,
        "TEST_CHANNEL_PREFIX": f"live-{settings.QUEUE}",
        **variables,
    }
