"""Who may do what: every kind of user, every URL and every action, GET and POST."""

from __future__ import annotations

import json
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
    "superuser": make_superuser,
}
EVERYBODY = frozenset(USERS)
SEE_TASKS = frozenset({"view tasks", "run", "run and export", "superuser"})
RUN = frozenset({"run", "run and export", "superuser"})
SEE_RUNS = frozenset({"view runs", "view and export runs", *RUN})
SEE_OTHERS_RUNS = frozenset({"view runs", "view and export runs", "superuser"})
EXPORT = frozenset({"view and export runs", "run and export", "superuser"})
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
}


@pytest.fixture(params=USERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", CASES)
def test_only_who_may_gets_through(kind: str, name: str) -> None:
    case = CASES[name]
    user = USERS[kind]()
    client = Client()
    if user is not None:
        client.force_login(user)
    runs = {
        "own": make_run(run_by=user, run_by_name=user.username if user else "").pk,
        "other": make_run(run_by=make_user()).pk,
        "unsent": make_run(state=State.UNSENT, task_name=TASK, args=[1], run_by=make_user()).pk,
    }

    response = send(client, case, runs)

    assert got_through(case, response) is (kind in case.allowed), response.status_code
    # A worker of another test may have run it already, so it need not be PENDING.
    sent = TaskRunRecord.objects.exclude(state=State.UNSENT)
    started = sent.exclude(pk__in=[runs["own"], runs["other"]]).count()
    assert started == (case.starts and kind in case.allowed)
    assert TaskRunRecord.objects.count() >= len(runs)


@pytest.mark.django_db
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.method == "post"])
def test_a_post_without_a_csrf_token_is_refused(name: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_superuser())
    run = make_run(state=State.UNSENT, task_name=TASK, args=[1])

    response = send(client, CASES[name], {"own": run.pk, "other": run.pk, "unsent": run.pk})

    assert response.status_code == 403
    assert not TaskRunRecord.objects.filter(state=State.PENDING).exists()


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
    for part in ("<path:object_id>", "<path:task_name>", "<name>", "{own}", "{other}", "{unsent}"):
        path = path.replace(part, "*")
    return path


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
