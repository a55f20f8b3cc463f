"""Start a site, with our app or without, and tell as JSON what that took: run by its path.

The site is one as ours asks for: Celery, import-export with its admin, and pydantic with a model.
"""

from __future__ import annotations

import json
import sys
import threading
from time import process_time

#: What nobody may do while a site starts: open a database or the broker, start a thread.
CONNECTIONS = {"socket.connect", "sqlite3.connect"}
THREADS = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
counts = {"connections": 0, "threads": 0}


def count(event: str, arguments: object) -> None:
    """Count what Python itself tells of."""
    counts["connections"] += event in CONNECTIONS
    counts["threads"] += event in THREADS


sys.addaudithook(count)
begun_at = process_time()

import celery  # noqa: E402
import django  # noqa: E402
import pydantic  # noqa: E402
from django.conf import settings  # noqa: E402


class Order(pydantic.BaseModel):
    """A model with a bound, as forms have."""

    number: int = pydantic.Field(gt=0)


pydantic.TypeAdapter(list[int])
app = celery.Celery("site", broker="redis://127.0.0.1:1/0")
app.set_default()
CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
settings.configure(
    SECRET_KEY="only for measurements",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "none.sqlite3"}},
    INSTALLED_APPS=[*(f"django.contrib.{name}" for name in CONTRIB), *sys.argv[1:]],
)
set_up_at = process_time()
django.setup()
ended_at = process_time()
is_alone = threading.active_count() == 1
told = {"whole": ended_at - begun_at, "setup": ended_at - set_up_at, "modules": len(sys.modules)}
json.dump({**told, **counts, "is_alone": is_alone}, sys.stdout)
