"""All open websockets of an event loop: what they ask and are told is read together."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from math import inf
from threading import Lock
from typing import Any

from django.db import connections

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.live.groups import Groups, group_of
from celery_admin_runner.live.hearing import Hearing
from celery_admin_runner.live.payload import RUNS_MAX
from celery_admin_runner.live.reading import BROKEN, Answers, Work, answer
from celery_admin_runner.live.sockets import Socket

logger = logging.getLogger("celery_admin_runner")

#: So long changes and questions are gathered, in seconds, before they are read together.
GATHER = 0.05
#: All are looked at after so many seconds, for what nobody told of; and where nobody tells:
#: there is no channel layer that crosses processes, or it is away.
LOOK_EVERY = 10.0
LOOK_EVERY_ALONE = 1.0
#: A look is to take no more than one part in so many of a thread's time.
LOOK_SHARE = 10
#: So much is read in one go; the rest in the next.
CHANGED_MAX = 500
SOCKETS_MAX = 50
SOCKETS_OF_ONE_MAX = 10
#: Of more changes that wait nothing is remembered: all are looked at.
WAITING_MAX = 10_000
#: While the database is away, it is asked again after so many seconds, and at most after so many.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
THREAD_NAME = "celery-admin-runner-websockets"


class Watcher:
    """The open sockets of one event loop; ends with the last of them.

    ``layer``: a channel layer that crosses processes, or None.
    """

    def __init__(self, layer: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[Any, set[Socket]] = defaultdict(set)
        self._users: dict[str, Any] = {}
        self._changed: set[int] = set()
        self._wake = asyncio.Event()
        self._groups = Groups(layer, self.tell, self._on_join) if layer is not None else None
        self._thread = ThreadPoolExecutor(1, THREAD_NAME)
        self._sending: set[asyncio.Task[None]] = set()
        #: When all were looked at last, and how long that took, on the loop's clock.
        self._looked_at, self._look_took = -inf, 0.0
        self._task = asyncio.create_task(self._run())

    async def enter(self, socket: Socket) -> None:
        """Tell a socket of its user's runs from now on: as they are, then what changes.

        The group is joined before the snapshot is read.
        """
        user = socket.user_pk
        self._sockets[user].add(socket)
        if self._groups is not None:
            group = group_of(user)
            self._users[group] = user
            await self._groups.join(group)
        socket.wants_snapshot = True
        self._wake.set()

    async def leave(self, socket: Socket) -> None:
        """Forget a socket; with the last one all ends, and returns when it has."""
        socket.is_open = False
        user = socket.user_pk
        sockets = self._sockets.get(user, set())
        sockets.discard(socket)
        if not sockets and self._sockets.pop(user, None) is not None and self._groups is not None:
            self._users.pop(group_of(user), None)
            self._groups.leave(group_of(user))
        if not self._sockets:
            _forget(self)
            self._wake.set()
            await asyncio.wait([self._task])

    def ask(self) -> None:
        """Answer soon what a socket was asked for."""
        self._wake.set()

    def tell(self, pks: Collection[int]) -> None:
        """Look soon at these runs; in this event loop."""
        self._changed.update(pks)
        self._wake.set()

    def tell_from_thread(self, pk: int) -> None:
        """Look soon at a run; from any thread."""
        # A loop that is closed has no sockets.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.tell, (pk,))

    def _on_join(self, groups: Collection[str]) -> None:
        """Look at those who may have missed something before they were in their group."""
        for group in groups:
            for socket in self._sockets.get(self._users.get(group), ()):
                socket.needs_look = True
        self._wake.set()

    async def _run(self) -> None:
        """Gather, read, send, until no socket is left; whatever happens."""
        pause = 0.0
        while self._sockets:
            await self._wait(pause)
            work = self._take()
            if work is None:
                pause = 0.0
                continue
            attempt, begun_at = Attempt(), self._loop.time()
            with attempt:
                answers = await self._loop.run_in_executor(self._thread, answer, work)
            if attempt.error is not None:
                if not pause:
                    logger.error("Websockets could not be told of runs.", exc_info=attempt.error)
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
                self._put_back(work)
                continue
            if pause:
                logger.warning("Websockets are told of runs again.")
            pause = 0.0
            now = self._loop.time()
            if work.checks:
                self._looked_at, self._look_took = now, now - begun_at
            self._hand_out(answers)
        await self._end()

    async def _wait(self, pause: float) -> None:
        """Return when there is something to read, a little after it came; or ``pause`` is over."""
        if pause:
            await asyncio.sleep(pause)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(self._look_in(), LOOK_EVERY_ALONE))):
                await self._wake.wait()
        self._wake.clear()
        if self._sockets:
            await asyncio.sleep(GATHER)

    def _look_in(self) -> float:
        """Return in how many seconds all are to be looked at."""
        is_alone = self._groups is None or self._groups.is_away
        every = LOOK_EVERY_ALONE if is_alone else LOOK_EVERY
        return self._looked_at + max(every, LOOK_SHARE * self._look_took) - self._loop.time()

    def _take(self) -> Work | None:
        """Take what is to be read next; None: nothing."""
        sockets = [socket for sockets in self._sockets.values() for socket in sockets]
        work = Work()
        is_late = self._look_in() <= 0
        if len(self._changed) > WAITING_MAX:
            self._changed.clear()
            is_late = True
        if is_late:
            work.checks = sockets
            for socket in sockets:
                socket.needs_look = True
        self._take_changed(work)
        self._take_asked(work, [socket for socket in sockets if socket.is_waiting()])
        has_work = work.changed or work.checks or work.looks
        return work if has_work or work.snapshots or work.follows or work.marks else None

    def _take_changed(self, work: Work) -> None:
        """Take changes, and who can be told of them now; who can't is looked at later."""
        work.changed = set(sorted(self._changed)[:CHANGED_MAX])
        self._changed -= work.changed
        if self._changed:
            self._wake.set()
        for user, sockets in self._sockets.items():
            free = [socket for socket in sockets if socket.has_snapshot and not socket.is_busy]
            work.told[user] = tuple(free)
            if work.changed:
                for socket in sockets.difference(free):
                    socket.needs_look = True

    def _take_asked(self, work: Work, sockets: list[Socket]) -> None:
        ready = [socket for socket in sockets if socket.wants_snapshot or socket.has_snapshot]
        asking = [socket for socket in ready if socket.asks()]
        served = _in_turns(asking)
        for socket in served:
            # Who was served comes last the next time.
            self._sockets[socket.user_pk] = self._sockets.pop(socket.user_pk)
            if socket.wants_snapshot:
                socket.wants_snapshot = socket.needs_look = False
                # From now on what has changed is told after it, and in the same round.
                socket.has_snapshot = True
                work.snapshots.append(socket)
            if socket.to_follow:
                work.follows += [(socket, ids) for ids in socket.to_follow]
                socket.to_follow = []
            if socket.to_mark:
                work.marks += [(socket, ids) for ids in socket.to_mark]
                socket.to_mark = []
        if len(asking) > len(served):
            self._wake.set()
        for socket in ready:
            if socket.needs_look and socket.has_snapshot:
                socket.needs_look = False
                work.looks.append(socket)

    def _put_back(self, work: Work) -> None:
        """Let what could not be read be read again."""
        self._changed |= work.changed
        for socket in work.looks:
            socket.needs_look = True
        for socket in work.snapshots:
            socket.wants_snapshot = True
        for socket, ids in work.follows:
            socket.to_follow.append(ids)
        for socket, ids in work.marks:
            socket.to_mark.append(ids)

    def _hand_out(self, answers: Answers) -> None:
        for socket, texts in answers.texts.items():
            if len(socket.known) > 2 * RUNS_MAX:
                socket.needs_look = True
            if texts and socket.is_open and socket not in answers.closing:
                socket.is_busy = True
                self._start(self._send(socket, texts))
        for socket, code in answers.closing.items():
            if socket.is_open:
                socket.is_open = False
                self._start(self._close(socket, code))

    def _start(self, sending: Any) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, socket: Socket, texts: list[str]) -> None:
        """Send, while nothing more is read for this socket: a slow client gets less, later."""
        attempt = Attempt()
        with attempt:
            await socket.send(texts)
        socket.is_busy = False
        if attempt.error is not None and socket.is_open:
            # It counts as told what it may not have got.
            socket.is_open = False
            await self._close(socket, BROKEN)
        if socket.is_waiting():
            self._wake.set()

    async def _close(self, socket: Socket, code: int) -> None:
        with Attempt():
            await socket.close(code)

    async def _end(self) -> None:
        if self._groups is not None:
            await self._groups.close()
        for task in list(self._sending):
            task.cancel()
        with Attempt():
            await self._loop.run_in_executor(self._thread, connections.close_all)
        self._thread.shutdown(wait=False)


