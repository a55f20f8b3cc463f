"""The Celery app of the tests."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
#: Imported for the folder and the queue that it chooses.
import_module(os.environ["DJANGO_SETTINGS_MODULE"])


def filesystem_options(folder: Path) -> dict[str, str]:
    """Return the transport options of a broker that lives in ``folder``."""
    for name in ("messages", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    messages = str(folder / "messages")
    return {
        "data_folder_in": messages,
        "data_folder_out": messages,
        "control_folder": str(folder / "control"),
    }


TRANSPORT_ALIASES["filesystem"] = "tests.whole_messages:Transport"
app = Celery(
    "tests",
    include=[
        "tests.tasks",
        "tests.stoppable_tasks",
        "tests.talking_tasks",
        "tests.held_tasks",
        "tests.hook_tasks",
        "tests.unique_tasks",
    ],
)
app.conf.broker_url = os.environ.get("CELERY_BROKER_URL") or "filesystem://"
if app.conf.broker_url == "filesystem://":
    app.conf.broker_transport_options = filesystem_options(Path(os.environ["TEST_FOLDER"]))
app.conf.result_backend = os.environ.get("CELERY_RESULT_BACKEND", "disabled://")
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
app.conf.worker_prefetch_multiplier = 1
#: Tests that kill a process of the pool do not wait long for its last words.
app.conf.worker_lost_wait = 1
app.conf.task_default_queue = os.environ["TEST_QUEUE"]
#: Workers of two runs of the tests have the same names: each run commands only its own.
app.conf.control_exchange = Path(os.environ["TEST_FOLDER"]).name
