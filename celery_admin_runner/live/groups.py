"""The groups of a channel layer that one process is in: one channel hears what all are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from celery_admin_runner.attempts import Attempt

logger = logging.getLogger("celery_admin_runner")

#: The type of our messages, and the key under which they name runs.
MESSAGE_TYPE = "celery_admin_runner.runs"
RUNS_KEY = "runs"
#: Groups are joined again after so many seconds: a layer that was restarted has forgotten them,
#: and each forgets them after a day.
RENEW_AFTER = 30.0
#: A layer has so long for an answer, in seconds; then it is away.
PATIENCE = 5.0
#: So long a socket waits to be in its group before its snapshot is read.
JOIN_PATIENCE = 1.0
#: While the layer is away, it is asked again after so many seconds, and at most after so many.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
#: A layer that has waited for longer than this is quiet, whatever it raises then: with redis-py 8
#: each five seconds (channels_redis, issue 422). One that is away fails again at once.
QUIET_AFTER = 1.0
#: So many groups are joined at once.
AT_ONCE = 50


def group_of(user_pk: object) -> str:
    """Return the group of a user: a name that every layer takes, whatever the key is."""
    digest = blake2b(str(user_pk).encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"celery_admin_runner.{digest}"


class Groups:
    """Keeps one channel of this process in the groups that are wanted.

    ``tell`` hears of the runs that were told of; ``on_join`` that groups were joined: what was
    told before was missed. ``is_away``: nothing is heard now.
    """

    def __init__(
        self,
        layer: Any,
        tell: Callable[[Collection[int]], None],
        on_join: Callable[[Collection[str]], None],
    ) -> None:
        self._layer = layer
        self._tell = tell
        self._on_join = on_join
        self._channel = ""
        self._wanted: dict[str, asyncio.Event] = {}
        #: When each was joined last, on the loop's clock.
        self._joined: dict[str, float] = {}
        self._has_changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_away = False

    async def join(self, group: str) -> None:
        """Want to be in a group; returns when that is so, or the layer needs too long for it."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        event = self._wanted.setdefault(group, asyncio.Event())
        self._has_changed.set()
        if not self.is_away:
            with suppress(TimeoutError):
                async with asyncio.timeout(JOIN_PATIENCE):
                    await event.wait()

    def leave(self, group: str) -> None:
        """Want to be in a group no more."""
        self._wanted.pop(group, None)
        self._has_changed.set()

    async def close(self) -> None:
        """Leave all, as far as the layer answers."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        with Attempt():
            async with asyncio.timeout(JOIN_PATIENCE):
                await self._each(self._layer.group_discard, self._joined)

    async def _run(self) -> None:
        """Be in the groups and hear what is said there, whatever happens, until cancelled."""
        pause = FIRST_PAUSE
        while True:
            attempt = Attempt()
            with attempt:
                if not self._channel:
                    async with asyncio.timeout(PATIENCE):
                        self._channel = await self._layer.new_channel()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._keep())
                    tasks.create_task(self._listen())
            if not self.is_away:
                pause = FIRST_PAUSE
                error = attempt.error
                cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                logger.warning("The channel layer is away: %s: %s", type(cause).__name__, cause)
            self.is_away = True
            # Nobody waits for what will not come soon, and all look by themselves.
            for event in self._wanted.values():
                event.set()
            self._on_join([])
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _keep(self) -> None:
        """Join what is wanted, leave what is not, again and again."""
        self._joined.clear()
        loop = asyncio.get_running_loop()
        while True:
            self._has_changed.clear()
            stale = loop.time() - RENEW_AFTER
            joining = [group for group in self._wanted if self._joined.get(group, stale) <= stale]
            await self._each(self._layer.group_add, joining)
            new = [group for group in joining if group not in self._joined]
            self._joined |= dict.fromkeys(joining, loop.time())
            left = [group for group in self._joined if group not in self._wanted]
            for group in left:
                del self._joined[group]
            await self._each(self._layer.group_discard, left)
            if self.is_away:
                logger.warning("The channel layer is there again.")
                self.is_away = False
            # Who left and came back while it was busy has joined already.
            for group, event in self._wanted.items():
                if group in self._joined:
                    event.set()
            if new:
                self._on_join(new)
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_AFTER / 4):
                    await self._has_changed.wait()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            attempt, begun_at = Attempt(), loop.time()
            with attempt:
                message = await self._layer.receive(self._channel)
                if message.get("type") == MESSAGE_TYPE:
                    self._tell([pk for pk in message.get(RUNS_KEY, ()) if isinstance(pk, int)])
            if attempt.error is not None and loop.time() < begun_at + QUIET_AFTER:
                raise attempt.error

    async def _each(
        self, do: Callable[[str, str], Awaitable[None]], groups: Iterable[str]
    ) -> None:
        names = list(groups)
        for start in range(0, len(names), AT_ONCE):
            async with asyncio.timeout(PATIENCE):
                step = names[start : start + AT_ONCE]
                await asyncio.gather(*(do(group, self._channel) for group in step))
