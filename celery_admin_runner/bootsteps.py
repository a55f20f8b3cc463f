"""What Celery's worker starts and stops with itself: the dispatcher (DISPATCH="worker")."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

from celery import bootsteps
from celery.signals import worker_init

from celery_admin_runner.conf import settings
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.pulse import signals_blocked

THREAD_NAME = "celery-admin-runner-dispatch"
#: How long a worker that shuts down waits for the batch in hand, in seconds.
ENDS_WITHIN = 10.0
#: By its name: only a worker imports it, and with it Celery's own worker.
KILL_STEP = "celery_admin_runner.killing:KillStep"


class DispatchStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """A thread in the worker's parent process that sends the runs that are due."""

    #: The pool's processes are forked before the thread begins.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Bind it to a worker; no thread yet."""
        super().__init__(parent, **kwargs)
        self.stopping = Event()
        self.thread: Thread | None = None

    def include_if(self, parent: Any) -> bool:
        """Tell whether the workers are to send what is due."""
        return bool(settings.DISPATCH == "worker")

    def start(self, parent: Any) -> None:
        """Start the thread."""
        # Not the same as before: a thread that did not end in time must not go on.
        self.stopping = Event()
        self.thread = Thread(
            target=Dispatcher().run, args=[self.stopping], name=THREAD_NAME, daemon=True
        )
        with signals_blocked():
            self.thread.start()

    def stop(self, parent: Any) -> None:
        """Let the thread end when it has marked what it sent."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join(ENDS_WITHIN)

    def terminate(self, parent: Any) -> None:
        """Do the same in a cold shutdown: a batch in hand takes less than a second."""
        self.stop(parent)


def connect() -> None:
    """Give our steps to each worker that begins in this process."""
    worker_init.connect(add_steps, dispatch_uid="celery_admin_runner.add_steps")


def add_steps(sender: Any, **kwargs: Any) -> None:
    """Add our steps to a worker: Celery 5.5 to 5.7 sends it before it makes them."""
    sender.app.steps["worker"].update({DispatchStep, KILL_STEP})
