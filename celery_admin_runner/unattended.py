"""Let what runs unattended find nobody at the standard input, instead of waiting for an answer."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

_is_unattended: ContextVar[bool] = ContextVar("celery_admin_runner_unattended", default=False)
_installing = Lock()
#: Other ways to what somebody types.
_OTHER_WAYS = frozenset({"buffer", "detach", "readlines"})


class Stdin:
    """The standard input, of which what runs unattended gets nothing.

    By context: other threads of the process read on.
    """

    def __init__(self, original: Any) -> None:
        self._original = original

    def readline(self, *args: Any) -> Any:
        """Read a line; raises EOFError where nobody would type it."""
        _refuse_to_wait()
        return self._original.readline(*args)

    def read(self, *args: Any) -> Any:
        """Read; raises EOFError where nobody would type."""
        _refuse_to_wait()
        return self._original.read(*args)

    def isatty(self) -> bool:
        """Tell whether somebody can answer."""
        return not _is_unattended.get() and bool(self._original.isatty())

    def fileno(self) -> int:
        """Return the file's number; ``input()`` would read from it past us."""
        if _is_unattended.get():
            raise io.UnsupportedOperation("A task has no standard input.")
        return int(self._original.fileno())

    def __iter__(self) -> Iterator[Any]:
        """Yield the lines."""
        _refuse_to_wait()
        return iter(self._original)

    def __next__(self) -> Any:
        """Return the next line; raises EOFError where nobody would type it."""
        _refuse_to_wait()
        return next(self._original)

    def __enter__(self) -> Stdin:
        """Go on; ``with options["file"] as lines`` may have got the standard input."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close nothing: it is the whole process's."""

    def __getattr__(self, name: str) -> Any:
        """Be the original in all else."""
        if name == "_original":
            # A copy that is being made has none yet.
            raise AttributeError(name)
        if name in _OTHER_WAYS:
            _refuse_to_wait()
        return getattr(self._original, name)


def _refuse_to_wait() -> None:
    if _is_unattended.get():
        raise EOFError("It asks for input, and there is nobody to answer.")


@contextmanager
def no_input() -> Iterator[None]:
    """Let nothing here wait for somebody to type."""
    with _installing:
        if sys.stdin is not None and not isinstance(sys.stdin, Stdin):
            sys.stdin = Stdin(sys.stdin)
    token = _is_unattended.set(True)
    try:
        yield
    finally:
        _is_unattended.reset(token)


def _forget() -> None:
    """Wait in a forked process for no thread that is not there."""
    global _installing
    _installing = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
