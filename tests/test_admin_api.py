"""The tasks as JSON, and running one by JSON."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import timedelta
from typing import Annotated, NamedTuple

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel, Field

from celery_admin_runner.admin.api import BODY_MAX_BYTES
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.registry import all_task_infos
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_superuser, make_user
from tests.test_admin_run import page_of, page_of_run, registered

API = "admin:celery_admin_runner_celerytask_api"
ADD = "tests.tasks.add"
JSON = "application/json"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(client: Client) -> User:
    """A user who may run tasks, logged in."""
    user = make_user("run_celerytask")
    client.force_login(user)
    return user


def tasks(client: Client, **query: object) -> dict[str, object]:
    """Return the answer about tasks."""
    response = client.get(reverse(API), query)
    assert response.status_code == 200
    assert response["Content-Type"] == JSON
    return response.json()


def post(client: Client, body: object, task_name: str = ADD) -> HttpResponse:
    """Post JSON; what is bytes already is posted as it is."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(page_of(task_name), data, content_type=JSON)
    assert response["Content-Type"] == JSON
    return response


# Reading


def test_a_task_is_described_with_its_parameters(client: Client, operator: User) -> None:
    answer = tasks(client, q="tests.tasks.add")

    [task] = answer["tasks"]
    queue = task.pop("queue")
    assert queue
    assert task == {
        "name": ADD,
        "doc": "Add two numbers.",
        "runnable": True,
        "run_url": page_of(ADD),
        "parameters": [
            {
                "name": "a",
                "required": True,
                "default": None,
                "annotation": "int",
                "schema": {"type": "integer"},
            },
            {
                "name": "b",
                "required": False,
                "default": 2,
                "annotation": "int",
                "schema": {"type": "integer"},
            },
        ],
    }
    assert answer["total"] == 1


def test_defaults_are_readable_or_null(client: Client, operator: User) -> None:
    def odd(
        wait: timedelta = timedelta(minutes=1),
        thing: object = object(),
        api_key: str = "hunter2",
        number: float = float("nan"),
    ) -> None:
        """Have defaults of all kinds."""

    with registered(odd) as name:
        [task] = tasks(client, q=name)["tasks"]

    defaults = {item["name"]: item["default"] for item in task["parameters"]}
    assert defaults == {"wait": "P0DT00H01M00S", "thing": None, "api_key": None, "number": None}


class Gateway(BaseModel):
    """Has a default that is secret by its name."""

    api_key: str = "hunter3"
    retries: int = 3


class Aliased(BaseModel):
    """Has defaults that are secret by a name behind an alias, and deep in another default."""

    api_key: str = Field("hunter3", alias="apiKey")
    gateway: Gateway = Gateway()
    default: int = 4


class Pair(NamedTuple):
    """Has a default that is secret by its name, and no names in its schema."""

    api_key: str = "hunter3"


