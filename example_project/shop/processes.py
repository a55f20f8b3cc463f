"""Child processes with a log each, which are stopped with all their own children."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

#: How many lines of a log are shown of a process that died.
TAIL_LINES = 20


class Child:
    """A process of ours. It leads a process group, so that its own children go with it."""

    def __init__(self, name: str, command: list[str], *, log: Path, cwd: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """The code it ended with; None while it lives."""
        return self._process.poll()

    def log_tail(self) -> str:
        """Return the end of what it has written."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def terminate(self) -> None:
        """Ask it to end; it takes its own children along."""
        if self.exit_code is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it, and whatever is left of its children."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()


def stop_all(children: Iterable[Child], *, grace_seconds: float) -> None:
    """End the processes; who is not gone after ``grace_seconds`` is killed."""
    children = list(children)
    deadline = time.monotonic() + grace_seconds
    for child in children:
        child.terminate()
    while any(child.exit_code is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in children:
        child.kill()
