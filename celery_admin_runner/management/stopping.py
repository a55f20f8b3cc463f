"""Let a command that is asked to stop finish what it has in hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread

STOPPED_BY = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopped_by_signals(stop: Event) -> Iterator[None]:
    """Set ``stop`` when a signal asks the process to end, in place of ending it at once.

    Outside of the main thread, where a worker may run a command, nothing is changed.
    """

    def ask(*args: object) -> None:
        # In a thread: here we may have interrupted who holds the lock of the event.
        Thread(target=stop.set).start()

    numbers = STOPPED_BY if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
