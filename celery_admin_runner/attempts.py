"""Code of a project that may raise anything, where one failure must not end the rest."""

from __future__ import annotations

from types import TracebackType


class Attempt:
    """Surrounds what a project's own code may end by any error, and keeps that error."""

    error: Exception | None = None

    def __init__(self, *, passing: tuple[type[Exception], ...] = ()) -> None:
        """``passing``: errors that go on to the caller."""
        self._passing = passing

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception) and not isinstance(error, self._passing):
            self.error = error
        return self.error is not None
