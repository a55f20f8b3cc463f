"""Who may do what: every kind of user, every URL and every action, GET and POST."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.test import Client
from django.urls import get_resolver

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_superuser, make_user

ADMIN = "/admin/celery_admin_runner"
TASK = "tests.tasks.add"

#: How to make each kind of user.
USERS: dict[str, Callable[[], User | None]] = {
    "anonymous": lambda: None,
    "no staff": lambda: make_user("run_celerytask", "view_taskrunrecord", is_staff=False),
    "inactive": lambda: make_user("run_celerytask", "view_taskrunrecord", is_active=False),
    "staff with nothing": make_user,
    "view tasks": lambda: make_user("view_celerytask"),
    "run": lambda: make_user("run_celerytask"),
    "view runs": lambda: make_user("view_taskrunrecord"),
    "cancel runs": lambda: make_user("cancel_taskrunrecord"),
    "retry runs": lambda: make_user("retry_taskrunrecord"),
    "export runs": lambda: make_user("export_taskrunrecord"),
    "view and export runs": lambda: make_user("view_taskrunrecord", "export_taskrunrecord"),
    "run and export": lambda: make_user("run_celerytask", "export_taskrunrecord"),
    "run and cancel": lambda: make_user("run_celerytask", "cancel_taskrunrecord"),
    "run and retry": lambda: make_user("run_celerytask", "retry_taskrunrecord"),
    "view and cancel runs": lambda: make_user("view_taskrunrecord", "cancel_taskrunrecord"),
    "view and retry runs": lambda: make_user("view_taskrunrecord", "retry_taskrunrecord"),
    "superuser": make_superuser,
}
EVERYBODY = frozenset(USERS)
RUN = frozenset({"run", "run and export", "run and cancel", "run and retry", "superuser"})
SEE_TASKS = frozenset({"view tasks", *RUN})
SEE_OTHERS_RUNS = frozenset(
    {
        "view runs",
        "view and export runs",
        "view and cancel runs",
        "view and retry runs",
        "superuser",
    }
)
SEE_RUNS = SEE_OTHERS_RUNS | RUN
EXPORT = frozenset({"view and export runs", "run and export", "superuser"})
CANCEL = frozenset({"view and cancel runs", "run and cancel", "superuser"})
RETRY = frozenset({"run and retry", "superuser"})
NOBODY = frozenset[str]()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request, and who may make it. ``{own}`` and ``{other}`` stand for runs."""

    path: str
    allowed: frozenset[str]
    method: str = "get"
    data: dict[str, object] = field(default_factory=dict)
    is_json: bool = False
    #: Allowed ones start a run.
    starts: bool = False
    #: Allowed ones cancel a run.
    cancels: bool = False
    #: Allowed ones give a run another earliest start.
    moves: bool = False


#: A moment to come, as the form that moves a run takes it.
LATER = {"eta_0": "2030-07-01", "eta_1": "12:00"}

