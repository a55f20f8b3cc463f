"""One open websocket: whose it is, what its client knows, and what was asked for by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, kw_only=True)
class Socket:
    """The first block never changes, the second is the reader's, the third the event loop's."""

    #: As the handshake gave them; the session None where the user is known by other means.
    user: Any
    session: Any
    language: str
    #: Send texts one after the other; close with a code.
    send: Callable[[list[str]], Awaitable[None]]
    close: Callable[[int], Awaitable[None]]
    #: Kept here, for a user that is deleted has none.
    user_pk: Any = field(init=False)

    #: The versions of the runs that the client was told of, by id.
    known: dict[int, str] = field(default_factory=dict)
    #: Runs that the client follows, whether or not they are displayed.
    followed: set[int] = field(default_factory=set)
    #: Whether the session is what tells that the user is signed in; None: not looked at yet.
    has_session: bool | None = None

    #: Asked for by the client, and not answered yet.
    wants_snapshot: bool = False
    to_follow: list[frozenset[int]] = field(default_factory=list)
    to_mark: list[frozenset[int]] = field(default_factory=list)
    #: Something may have changed that it was not told of.
    needs_look: bool = False
    #: Until its snapshot is out it is told of nothing; while it is told, of nothing more.
    has_snapshot: bool = False
    is_busy: bool = False
    is_open: bool = True

    def __post_init__(self) -> None:
        """Keep the key of the user."""
        self.user_pk = self.user.pk

    def asks(self) -> bool:
        """Tell whether its client waits for an answer."""
        return bool(self.wants_snapshot or self.to_follow or self.to_mark)

    def is_waiting(self) -> bool:
        """Tell whether something is to be read for it that can be sent now."""
        return (self.asks() or self.needs_look) and not self.is_busy and self.is_open
