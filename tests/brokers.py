"""Take the broker away, or put another in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.celery_app import app

#: A port on which nothing listens.
NO_BROKER = "redis://127.0.0.1:1/0"


@contextmanager
def broker_away(url: str = NO_BROKER) -> Iterator[None]:
    """Look for the broker at ``url``, where there is none."""
    before = app.conf.broker_url, app.conf.broker_transport_options
    app.conf.broker_url, app.conf.broker_transport_options = url, {}
    try:
        yield
    finally:
        app.conf.broker_url, app.conf.broker_transport_options = before
