"""The app of beats in the tests: the tests' own, with a schedule for those that have none."""

from __future__ import annotations

import os

from tests.celery_app import app as app

#: Where what beats send goes to; no worker takes it.
QUEUE = f"{os.environ['TEST_QUEUE']}-beat"
ENTRY = "often"
#: A task that no worker and no beat knows: it is sent by its name.
TASK = "tests.elsewhere.tidy"
#: How often beats send it, in seconds.
EVERY = 0.3
SCHEDULE = {ENTRY: {"task": TASK, "schedule": EVERY, "options": {"queue": QUEUE}}}

if "TEST_BEAT" in os.environ:
    app.conf.result_expires = None
    app.conf.beat_schedule = SCHEDULE if os.environ["TEST_BEAT"] == "persistent" else {}
