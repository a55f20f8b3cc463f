"""``manage.py demo``: the whole example project with one command."""

import argparse
import contextlib
import errno
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from kombu.exceptions import OperationalError

from config.celery import app
from shop import coming, past, seed
from shop.processes import Child, stop_all
from shop.queues import Queue

HOST = "127.0.0.1"
#: How long the worker and the web server may take until they answer.
START_SECONDS = 60
#: How long a stopping worker may go on with what it runs; long enough for a customer's report.
GRACE_SECONDS = 15
#: How the customers' page learns of changes: with a websocket or without.
TRANSPORTS = {
    True: "The server is daphne: their page is told of each change by websocket.",
    False: "Their page asks for changes; with the extra [websocket] it is told of them.",
}


class Command(BaseCommand):
    """Prepare the database, then run a worker and a web server until Ctrl-C."""

    help = "Starts the example project: database, users, worker and web server."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the port."""
        parser.add_argument(
            "--port", type=_port, default=8000, help="port of the web server (default: 8000)"
        )

    def handle(self, *, port: int, **options: Any) -> None:
        """Run the demo; raises CommandError if something of it can't run."""
        _check_is_free(port)
        self._prepare()
        with _Stop() as stop, self._running(port) as (worker, web):
            self._wait_for_answers(stop, worker, web, port)
            if not stop.was_asked:
                self._say_hello(port)
            while not stop.was_asked:
                _check_lives(worker, web)
                time.sleep(0.2)
            self._say("Stopping ...")
        self._say("Stopped.")

    def _prepare(self) -> None:
        self._say("Preparing the database ...")
        call_command("migrate", verbosity=0, interactive=False)
        now = timezone.now()
        seed.make_users()
        seed.fill_shop(now)
        seed.make_customer_logins()
        if past.make_past_runs(now):
            coming.make_coming_runs(now)

    @contextlib.contextmanager
    def _running(self, port: int) -> Iterator[tuple[Child, Child]]:
        """Start the worker and the web server, and stop them at the end, whatever happens."""
        self._say("Starting the worker and the web server ...")
        children: list[Child] = []
        try:
            for name, command in (("worker", _worker(port)), ("web", _web_server(port))):
                log = settings.VAR / f"{name}.log"
                children.append(
                    Child(name, [sys.executable, *command], log=log, cwd=settings.BASE_DIR)
                )
            yield children[0], children[1]
        finally:
            stop_all(children, grace_seconds=GRACE_SECONDS)

    def _wait_for_answers(self, stop: "_Stop", worker: Child, web: Child, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        silent = [(web, lambda: _web_answers(port)), (worker, lambda: _worker_answers(port))]
        while silent and not stop.was_asked:
            _check_lives(worker, web)
            child, answers = silent[0]
            if answers():
                silent.pop(0)
            elif time.monotonic() > deadline:
                raise CommandError(
                    f"The {child.name} process does not answer. The end of {child.log}:\n"
                    f"{child.log_tail()}"
                )
            else:
                time.sleep(0.2)

    def _say_hello(self, port: int) -> None:
        site = f"http://{HOST}:{port}/"
        self._say(
            f"\nThe demo runs: {site}admin/\n\n"
            f"Log in as one of (name / password):\n{_logins(seed.USERS)}\n\n"
            f"Its customers build reports: {site}reports/\n\n"
            f"Log in as one of:\n{_logins(seed.CUSTOMERS)}\n\n"
            f"{TRANSPORTS[settings.WEBSOCKET]}\n"
            f"The logs are in {settings.VAR}\nStop it with Ctrl-C."
        )

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


class _Stop:
    """Remembers that somebody asked to stop; while it is entered, signals do nothing else."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.was_asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Stop":
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.was_asked = True


def _logins(names: Iterable[str]) -> str:
    return "\n".join(f"  {name} / {name}" for name in names)


def _port(text: str) -> int:
    """Read a port number."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use a number from 1 to 65535")
    return int(text)


def _check_is_free(port: int) -> None:
    """Raise CommandError if no server can listen on the port."""
    with socket.socket() as probe:
        # As runserver does; a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CommandError(f"Port {port} can't be used: {error.strerror}.") from error
            raise CommandError(
                f"Port {port} is in use by another program. Choose another one: --port {port + 1}"
            ) from error


def _check_lives(*children: Child) -> None:
    """Raise CommandError if one of the processes has ended."""
    for child in children:
        if child.exit_code is not None:
            raise CommandError(
                f"The {child.name} process ended with code {child.exit_code}. "
                f"The end of {child.log}:\n{child.log_tail()}"
            )


def _worker(port: int) -> list[str]:
    return [
        *("-m", "celery", "-A", "config", "worker", "--loglevel", "INFO", "--concurrency", "2"),
        *("--queues", ",".join(Queue)),
        *("--hostname", _worker_name(port), "--without-gossip", "--without-mingle"),
    ]


def _worker_name(port: int) -> str:
    """Return the worker's name; the port tells the workers of two demos apart."""
    return f"demo-{port}@{socket.gethostname()}"


def _web_server(port: int) -> list[str]:
    return ["manage.py", "runserver", "--noreload", f"{HOST}:{port}"]


def _web_answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/admin/login/", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def _worker_answers(port: int) -> bool:
    try:
        return bool(app.control.ping(destination=[_worker_name(port)], timeout=1))
    except OperationalError:
        return False
