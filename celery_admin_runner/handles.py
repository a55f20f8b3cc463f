"""What a caller has of a call that is sent when a transaction is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn
from weakref import ref

from celery.result import AsyncResult

from celery_admin_runner.exceptions import NotSent

#: The state of a call whose transaction is not committed yet, or that could not be sent then.
UNSENT = "UNSENT"
#: The state of a call whose transaction, or savepoint, was rolled back: it is never sent. So it
#: is too where it was committed, and another hook of the commit failed first: Django 5.2 then
#: calls none of the later ones. A row is left then, UNSENT.
ROLLED_BACK = "ROLLED_BACK"


class OnCommitResult(AsyncResult):  # type: ignore[misc]
    """The result of a call that waits for a commit, and then that of its run.

    Its id is that of the run to be. If the call joins another run then, it is that one's from
    the commit on.
    """

    #: None for a copy: it knows the id only.
    _sending: ref[Sending] | None = None
    _is_committed = False
    _answer: AsyncResult | None = None

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the result, as Celery's; raises NotSent before the call is sent."""
        if self._answer is not None:
            return self._answer.get(*args, **kwargs)
        if self._sending is not None:
            self._refuse()
        return super().get(*args, **kwargs)

    wait = get

    def ready(self) -> bool:
        """Tell whether the run has ended, or will never begin: what is rolled back is over."""
        if self._answer is not None:
            # Celery 5.7 takes a call that was ignored for ended in a result of its own only.
            return bool(self._answer.ready())
        return self.state == ROLLED_BACK or bool(super().ready())

    def forget(self) -> None:
        """Forget the result, as Celery's."""
        if self._answer is None:
            super().forget()
        else:
            self._answer.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return AsyncResult, self.__reduce_args__()

    def _get_task_meta(self) -> Any:
        if self._answer is not None:
            return self._answer._get_task_meta()
        if self._sending is None:
            return super()._get_task_meta()
        status = ROLLED_BACK if self._is_rolled_back() else UNSENT
        return {"status": status, "result": None, "traceback": None, "children": []}

    def _is_rolled_back(self) -> bool:
        """Tell whether Django has thrown away what would have sent the call, uncalled."""
        return not self._is_committed and self._sending is not None and self._sending() is None

    def _refuse(self) -> NoReturn:
        if self._is_rolled_back():
            raise NotSent(
                "The call is never sent: its transaction was rolled back, or another hook of the "
                "commit failed before."
            )
        if self._is_committed:
            raise NotSent("The call could not be sent when the transaction was committed.")
        raise NotSent("The call is sent when the transaction is committed: ask for it then.")

    def _follow(self, answer: AsyncResult) -> None:
        self._answer, self.id, self.ignored = answer, answer.id, answer.ignored


class Sending:
    """Sends a call when its transaction is committed.

    Nobody but Django's list of what is to be done then may keep it: Django 5.2 tells nobody of
    a rollback, but drops what it keeps; so the handle learns of it.
    """

    def __init__(self, handle: OnCommitResult, send: Callable[[], AsyncResult]) -> None:
        """``send`` sends the call, and returns the result of whatever run answers for it."""
        self._handle, self._send = handle, send
        handle._sending = ref(self)

    def __call__(self) -> None:
        """Send it; raises what Celery raises."""
        self._handle._is_committed = True
        self._handle._follow(self._send())
