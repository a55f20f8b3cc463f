"""The file system transport, but nobody sees half a message or half a table of queues.

kombu 5.7 writes a message into the file that a reader may open at the same time. And of two
processes that make the table of an exchange at once one loses its queue: a worker whose queue
of commands is lost answers nobody.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

#: So long the loop of a worker waits for a message, in seconds (Celery 5.5 to 5.7).
LOOP_TIMEOUT = 2.0


class Channel(filesystem.Channel):
    """Puts whole messages."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        path = os.path.join(self.data_folder_out, name)
        # kombu 5.5 takes every file in whose name it finds the queue's.
        part = os.path.join(self.data_folder_out, f"{uuid4()}.part")
        try:
            with open(part, "wb") as file:
                file.write(str_to_bytes(dumps(payload)))
            os.rename(part, path)
        except OSError as error:
            raise filesystem.ChannelError(f"Cannot add file {path!r}.") from error

    def _queue_bind(self, exchange: str, *arguments: Any) -> None:
        """Bind to a table that is there, so that kombu only has to change it, under its lock."""
        folder = Path(self.control_folder)
        table = folder / f"{exchange}.exchange"
        if table.parent == folder and "\x00" not in exchange and not table.exists():
            folder.mkdir(parents=True, exist_ok=True)
            empty = folder / f"{uuid4()}.part"
            empty.write_text("[]")
            try:
                # Unlike a rename this never takes the place of a table that is there.
                os.link(empty, table)
            except FileExistsError:
                pass
            finally:
                empty.unlink()
        super()._queue_bind(exchange, *arguments)


class Transport(filesystem.Transport):
    """The transport of the tests' broker."""

    Channel = Channel
    #: How often a reader looks for messages, in seconds. kombu looks once in a second.
    polling_interval = 0.1

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Wait for a message; a worker that is to end is not kept waiting for long.

        Its loop waits for messages twice before it sees that it is to end.
        """
        super().drain_events(connection, 0.2 if timeout == LOOP_TIMEOUT else timeout)
