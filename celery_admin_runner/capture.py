"""Catch what a task prints and logs: by context, so that two threads never mix.

Where nothing listens in the context, a print or a log record pays one look-up.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from contextvars import ContextVar
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol

from kombu.utils.encoding import safe_str

#: The streams of a run's output.
STDOUT, STDERR, LOG, TRACEBACK, NOTE = "stdout", "stderr", "log", "traceback", "note"
#: Loggers that tell of Celery and of us, not of the task; and the one by which Celery 5.7
#: logs what was printed.
_NOT_OF_TASKS = ("celery.", "celery_admin_runner.", "kombu.", "amqp.")
#: Celery's own logger for tasks.
_OF_TASKS = "celery.task."


class Listener(Protocol):
    """What gets the output of its context."""

    def add(self, stream: str, text: str) -> None:
        """Take a piece of output; never raises."""


_listener: ContextVar[Listener | None] = ContextVar("celery_admin_runner_listener", default=None)
_installing = Lock()


def listener() -> Listener | None:
    """Return who listens in this context."""
    return _listener.get()


def listen(listener: Listener | None) -> None:
    """Give the output of this context to ``listener`` from now on; None: to nobody."""
    _listener.set(listener)


def install() -> None:
    """Make sure that this process gives its output to who listens; it goes where it went, too."""
    with _installing:
        for stream in (STDOUT, STDERR):
            current = getattr(sys, stream)
            if current is not None and not isinstance(current, Tee):
                setattr(sys, stream, Tee(stream, current))
        factory = logging.getLogRecordFactory()
        if not isinstance(factory, _RecordFactory):
            logging.setLogRecordFactory(_RecordFactory(factory))


class Tee:
    """A standard stream that also gives what is written to who listens."""

    def __init__(self, stream: str, original: Any) -> None:
        self._stream = stream
        self._original = original

    def write(self, data: Any) -> Any:
        """Write ``data`` where it went before."""
        listener = _listener.get()
        if listener is not None and data:
            listener.add(self._stream, data if isinstance(data, str) else safe_str(data))
        return self._original.write(data)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def __enter__(self) -> Tee:
        """Go on; ``with options["file"] as out`` may have got the standard output."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close nothing: it is the whole process's."""

    def __getattr__(self, name: str) -> Any:
        """Be the original in all else."""
        if name == "_original":
            # A copy that is being made has none yet.
            raise AttributeError(name)
        return getattr(self._original, name)


class _Formatter(logging.Formatter):
    """Leaves no traces in the record, which other formatters get after it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        record.exc_text = None
        return text


class _ToListener(io.TextIOBase):
    """What the log handler writes to."""

    def write(self, text: str) -> int:
        listener = _listener.get()
        if listener is not None:
            listener.add(LOG, text)
        return len(text)


class _Handler(logging.StreamHandler[_ToListener]):
    """Leaves it to the other handlers to complain of arguments that do not fit their message."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Survive."""


class _RecordFactory:
    """Makes log records, and gives their text to who listens.

    A handler would not see what a project's loggers don't propagate, and on a root logger
    without handlers it would silence ``logging.lastResort``.
    """

    def __init__(self, original: Any) -> None:
        self._original = original
        self._handler = _Handler(_ToListener())
        self._handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._original(name, *args, **kwargs)
        if _listener.get() is not None and _is_of_task(name):
            self._handler.handle(record)
        return record


@lru_cache(maxsize=1024)
def _is_of_task(name: str | None) -> bool:
    """Tell whether a logger speaks for the task; without a name a record is only copied.

    Kept: each line that is printed asks for it, as Celery 5.7 logs it.
    """
    if not name:
        return False
    dotted = f"{name}."
    return dotted.startswith(_OF_TASKS) or not dotted.startswith(_NOT_OF_TASKS)


def _forget() -> None:
    """Listen to nobody in a forked process: nothing would write it down there."""
    global _installing
    _listener.set(None)
    _installing = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
