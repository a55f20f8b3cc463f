"""Take the broker away, or put another in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.celery_app import app

#: A port on which nothing listens.
NO_BROKER = "redis://127.0.0.1:1/0"


@contextmanager
def broker_away(
    url: str = NO_BROKER, *, options: Mapping[str, object] | None = None
) -> Iterator[None]:
    """Look for the broker at ``url``, where there is none, with these transport options."""
    with pytest.MonkeyPatch.context() as patch:
        # Celery 5.7 reads this variable before its own setting.
        patch.setenv("CELERY_BROKER_URL", url)
        patch.setitem(app.conf, "broker_transport_options", dict(options or {}))
        yield
