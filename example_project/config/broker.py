"""The broker of the demo: kombu's folder of files, but nobody reads half a message.

kombu 5.7 writes a message into a file that a worker may open at the same time, and a worker
that reads half a message ends. A real broker needs nothing of this.
"""

import os
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """Writes a message beside the queue, and gives it the queue's name when it is whole."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        path = os.path.join(self.data_folder_out, name)
        part = f"{path}.part"
        try:
            with open(part, "wb") as file:
                file.write(str_to_bytes(dumps(payload)))
            os.rename(part, path)
        except OSError as error:
            raise filesystem.ChannelError(f"Cannot add file {path!r}.") from error


class Transport(filesystem.Transport):
    """What ``filesystem://`` means in the demo."""

    Channel = Channel