def _in_turns(asking: Collection[Socket]) -> list[Socket]:
    """Return those that are answered in one go: of each user one, then of each a second one.

    However many sockets one user opens, and however often these ask, nobody else waits for all.
    """
    turns: dict[Any, count[int]] = defaultdict(count)
    turn_of = {socket: next(turns[socket.user_pk]) for socket in asking}
    first = [socket for socket in asking if turn_of[socket] < SOCKETS_OF_ONE_MAX]
    return sorted(first, key=turn_of.__getitem__)[:SOCKETS_MAX]


class _Process:
    """The watchers of this process, one for each event loop that has sockets."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.watchers: dict[asyncio.AbstractEventLoop, Watcher] = {}
        self.is_hearing = False


_process = _Process()


def watcher(layer: Any) -> Watcher:
    """Return the watcher of the running event loop."""
    loop = asyncio.get_running_loop()
    with _process.lock:
        if loop not in _process.watchers:
            _process.watchers[loop] = Watcher(layer)
            if layer is None and not _process.is_hearing:
                _process.is_hearing = True
                _hearing.connect()
        return _process.watchers[loop]


def _forget(ended: Watcher) -> None:
    with _process.lock:
        for loop, each in list(_process.watchers.items()):
            if each is ended:
                del _process.watchers[loop]
        if _process.is_hearing and not _process.watchers:
            _process.is_hearing = False
            _hearing.disconnect()


def _tell_here(user_pk: str, run_pk: int) -> None:
    for each in list(_process.watchers.values()):
        each.tell_from_thread(run_pk)


#: Where no channel layer crosses processes: what is changed in this one is heard at once.
_hearing = Hearing(_tell_here)