CASES = {
    "list of tasks": Case(path="/celerytask/", allowed=SEE_TASKS),
    "page of a task": Case(path=f"/celerytask/{TASK}/run/", allowed=SEE_TASKS),
    "run a task": Case(
        path=f"/celerytask/{TASK}/run/",
        method="post",
        data={"mode": "typed", "args-a": "1", "args-b": "2"},
        allowed=RUN,
        starts=True,
    ),
    "run a task by JSON": Case(
        path=f"/celerytask/{TASK}/run/",
        method="post",
        data={"args": [1]},
        is_json=True,
        allowed=RUN,
        starts=True,
    ),
    "run one of Celery's by JSON": Case(
        path="/celerytask/celery.backend_cleanup/run/",
        method="post",
        data={"args": []},
        is_json=True,
        allowed=NOBODY,
    ),
    "run one of Celery's": Case(
        path="/celerytask/celery.backend_cleanup/run/",
        method="post",
        data={"mode": "typed"},
        allowed=NOBODY,
    ),
    "tasks as JSON": Case(path="/celerytask/api/", allowed=SEE_TASKS),
    "action run selected": Case(
        path="/celerytask/",
        method="post",
        data={"action": "run_selected", ACTION_CHECKBOX_NAME: TASK},
        allowed=RUN,
    ),
    "run selected": Case(path=f"/celerytask/run-selected/?task={TASK}", allowed=RUN),
    "add a task": Case(path="/celerytask/add/", allowed=NOBODY),
    "delete a task": Case(
        path=f"/celerytask/{TASK}/delete/", method="post", data={"post": "yes"}, allowed=NOBODY
    ),
    "journal": Case(path="/taskrunrecord/", allowed=SEE_RUNS),
    "page of another's run": Case(path="/taskrunrecord/{other}/change/", allowed=SEE_OTHERS_RUNS),
    "page of one's own run": Case(path="/taskrunrecord/{own}/change/", allowed=SEE_RUNS),
    "change a run": Case(
        path="/taskrunrecord/{own}/change/",
        method="post",
        data={"state": "FAILURE"},
        allowed=NOBODY,
    ),
    "add a run": Case(path="/taskrunrecord/add/", allowed=NOBODY),
    "add a run by POST": Case(
        path="/taskrunrecord/add/", method="post", data={"task_name": TASK}, allowed=NOBODY
    ),
    "delete a run": Case(path="/taskrunrecord/{own}/delete/", allowed=NOBODY),
    "delete a run by POST": Case(
        path="/taskrunrecord/{own}/delete/", method="post", data={"post": "yes"}, allowed=NOBODY
    ),
    "history of another's run": Case(
        path="/taskrunrecord/{other}/history/", allowed=SEE_OTHERS_RUNS
    ),
    "export page": Case(path="/taskrunrecord/export/", allowed=EXPORT),
    "export": Case(
        path="/taskrunrecord/export/",
        method="post",
        data={"format": "0", "resource": "0", "taskrunrecordresource_task_id": "on"},
        allowed=EXPORT,
    ),
    "action export": Case(
        path="/taskrunrecord/",
        method="post",
        data={"action": "export_admin_action", ACTION_CHECKBOX_NAME: "{own}"},
        allowed=EXPORT,
    ),
    "send another's run again": Case(
        path="/taskrunrecord/{unsent}/send-again/",
        method="post",
        allowed=frozenset({"superuser"}),
        starts=True,
    ),
    "ask whether to cancel one's own run": Case(
        path="/taskrunrecord/{queued}/cancel/", allowed=CANCEL
    ),
    "cancel one's own run": Case(
        path="/taskrunrecord/{queued}/cancel/", method="post", allowed=CANCEL, cancels=True
    ),
    "cancel another's run": Case(
        path="/taskrunrecord/{unsent}/cancel/",
        method="post",
        allowed=CANCEL - {"run and cancel"},
        cancels=True,
    ),
    "action cancel": Case(
        path="/taskrunrecord/",
        method="post",
        data={"action": "cancel_selected", ACTION_CHECKBOX_NAME: "{queued}"},
        allowed=CANCEL,
    ),
    "cancel selected": Case(
        path="/taskrunrecord/cancel-selected/",
        method="post",
        data={ACTION_CHECKBOX_NAME: "{queued}"},
        allowed=CANCEL,
        cancels=True,
    ),
    "ask whether to run one's own run again": Case(
        path="/taskrunrecord/{own}/run-again/", allowed=RETRY
    ),
    "run one's own run again": Case(
        path="/taskrunrecord/{own}/run-again/", method="post", allowed=RETRY, starts=True
    ),
    "run another's run again": Case(
        path="/taskrunrecord/{other}/run-again/",
        method="post",
        allowed=frozenset({"superuser"}),
        starts=True,
    ),
    "action run again": Case(
        path="/taskrunrecord/",
        method="post",
        data={"action": "run_selected_again", ACTION_CHECKBOX_NAME: "{own}"},
        allowed=RETRY,
    ),
    "run selected again": Case(
        path="/taskrunrecord/run-again-selected/",
        method="post",
        # Shows the page again, for what it shows was not confirmed.
        data={ACTION_CHECKBOX_NAME: "{own}"},
        allowed=RETRY,
    ),
    "ask when to start one's own run": Case(path="/taskrunrecord/{queued}/move/", allowed=RUN),
    "move one's own run": Case(
        path="/taskrunrecord/{queued}/move/",
        method="post",
        data=LATER,
        allowed=RUN,
        moves=True,
    ),
    "move another's run": Case(
        path="/taskrunrecord/{kept}/move/",
        method="post",
        data=LATER,
        allowed=frozenset({"superuser"}),
        moves=True,
    ),
    "run one's own run now": Case(
        path="/taskrunrecord/{queued}/run-now/", method="post", allowed=RUN, moves=True
    ),
    "action move": Case(
        path="/taskrunrecord/",
        method="post",
        data={"action": "move_selected", ACTION_CHECKBOX_NAME: "{queued}"},
        allowed=RUN,
    ),
    "move selected": Case(
        path="/taskrunrecord/move-selected/",
        method="post",
        data={ACTION_CHECKBOX_NAME: "{queued}", **LATER},
        allowed=RUN,
        moves=True,
    ),
    "action run now": Case(
        path="/taskrunrecord/",
        method="post",
        data={"action": "run_selected_now", ACTION_CHECKBOX_NAME: "{queued}"},
        allowed=RUN,
    ),
    "run selected now": Case(
        path="/taskrunrecord/run-selected-now/",
        method="post",
        data={ACTION_CHECKBOX_NAME: "{queued}"},
        allowed=RUN,
        moves=True,
    ),
    "follow the list": Case(path="/taskrunrecord/live/?ids={own}", allowed=SEE_RUNS),
    "follow another's run": Case(path="/taskrunrecord/{other}/live/", allowed=SEE_OTHERS_RUNS),
    "output of another's run": Case(
        path="/taskrunrecord/{other}/output/", allowed=SEE_OTHERS_RUNS
    ),
}


