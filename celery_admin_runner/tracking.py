"""Record what a worker reports of a run: each report is one guarded UPDATE.

Reports can cross: Celery 5.7 starts attempt n + 1 before it reports the retry of
attempt n. So a report also names its attempt, and an older one changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from kombu.utils.encoding import safe_repr

from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import storable_text, to_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import masked, scrubbed
from celery_admin_runner.states import REPORTABLE, State

#: Longest exception text and traceback that is kept, in characters; of a
#: traceback its end, where the error stands.
EXCEPTION_MAX_LENGTH = 16 * 1024
TRACEBACK_MAX_LENGTH = 256 * 1024


class _AsText:
    """Lets kombu's ``safe_repr`` survive a ``__str__`` that raises."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value)


def record_start(task_id: str, *, attempt: int, worker: str, now: datetime) -> int:
    """Move a run to STARTED; a message that is delivered again starts it again."""
    return _report(
        task_id,
        attempt,
        State.STARTED,
        retries=attempt,
        started_at=now,
        heartbeat_at=now,
        finished_at=None,
        worker=worker,
    )


def record_retry(
    task_id: str, *, attempt: int, exception: str, traceback: str, now: datetime
) -> int:
    """Move a run to RETRY, unless its next attempt has begun already."""
    return (
        TaskRunRecord.objects.filter(task_id=task_id, retries=attempt)
        .exclude(state=State.RETRY)
        .transition(
            sources=REPORTABLE,
            target=State.RETRY,
            exception=_shortened(exception, EXCEPTION_MAX_LENGTH),
            traceback=traceback[-TRACEBACK_MAX_LENGTH:],
            heartbeat_at=now,
            finished_at=None,
        )
    )


def record_success(task_id: str, *, attempt: int, result: Any, now: datetime) -> int:
    """Move a run to SUCCESS; ``result`` is plain JSON data."""
    return _report(
        task_id,
        attempt,
        State.SUCCESS,
        retries=attempt,
        finished_at=now,
        result=result,
        exception="",
        traceback="",
    )


def record_failure(
    task_id: str, *, attempt: int, exception: str, traceback: str, now: datetime
) -> int:
    """Move a run to FAILURE."""
    return _report(
        task_id,
        attempt,
        State.FAILURE,
        retries=attempt,
        finished_at=now,
        exception=_shortened(exception, EXCEPTION_MAX_LENGTH),
        traceback=traceback[-TRACEBACK_MAX_LENGTH:],
    )


def record_end(task_id: str, *, attempt: int, state: State, why: str, now: datetime) -> int:
    """Move a run to REVOKED, EXPIRED or IGNORED; ``why`` is kept as its exception."""
    return _report(
        task_id,
        attempt,
        state,
        finished_at=now,
        exception=_shortened(why, EXCEPTION_MAX_LENGTH),
    )


def storable_result(result: Any, secrets: Iterable[str] = ()) -> Any:
    """Return a task's result as plain JSON data that fits a row.

    What JSON can't hold becomes ``{"value": str(result), "forced_json": true}``;
    what is larger than RESULT_MAX_BYTES is cut, and says so:
    ``{"value": ..., "shortened": true, "bytes": n}``. Keys that REDACT names, and
    the call's own secrets, are masked.
    """
    try:
        plain = masked(to_plain(result))
    except NotEncodable:
        plain = {"value": _text_of(result), "forced_json": True}
    plain = scrubbed(plain, frozenset(secrets))
    text = json.dumps(plain, ensure_ascii=False).encode(errors="replace")
    if len(text) > settings.RESULT_MAX_BYTES:
        kept = text[: settings.RESULT_MAX_BYTES].decode(errors="ignore")
        return {"value": kept, "shortened": True, "bytes": len(text)}
    return plain


def _text_of(result: Any) -> str:
    """Return the text of a result that is no JSON, its secret keys masked; never raises."""
    try:
        shown = masked(result)
    except RecursionError:
        # It holds itself: what may be in it is not shown.
        shown = f"<{type(result).__name__}>"
    return storable_text(safe_repr(_AsText(shown)))


def _report(task_id: str, attempt: int, target: State, **fields: Any) -> int:
    """Move a run that has not ended, and is in no later attempt than ``attempt``."""
    runs = TaskRunRecord.objects.filter(task_id=task_id, retries__lte=attempt)
    return runs.transition(sources=REPORTABLE, target=target, **fields)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
