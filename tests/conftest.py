"""Fixtures: a real worker over a real broker, on the database of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from celery_admin_runner import recording
from tests.celery_app import app
from tests.waiting import wait_until

#: Long enough for a worker on a busy machine to come up.
WORKER_STARTS_WITHIN = 60


def worker_name(name: str) -> str:
    """Return the name by which Celery knows a worker of this test process.

    Each process's own: on a broker that several share, two of one name would answer for
    each other.
    """
    return f"{name}-{settings.QUEUE}@localhost"


@contextmanager
def running_worker(name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    """Run a worker of the test app as a process of its own, until it answers and to its end."""
    hostname = worker_name(name)
    log = Path(settings.FOLDER) / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "celery", "-A", "tests.celery_app", "worker", "-n", hostname),
                *("--without-gossip", "--without-mingle", "-l", "INFO", *arguments),
            ],
            env={
                **os.environ,
                "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, f"The worker has ended:\n{log.read_text()[-4000:]}"
            return bool(app.control.ping([hostname], timeout=0.5))

        wait_until(answers, seconds=WORKER_STARTS_WITHIN, why=f"{hostname} does not answer")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="session")
def worker_process(django_db_setup: None, django_db_blocker: object) -> Iterator[Path]:
    """One prefork worker for the whole session; gives the path of its log."""
    with running_worker("session", "--concurrency", "2"):
        yield Path(settings.FOLDER) / "session.log"


@pytest.fixture(scope="session")
def threads_queue(django_db_setup: None, django_db_blocker: object) -> Iterator[str]:
    """The queue of a worker with two threads, for the whole session."""
    queue = f"{settings.QUEUE}-threads"
    with running_worker("threads", "--pool", "threads", "--concurrency", "2", "-Q", queue):
        yield queue


@pytest.fixture(scope="session")
def solo_queue(django_db_setup: None, django_db_blocker: object) -> Iterator[str]:
    """The queue of a worker that does one thing at a time, for the whole session."""
    queue = f"{settings.QUEUE}-solo"
    with running_worker("solo", "--pool", "solo", "-Q", queue):
        yield queue


@pytest.fixture
def worker(transactional_db: None, worker_process: Path) -> Path:
    """A real worker that sees the rows of this test; gives the path of its log."""
    return worker_process


@pytest.fixture(autouse=True)
def own_connection_closed() -> Iterator[None]:
    """Keep no connection of the journal's own to a database that the tests want to drop."""
    yield
    recording.close()


@pytest.fixture(autouse=True)
def _queue_of_nobody(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what a test without a worker runs to where none takes it.

    A worker that another test has started would sometimes be faster than the test.
    """
    if not {"worker", "worker_process"} & set(request.fixturenames):
        monkeypatch.setitem(app.conf, "task_default_queue", f"{settings.QUEUE}-nobody")


@pytest.fixture
def configure(settings: object) -> Callable[..., None]:
    """Set keys of CELERY_ADMIN_RUNNER for one test: ``configure(RUNNABLE_TASKS=[...])``."""

    def change(**keys: object) -> None:
        settings.CELERY_ADMIN_RUNNER = {**settings.CELERY_ADMIN_RUNNER, **keys}

    return change
