"""The processes of the site, and what stands between them and their servers."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The folder of the site's package.
HERE = Path(__file__).resolve().parent.parent
#: So long any one thing may take, in seconds.
PATIENCE = 40.0


class Wrong(SystemExit):
    """Something is not as it should be."""


def until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return what ``condition`` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Wrong(f"In vain waited for: {what}")
        time.sleep(0.1)
    return found


class Proxy:
    """Stands between all processes and a server, so that it can be away for these alone."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pipes: set[socket.socket] = set()
        self.is_open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let the server be away: what is open breaks, what is new is closed at once."""
        self.is_open = False
        for pipe in list(self._pipes):
            with contextlib.suppress(OSError):
                pipe.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let the server be back."""
        self.is_open = True

    def _accept(self) -> None:
        while True:
            client, _address = self._listener.accept()
            if not self.is_open:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._pipes |= {client, server}
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pipes -= {source}
        source.close()


class Site:
    """The processes of the site; each leads a process group, so that its children go with it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen] = {}
        self._starts = Counter[str]()

    def start(self, name: str, command: list[str] | None = None) -> None:
        """Start a process, or the one of this name once more."""
        self._commands[name] = command or self._commands[name]
        self._starts[name] += 1
        with self.log(name).open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *self._commands[name]],
                cwd=HERE,
                env={**self._environment, "SCALE_PROCESS": name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Return the log of the process of this name that was started last."""
        return self._folder / f"{name} {self._starts[name]}.log"

    def kill(self, name: str) -> None:
        """Let a process and its children be gone at once, as by a machine that burns."""
        process = self._processes[name]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> dict[str, int]:
        """Ask all processes to end, and return the exit codes of those that lived."""
        living = {name: each for name, each in self._processes.items() if each.poll() is None}
        for each in living.values():
            each.terminate()
        return {name: each.wait(PATIENCE) for name, each in living.items()}

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for name in self._processes:
            self.kill(name)

    def faults(self) -> str:
        """Return what the logs tell of errors that nobody expects."""
        found = []
        for log in sorted(self._folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            found += [
                f"{log.stem}: {line}"
                for line in lines
                if re.search(r"Traceback|could not record|broke off|Unrecoverable", line)
            ]
        return "\n".join(found)

    def memory_in_mb(self) -> dict[str, float]:
        """Return the memory of each process with its children; what is shared is divided."""
        return {
            name: sum(map(_memory_in_mb, _group_of(each.pid)))
            for name, each in self._processes.items()
        }


def _group_of(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry.name)) == leader:
                    members.append(int(entry.name))
    return members


def _memory_in_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def free_ports(number: int) -> list[int]:
    """Return ports on which nobody listens."""
    with contextlib.ExitStack() as stack:
        probes = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [probe.getsockname()[1] for probe in probes]
