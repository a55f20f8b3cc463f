"""What the user of a run is told of it; the same by polling and by websocket.

Never its arguments, its exception or its output: these are for staff.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal, TypedDict

from django.template.loader import render_to_string

from celery_admin_runner.live.links import load_for_links, result_url
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import State

#: So many runs at most are asked for, shown or marked at once.
RUNS_MAX = 200
#: The template of one run in a list, and of its progress.
RUN_TEMPLATE = "celery_admin_runner/live/task_run.html"
PROGRESS_TEMPLATE = "celery_admin_runner/live/progress.html"
#: What nobody is told of a run, and may be long.
_LEFT_OUT = (
    *("args", "kwargs", "options", "canvas", "result", "whole_result", "children"),
    *("exception", "traceback", "publish_error", "reason"),
)
#: The columns that ``version_of`` looks at.
VERSION_FIELDS = (
    *("state", "retries", "label", "task_name", "content_type", "object_id"),
    *("started_at", "finished_at", "seen_at"),
    *("progress_current", "progress_total", "progress_message"),
)


class ProgressPayload(TypedDict):
    """How far a run is; ``total`` and ``percent`` (0 to 100) None: unknown."""

    current: int
    total: int | None
    percent: int | None
    message: str


class RunPayload(TypedDict):
    """A run as its user sees it."""

    id: int
    task_id: str
    label: str
    state: str
    #: The state in the language of who asks.
    state_label: str
    finished: bool
    seen: bool
    #: None where the task told nothing of it.
    progress: ProgressPayload | None
    #: Where the result is to be found; "" where there is none, or not yet.
    url: str
    #: In ISO 8601; None for what has not happened.
    created_at: str
    started_at: str | None
    finished_at: str | None
    #: Another text after each change; opaque.
    version: str
    #: The run as the page's own template shows it.
    html: str


class SnapshotMessage(TypedDict):
    """The runs as they are: all that are shown, the newest first."""

    type: Literal["snapshot"]
    runs: list[RunPayload]
    #: There are more runs than RUNS_MAX; these are the newest.
    more: bool


class StateMessage(TypedDict):
    """A run that is new, or whose state (or anything else but its progress) has changed."""

    type: Literal["state"]
    run: RunPayload


class ProgressMessage(TypedDict):
    """A run that has come further, and has changed in nothing else."""

    type: Literal["progress"]
    id: int
    progress: ProgressPayload | None
    version: str
    #: The progress as the page's own template shows it.
    html: str


class GoneMessage(TypedDict):
    """Runs that are shown no more: seen for long enough, or deleted."""

    type: Literal["gone"]
    ids: list[int]


class SeenMessage(TypedDict):
    """The answer to marking runs as seen: those of them that are finished, and so are seen."""

    type: Literal["seen"]
    ids: list[int]


class ErrorMessage(TypedDict):
    """What was asked for can't be done; ``errors`` as everywhere in the JSON of this package."""

    type: Literal["error"]
    errors: dict[str, list[str]]


Change = StateMessage | ProgressMessage | GoneMessage
Message = SnapshotMessage | Change | SeenMessage | ErrorMessage


def with_shown_columns(runs: TaskRunRecordQuerySet) -> TaskRunRecordQuerySet:
    """Return these runs, read without the columns that their payload does not need.

    ``snapshot`` and ``changes`` read the objects that they are about: those of the runs that
    they tell of, by one query for each model.
    """
    return runs.defer(*_LEFT_OUT)


def snapshot(runs: Iterable[TaskRunRecord], *, more: bool = False) -> SnapshotMessage:
    """Return the message of these runs; ``more``: there are others that were not even read."""
    shown = list(runs)
    load_for_links(shown[:RUNS_MAX])
    return SnapshotMessage(
        type="snapshot",
        runs=[run_payload(run) for run in shown[:RUNS_MAX]],
        more=more or len(shown) > RUNS_MAX,
    )


def changes(runs: Collection[TaskRunRecord], known: Mapping[int, str]) -> Iterator[Change]:
    """Yield what has changed for who knows these versions of runs by id, and is shown ``runs``."""
    versions = {run.pk: version_of(run) for run in runs}
    changed = [run for run in runs if known.get(run.pk) != versions[run.pk]]
    load_for_links(changed)
    for run in changed:
        if _state_part(known.get(run.pk, "")) == _state_part(versions[run.pk]):
            yield progress_message(run)
        else:
            yield StateMessage(type="state", run=run_payload(run))
    gone = known.keys() - versions.keys()
    if gone:
        yield GoneMessage(type="gone", ids=sorted(gone))


def run_payload(run: TaskRunRecord) -> RunPayload:
    """Return a run as its user sees it, in the current language."""
    payload = RunPayload(
        id=run.pk,
        task_id=run.task_id,
        label=label_of(run),
        state=str(run.state),
        state_label=str(State(run.state).label),
        finished=run.is_finished,
        seen=run.seen_at is not None,
        progress=progress_of(run),
        url=result_url(run),
        created_at=str(_iso(run.created_at)),
        started_at=_iso(run.started_at),
        finished_at=_iso(run.finished_at),
        version=version_of(run),
        html="",
    )
    payload["html"] = render_to_string(RUN_TEMPLATE, {"run": payload})
    return payload


def progress_message(run: TaskRunRecord) -> ProgressMessage:
    """Return the message of a run that has come further."""
    progress = progress_of(run)
    return ProgressMessage(
        type="progress",
        id=run.pk,
        progress=progress,
        version=version_of(run),
        html=render_to_string(
            PROGRESS_TEMPLATE, {"run": {"label": label_of(run), "progress": progress}}
        ),
    )


def label_of(run: TaskRunRecord) -> str:
    """Return what a run is called: its label, else the task's own name in words."""
    if run.label:
        return run.label
    return run.task_name.rpartition(".")[2].replace("_", " ").strip().capitalize()


def progress_of(run: TaskRunRecord) -> ProgressPayload | None:
    """Return how far a run is; None where its task told nothing of it."""
    current, total = run.progress_current, run.progress_total
    if total is None and not current and not run.progress_message:
        return None
    return ProgressPayload(
        current=current,
        total=total,
        percent=min(100, current * 100 // total) if total else None,
        message=run.progress_message,
    )


def version_of(run: TaskRunRecord) -> str:
    """Return a text that is another one whenever the payload is: the state's part, "-", the rest.

    Without the link: that follows from what the run is about and how it ended, and to ask the
    project's code for it at each look would cost more than the look.
    """
    state = _digest(
        str(run.state),
        run.retries,
        str(run.label),
        run.task_name,
        run.content_type_id,
        run.object_id,
        _iso(run.started_at),
        _iso(run.finished_at),
        run.seen_at is None,
    )
    progress = _digest(run.progress_current, run.progress_total, str(run.progress_message))
    return f"{state}-{progress}"


def _state_part(version: str) -> str:
    return version.partition("-")[0]


def _digest(*values: object) -> str:
    return blake2b(repr(values).encode(), digest_size=6).hexdigest()


def _iso(moment: datetime | None) -> str | None:
    """Return a moment in UTC, however its database or its maker wrote the timezone."""
    return None if moment is None else moment.astimezone(UTC).isoformat()