@pytest.fixture(params=USERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "name",
    [
        # What starts is sent on commit; the others are quicker without one.
        pytest.param(name, marks=pytest.mark.django_db(transaction=case.starts))
        for name, case in CASES.items()
    ],
)
def test_only_who_may_gets_through(kind: str, name: str) -> None:
    case = CASES[name]
    user = USERS[kind]()
    client = Client()
    if user is not None:
        client.force_login(user)
    runs = {
        "own": make_run(run_by=user, run_by_name=user.username if user else "", args=[1]).pk,
        "other": make_run(run_by=make_user(), args=[1]).pk,
        "queued": make_run(run_by=user, state=State.SCHEDULED).pk,
        "unsent": make_run(state=State.UNSENT, task_name=TASK, args=[1], run_by=make_user()).pk,
        "kept": make_run(state=State.SCHEDULED, run_by=make_user()).pk,
    }

    response = send(client, case, runs)

    assert got_through(case, response) is (kind in case.allowed), response.status_code
    # A worker of another test may have run it already, so it need not be PENDING.
    sent = TaskRunRecord.objects.exclude(state=State.UNSENT)
    started = sent.exclude(pk__in=[runs[name] for name in ("own", "other", "queued", "kept")])
    started = started.exclude(state=State.REVOKED).count()
    assert started == (case.starts and kind in case.allowed)
    cancelled = TaskRunRecord.objects.filter(state=State.REVOKED).count()
    assert cancelled == (case.cancels and kind in case.allowed)
    moved = TaskRunRecord.objects.exclude(due_at=None).count()
    assert moved == (case.moves and kind in case.allowed)
    assert TaskRunRecord.objects.count() >= len(runs)


@pytest.mark.django_db
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.method == "post"])
def test_a_post_without_a_csrf_token_is_refused(name: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_superuser())
    run = make_run(state=State.UNSENT, task_name=TASK, args=[1])

    keys = ("own", "other", "unsent", "queued", "kept")
    response = send(client, CASES[name], dict.fromkeys(keys, run.pk))

    assert response.status_code == 403
    assert [found.state for found in TaskRunRecord.objects.all()] == [State.UNSENT]


@pytest.mark.django_db
def test_every_url_of_ours_is_in_the_matrix() -> None:
    named = {case.path.split("?")[0] for case in CASES.values()}
    tried = {
        path.replace(TASK, "<name>").replace("celery.backend_cleanup", "<name>") for path in named
    }

    ours = {
        str(pattern.pattern)
        for app in get_resolver().url_patterns
        for model in app.url_patterns
        if str(model.pattern).startswith("celery_admin_runner/") and hasattr(model, "url_patterns")
        for pattern in model.url_patterns
    }

    # Admin's old address of an object only sends on to the page of it.
    covered = {path.split("/", 2)[2] for path in tried} | {"<path:object_id>/"}
    assert {normal(path) for path in ours} <= {normal(path) for path in covered}


def normal(path: str) -> str:
    """Return a path with every name and key in it alike."""
    return re.sub(r"<[^>]+>|\{\w+\}", "*", path)


def send(client: Client, case: Case, runs: dict[str, int]):
    """Send the request of a case."""
    path = ADMIN + case.path.format(**runs)
    if case.method == "get":
        return client.get(path)
    data = {
        key: value.format(**runs) if isinstance(value, str) else value
        for key, value in case.data.items()
    }
    if case.is_json:
        return client.post(path, json.dumps(data), content_type="application/json")
    return client.post(path, data)


def got_through(case: Case, response) -> bool:
    """Tell whether a request was answered: not by the login, a refusal or "no such object"."""
    if "action" in case.data:
        # Admin shows the list again to who asks for an action that is not offered.
        return response.status_code == 200 and "cl" not in response.context_data
    if response.status_code == 302:
        # Admin sends to its index who asks for an object that he or she can't see.
        return "/login/" not in response.url and response.url != "/admin/"
    return response.status_code in (200, 201)
