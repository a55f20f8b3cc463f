"""Give the app of the tests a result backend for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.celery_app import app

#: Our result backend, as projects write it in their settings.
OURS = "celery_admin_runner.backends:DatabaseBackend"


@contextmanager
def using_backend(path: str = OURS, **conf: Any) -> Iterator[Any]:
    """Use the result backend ``path``, with this configuration; gives the backend."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"result_backend": path, **conf}.items():
            patch.setitem(app.conf, name, value)
        forget_what_was_built()
        try:
            yield app.backend
        finally:
            patch.undo()
            forget_what_was_built()


def forget_what_was_built() -> None:
    """Let the app build its backend and its queues again: it keeps both."""
    app._backend_cache = None
    vars(app._local).pop("backend", None)
    vars(app).pop("amqp", None)
