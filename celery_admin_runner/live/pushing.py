"""Push to the websockets of a user, in whichever process they are, that a run has changed.

A push says only which: who gets it looks at the run. So pushes may come late, twice, in any order,
or be lost: what is lost is found at the next look (``watching.LOOK_EVERY``).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Collection
from threading import Condition, Thread
from typing import Any

from celery.signals import worker_process_shutdown, worker_shutdown
from channels.layers import InMemoryChannelLayer, get_channel_layer
from kombu.utils.compat import detect_environment

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.live.groups import MESSAGE_TYPE, PATIENCE, RUNS_KEY, group_of
from celery_admin_runner.live.hearing import Hearing

logger = logging.getLogger("celery_admin_runner")

THREAD_NAME = "celery-admin-runner-pushes"
#: So many runs at most wait to be told of; of more nobody is told, and they are found by a look.
WAITING_MAX = 10_000
#: So many groups are sent to at once.
AT_ONCE = 32
#: While the layer is away, it is asked again after so many seconds, and at most after so many.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
#: A process that ends waits so long for what is left, in seconds.
LAST_PATIENCE = 1.0

Waiting = dict[str, set[int]]


class Pusher:
    """Tells groups of runs, in a thread of its own, so that who moves a run never waits.

    The thread starts with the first push, and keeps one event loop: its layer's connections.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        #: The runs to tell of by group, and how many these are.
        self._waiting: Waiting = {}
        self._number = 0
        self._is_sending = False
        self._is_given_up = False
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    def push(self, user_pk: str, run_pk: int) -> None:
        """Tell the user's group of a run, soon; one that waits already is told of once."""
        with self._changed:
            group = group_of(user_pk)
            if run_pk in self._waiting.get(group, ()) or self._number >= WAITING_MAX:
                return
            self._waiting.setdefault(group, set()).add(run_pk)
            self._number += 1
            # It dies where no event loop can be had, as without a free file.
            if self._thread is None or not self._thread.is_alive():
                self._start()
            elif self._loop is not None and self._wake is not None:
                self._loop.call_soon_threadsafe(self._wake.set)

    def flush(self, seconds: float = LAST_PATIENCE) -> bool:
        """Wait until all has been told, but no longer; tell whether it has.

        Who ends asks more than once: after one wait in vain there is no other.
        """
        with self._changed:
            is_told = self._changed.wait_for(
                lambda: self._thread is None or not (self._number or self._is_sending),
                0 if self._is_given_up else seconds,
            )
            self._is_given_up = not is_told
        return is_told

    def _start(self) -> None:
        self._loop = None
        thread = Thread(target=self._run, name=THREAD_NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The interpreter ends.
            logger.warning("No thread can push changes of runs: %s", error)
        else:
            self._thread = thread

    def _run(self) -> None:
        asyncio.run(self._push_all())

    async def _push_all(self) -> None:
        """Tell what there is to tell, whatever happens, as long as the process lives."""
        self._wake = asyncio.Event()
        with self._changed:
            self._loop = asyncio.get_running_loop()
        pause, was_away = FIRST_PAUSE, False
        while True:
            waiting = self._take()
            if not waiting:
                await self._wake.wait()
                self._wake.clear()
                continue
            left, error = await self._send(waiting)
            self._put_back(left)
            if error is None:
                if was_away:
                    logger.warning("Changes of runs are pushed again.")
                pause, was_away = FIRST_PAUSE, False
                self._is_given_up = False
                continue
            if not was_away:
                logger.warning(
                    "Changes of runs can't be pushed: %s: %s", type(error).__name__, error
                )
            was_away = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _take(self) -> Waiting:
        with self._changed:
            waiting, self._waiting, self._number = self._waiting, {}, 0
            self._is_sending = bool(waiting)
            self._changed.notify_all()
        return waiting

    def _put_back(self, left: Waiting) -> None:
        """Let what could not be told wait with what came since."""
        with self._changed:
            for group, runs in left.items():
                self._waiting.setdefault(group, set()).update(runs)
            self._number = sum(map(len, self._waiting.values()))
            self._is_sending = False
            self._changed.notify_all()

    async def _send(self, waiting: Waiting) -> tuple[Waiting, Exception | None]:
        """Tell the groups; return what could not be told, and why."""
        layer, groups = get_channel_layer(), list(waiting)
        for start in range(0, len(groups), AT_ONCE):
            step = groups[start : start + AT_ONCE]
            attempt = Attempt()
            with attempt:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(
                        *(layer.group_send(group, message(waiting[group])) for group in step)
                    )
            if attempt.error is not None:
                return {group: waiting[group] for group in groups[start:]}, attempt.error
        return {}, None


def crossing_layer() -> Any:
    """Return the channel layer, if there is one by which other processes are told."""
    layer = get_channel_layer()
    return None if isinstance(layer, InMemoryChannelLayer) else layer


def message(pks: Collection[int]) -> dict[str, Any]:
    """Return the message about these runs."""
    return {"type": MESSAGE_TYPE, RUNS_KEY: sorted(pks)}


class _Process:
    """The pusher of this process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, as a forked child: the thread stayed with the parent."""
        self.pusher = Pusher()


_process = _Process()


def _push(user_pk: str, run_pk: int) -> None:
    _process.pusher.push(user_pk, run_pk)


hearing = Hearing(_push)


def connect() -> None:
    """Push from now on, if the channel layer crosses processes.

    Not where greenlets take the place of threads: an event loop in one of them would make all
    of them look like its own. There changes are found by the looks.
    """
    if crossing_layer() is None or detect_environment() != "default":
        return
    hearing.connect()
    worker_process_shutdown.connect(_on_end)
    worker_shutdown.connect(_on_end)
    atexit.register(_on_end)
    # Windows has no forks.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_process.begin)


def _on_end(**kwargs: object) -> None:
    """Tell what is left to tell."""
    _process.pusher.flush()