class Hostile:
    """Breaks while pydantic reads it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *args: object) -> None:
        raise RuntimeError("no schema")


def test_no_secret_default_stands_in_a_schema(client: Client, operator: User) -> None:
    def call(gateway: Gateway) -> None:
        """Have a default inside of a model."""

    with registered(call) as name:
        [task] = tasks(client, q=name)["tasks"]

    properties = task["parameters"][0]["schema"]["properties"]
    assert "hunter3" not in str(task)
    assert properties["retries"]["default"] == 3


def test_no_secret_default_stands_in_a_schema_behind_another_name(
    client: Client, operator: User
) -> None:
    def call(model: Aliased, pair: Pair) -> None:
        """Have defaults inside of models."""

    with registered(call) as name:
        [task] = tasks(client, q=name)["tasks"]

    properties = task["parameters"][0]["schema"]["properties"]
    assert "hunter3" not in str(task)
    assert properties["default"]["default"] == 4


def test_an_annotation_that_breaks_pydantic_breaks_no_page(client: Client, operator: User) -> None:
    def odd(thing: Hostile, pattern: Annotated[str, Field(pattern="(")] = "") -> None:
        """Have annotations that raise."""

    with registered(odd) as name:
        [task] = tasks(client, q=name)["tasks"]
        page = client.get(page_of(name))

    assert [item["name"] for item in task["parameters"]] == ["thing", "pattern"]
    assert page.status_code == 200


def test_tasks_are_searched_and_paged(client: Client, operator: User) -> None:
    everything = tasks(client, limit=200)
    names = [task["name"] for task in everything["tasks"]]

    part = tasks(client, limit=2, offset=1)
    beyond = tasks(client, offset=9999)

    registered_names = [info.name for info in all_task_infos()]
    assert names == registered_names[:200]
    assert everything["total"] == part["total"] == beyond["total"] == len(registered_names)
    assert [task["name"] for task in part["tasks"]] == names[1:3]
    assert beyond["tasks"] == []
    assert tasks(client, limit=0)["tasks"] == []


def test_the_limit_is_capped(client: Client, operator: User) -> None:
    def odd() -> None:
        """Do nothing."""

    with ExitStack() as stack:
        for number in range(201):
            stack.enter_context(registered(odd, f"many.task_{number:03}"))
        default, capped = tasks(client, q="many.task"), tasks(client, q="many.task", limit=999)

    assert (len(default["tasks"]), len(capped["tasks"]), capped["total"]) == (50, 200, 201)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "-1"},
        {"offset": "-1"},
        {"limit": "ten"},
        {"offset": "1.5"},
        {"limit": "²"},
        {"offset": "9" * 5000},
        {"runnable": "perhaps"},
    ],
)
def test_a_query_that_makes_no_sense_is_an_error_in_words(
    client: Client, operator: User, query: dict[str, str]
) -> None:
    response = client.get(reverse(API), query)

    [name] = query
    assert response.status_code == 400
    assert response.json()["errors"]["__all__"][0].startswith(f"{name}: ")


def test_runnable_tasks_can_be_asked_for(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD])

    yes, no = tasks(client, runnable="1"), tasks(client, runnable="0", q="celery.")

    assert [task["name"] for task in yes["tasks"]] == [ADD]
    assert no["tasks"]
    assert not any(task["runnable"] for task in no["tasks"])


def test_hidden_tasks_are_not_told_of(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD], SHOW_ONLY_RUNNABLE=True)

    assert tasks(client)["total"] == 1


def test_the_answer_costs_no_query_for_a_task(client: Client, operator: User) -> None:
    client.get(reverse(API))
    with CaptureQueriesContext(connection) as one:
        client.get(reverse(API), {"limit": "1"})

    with CaptureQueriesContext(connection) as many:
        client.get(reverse(API), {"limit": "200"})

    assert len(many) == len(one)


@pytest.mark.parametrize("permissions", [("view_celerytask",), ("run_celerytask",)])
def test_who_sees_tasks_reads_them_as_json(client: Client, permissions: tuple[str, ...]) -> None:
    client.force_login(make_user(*permissions))

    assert tasks(client)["total"] > 0


@pytest.mark.parametrize("who", ["anonymous", "no staff", "staff"])
def test_others_are_refused_with_json(client: Client, who: str) -> None:
    if who != "anonymous":
        client.force_login(make_user("view_taskrunrecord", is_staff=who == "staff"))

    responses = [client.get(reverse(API)), post(client, {"args": [1]})]

    for response in responses:
        assert response.status_code == 403
        assert response.json()["errors"]["__all__"]
    assert TaskRunRecord.objects.count() == 0


def test_the_list_can_only_be_read(client: Client, operator: User) -> None:
    assert client.post(reverse(API), {}, content_type=JSON).status_code == 405


# Running


def test_a_task_is_run(client: Client, operator: User) -> None:
    response = post(
        client,
        {"args": [40], "kwargs": {"b": 3}, "options": {"queue": "slow"}, "reason": "nightly"},
    )

    run = TaskRunRecord.objects.get()
    assert response.status_code == 201
    assert response.json() == {
        "task_id": run.task_id,
        "state": "PENDING",
        "url": page_of_run(run),
    }
    assert (run.args, run.kwargs, run.queue, run.reason) == ([40], {"b": 3}, "slow", "nightly")
    assert (run.run_by, run.source, run.state) == (operator, "admin", State.PENDING)


def test_options_are_seconds_or_moments(client: Client, operator: User) -> None:
    moment = timezone.now() + timedelta(hours=1)

    answers = [
        post(client, {"args": [1], "options": {"eta": moment.isoformat(), "priority": 3}}),
        post(client, {"args": [1], "options": {"countdown": 60, "expires": 90.5}}),
        post(client, {"args": [1], "options": {"expires": moment.isoformat(), "queue": None}}),
        post(client, {"args": [1], "options": {"eta": "2030-01-01T12:00"}}),
    ]

    runs = list(TaskRunRecord.objects.order_by("pk"))
    assert [answer.status_code for answer in answers] == [201] * 4
    assert runs[0].eta == moment
    assert runs[1].eta - runs[1].created_at == timedelta(seconds=60)
    assert runs[1].expires_at - runs[1].created_at == timedelta(seconds=90.5)
    assert runs[2].expires_at == moment
    assert runs[3].eta.isoformat() == "2030-01-01T11:00:00+00:00"


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe\x00",
        b'{"args": [NaN]}',
        b'{"args": [1e999]}',
        b'{"args": ["\\ud800"]}',
        b'{"args": [' + b"9" * 10_000 + b"]}",
        b"[" * 100_000,
        {"args": {}},
        {"args": None},
        {"kwargs": []},
        {"options": []},
        {"reason": 1},
        {"nonsense": 1},
        {"options": {"nonsense": 1}},
        {"options": {"headers": {}}},
        {"options": {"queue": 1}},
        {"options": {"queue": ""}},
        {"options": {"queue": "x" * 256}},
        {"options": {"countdown": -1}},
        {"options": {"countdown": "60"}},
        {"options": {"countdown": True}},
        {"options": {"countdown": 1e300}},
        {"options": {"eta": 5}},
        {"options": {"eta": "tomorrow"}},
        {"options": {"eta": "0001-01-01T00:00:00"}},
        {"options": {"eta": "9999-12-31T23:59:59"}},
        {"options": {"expires": "soon"}},
        {"options": {"expires": [1]}},
        {"options": {"priority": 1.5}},
        {"options": {"priority": 256}},
        {"options": {"countdown": 1, "eta": "2030-01-01T12:00:00Z"}},
        {"options": {"countdown": 60, "expires": 60}},
        {"options": {"eta": "2035-01-01T12:00:00Z", "expires": "2035-01-01T11:59:59Z"}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_body_that_makes_no_sense_is_an_error_in_words(
    client: Client, operator: User, body: object
) -> None:
    if isinstance(body, dict):
        body = {"args": [1], **body}

    response = post(client, body)

    assert response.status_code == 400
    assert response.json()["errors"]
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize("size", [BODY_MAX_BYTES, 3 * BODY_MAX_BYTES])
def test_a_large_body_is_refused(client: Client, operator: User, size: int) -> None:
    response = post(client, {"args": ["x" * size]}, "tests.tasks.fail")

    assert response.status_code == 400
    assert "too large" in response.json()["errors"]["__all__"][0]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"args": ["x"]}, {"a"}),
        ({}, {"a"}),
        ({"args": [1, 2, 3]}, {"__all__"}),
        ({"args": [1], "kwargs": {"c": 1}}, {"__all__"}),
        ({"args": ["x"], "kwargs": {"b": "y"}}, {"a", "b"}),
    ],
)
def test_arguments_that_do_not_fit_are_errors_by_parameter(
    client: Client, operator: User, body: object, names: set[str]
) -> None:
    response = post(client, body)

    errors = response.json()["errors"]
    assert response.status_code == 400
    assert errors.keys() == names
    assert all(isinstance(text, str) for texts in errors.values() for text in texts)
    assert TaskRunRecord.objects.count() == 0


def test_a_nul_character_is_refused(client: Client, operator: User) -> None:
    response = post(client, {"args": ["a\x00b"]}, "tests.tasks.fail")

    assert response.status_code == 400
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize("more", [{"reason": "a\x00b"}, {"options": {"queue": "a\x00b"}}])
def test_a_text_that_not_every_database_can_store_is_refused(
    client: Client, operator: User, more: dict[str, object]
) -> None:
    response = post(client, {"args": [1], **more})

    assert response.status_code == 400
    assert TaskRunRecord.objects.count() == 0


def test_a_reason_that_is_asked_for_must_be_given(client: Client, operator, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"reason": True, "confirm": True}})

    refused, accepted = post(client, {"args": [1]}), post(client, {"args": [1], "reason": "why"})

    assert refused.status_code == 400
    assert "reason" in refused.json()["errors"]["__all__"][0]
    assert accepted.status_code == 201


def test_a_row_that_its_admin_hides_does_not_exist(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(make_user("run_celerytask", "auth.view_group"))
    shown, hidden = (Group.objects.create(name=name) for name in ("shown", "hidden"))
    public = Group.objects.exclude(pk=hidden.pk)
    model_admin = admin.site.get_model_admin(Group)
    monkeypatch.setattr(model_admin, "get_queryset", lambda request: public.all())

    with registered(_clean_up) as name:
        accepted, refused = (post(client, {"args": [key]}, name) for key in (shown.pk, hidden.pk))

    assert accepted.status_code == 201
    assert refused.status_code == 400
    text = f"There is no group with the primary key {hidden.pk}."
    assert refused.json() == {"errors": {"group": [text]}}
    assert [run.args for run in TaskRunRecord.objects.all()] == [[shown.pk]]


def _clean_up(group: Group) -> None:
    """Do nothing."""


def test_an_unknown_task_is_not_found(client: Client, operator: User) -> None:
    response = post(client, {}, "no.such.task")

    assert response.status_code == 404
    assert "no.such.task" in response.json()["errors"]["__all__"][0]


@pytest.mark.parametrize("name", ["celery.backend_cleanup", "tests.tasks.fail"])
def test_a_task_outside_the_allowlist_is_forbidden(client: Client, configure, name: str) -> None:
    configure(RUNNABLE_TASKS=[ADD, "celery.*"])
    client.force_login(make_superuser())

    response = post(client, {}, name)

    assert response.status_code == 403
    assert TaskRunRecord.objects.count() == 0


def test_a_hidden_task_is_not_found(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD], SHOW_ONLY_RUNNABLE=True)

    assert post(client, {}, "tests.tasks.fail").status_code == 404


def test_who_may_only_view_cannot_run(client: Client) -> None:
    client.force_login(make_user("view_celerytask"))

    response = post(client, {"args": [1]})

    assert response.status_code == 403
    assert TaskRunRecord.objects.count() == 0


def test_without_a_broker_the_run_is_kept_and_it_says_so(client: Client, operator: User) -> None:
    with broker_away():
        response = post(client, {"args": [1]})

    run = TaskRunRecord.objects.get()
    assert response.status_code == 503
    assert response.json() == {
        "task_id": run.task_id,
        "state": "UNSENT",
        "errors": {"__all__": [run.publish_error]},
    }


def test_an_atomic_request_is_answered_with_what_became_of_the_run(
    client: Client, operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    sent = post(client, {"args": [1]})
    with broker_away():
        unsent = post(client, {"args": [1]})

    assert (sent.status_code, unsent.status_code) == (201, 503)


def test_a_secret_is_not_told_in_an_answer(client: Client, operator: User) -> None:
    body = {"args": ["/nowhere", "hunter2"], "options": {"eta": "2030-01-01T12:00:00Z"}}

    response = post(client, body, "tests.tasks.tell_secret")
    post(client, {"args": ["/nowhere", "hunter2"]}, "tests.tasks.tell_secret")

    assert response.status_code == 400
    assert "hunter2" not in response.text
    assert TaskRunRecord.objects.get().args == ["/nowhere", MASK]
