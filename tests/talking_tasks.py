"""Tasks of the test project that print, log and tell how far they are."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger
from django.db import connection, connections, transaction

from celery_admin_runner.runs import CurrentRun, current_run

logger = logging.getLogger(__name__)
quiet_logger = logging.getLogger("tests.quiet")
quiet_logger.propagate = False
quiet_logger.addHandler(logging.NullHandler())


def run_now() -> CurrentRun:
    """Return the current run."""
    run = current_run()
    assert run is not None
    return run


def wait_for(path: str, seconds: float = 30) -> None:
    """Wait until a file exists."""
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@shared_task
def talk() -> None:
    """Print, log, and write to stderr."""
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logger.warning("to the %s", "log")
    get_task_logger("tests.own").error("to the task log")
    quiet_logger.warning("to a log that is not propagated")
    try:
        raise ValueError("caught")
    except ValueError:
        logger.exception("went wrong")
    print("the end")


@shared_task
def talk_and_fail(password: str = "") -> None:
    """Print, then fail."""
    print("before it failed")
    raise ValueError(f"no, {password}")


@shared_task
def say(*texts: str, end: str = "") -> None:
    """Write texts to stdout, one after the other."""
    for text in texts:
        sys.stdout.write(text)
    sys.stdout.write(end)


@shared_task
def say_hostile() -> None:
    """Write what no terminal and no database likes."""
    print("a\x00b \ud800 \x1b[1;31mred\x1b[0m \x1b]0;title\x07bell\x07")
    for part in range(0, 101, 10):
        sys.stdout.write(f"\r{part}%")
    print()


@shared_task
def say_and_wait(text: str, path: str) -> None:
    """Print, then wait for a file."""
    print(text)
    wait_for(path)
    print("went on")


@shared_task
def say_often(text: str, times: int, seconds: float) -> None:
    """Print a text again and again, in the time that is given."""
    for _ in range(times):
        print(text)
        time.sleep(seconds / times)


@shared_task
def say_lines(number: int, path: str = "") -> float:
    """Print many lines; return how many seconds that took, also to a file."""
    began = time.perf_counter()
    for line in range(number):
        print(f"line {line:06} {'x' * 30}")
    took = time.perf_counter() - began
    if path:
        Path(path).write_text(str(took))
    return took


@shared_task
def say_much(lines: int, length: int) -> int:
    """Print many long lines; return by how many bytes the peak of the process's memory grew."""
    before = peak_memory()
    for line in range(lines):
        print(f"{line:08}".ljust(length, "."))
    return peak_memory() - before


def peak_memory() -> int:
    """Return the most that this process has used, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


@shared_task
def say_and_be_killed(path: str) -> None:
    """Print, and kill the pool's process as soon as a file exists."""
    print("last words of", os.getpid())
    wait_for(path)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task
def say_in_transaction(path: str) -> None:
    """Print and progress in a transaction that is rolled back as soon as a file exists."""
    with transaction.atomic():
        print("in a transaction")
        run_now().progress(1, 2, "in a transaction")
        wait_for(path)
        transaction.set_rollback(True)


@shared_task
def say_after_closing() -> None:
    """Close all connections to the database, and print."""
    connection.close()
    connections.close_all()
    print("no connection")
    run_now().progress(3, 4)


@shared_task
def count_to(number: int, message: str = "", password: str = "") -> None:
    """Tell of each step."""
    run = run_now()
    for step in range(1, number + 1):
        run.progress(step, number, message)


@shared_task
def count_and_wait(path: str) -> None:
    """Tell of steps forwards and backwards, then wait for a file."""
    run = run_now()
    run.progress(5, None, "unknown")
    run.progress(2, 10, "known")
    wait_for(path)


@shared_task
def stop_when_asked() -> None:
    """Work until somebody asks to cancel."""
    while True:
        run_now().raise_if_cancelled()
        time.sleep(0.05)


@shared_task
def who_am_i() -> dict[str, Any]:
    """Return what a task knows of its run."""
    run = current_run()
    return {} if run is None else {"task_id": run.task_id, "pk": run.pk}


@shared_task
def tell(password: str) -> None:
    """Print a secret whole, in parts over two flushes, and raise with it."""
    sys.stdout.write(f"it is {password} in parts {password[:5]}")
    time.sleep(1.5)
    sys.stdout.write(f"{password[5:]}\n")
    logger.error("log %s", password)
    raise ValueError(password)


@shared_task
def talk_until(path: str) -> str:
    """Print and tell of a step, wait for a file, and log and return its text."""
    print("one")
    run_now().progress(3, 10, "third")
    wait_for(path)
    logger.warning("two")
    return Path(path).read_text()


@shared_task
def say_and_count(path: str) -> None:
    """Print and progress, before and after a file exists."""
    print("solo")
    run_now().progress(1, 2)
    wait_for(path)
    run_now().progress(2, 2)


@shared_task
def say_config(config: dict[str, str]) -> None:
    """Print what is in a mapping, and take it out of it."""
    while config:
        print(config.popitem())
