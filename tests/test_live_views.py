"""A user's own runs as JSON over HTTP: asked for, followed, and marked as seen."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import chain
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import RequestDataTooBig
from django.db import connection, router
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse
from django.utils import timezone
from django.utils.translation import override

from celery_admin_runner.live import views
from celery_admin_runner.live.payload import RUNS_MAX
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_superuser, make_user

pytestmark = pytest.mark.django_db

JSON = "application/json"
FORBIDDEN = {"errors": {"__all__": ["You are not allowed to do this."]}}
NAMES = ["snapshot", "changes", "mark_seen"]
#: What is no id of a run, wherever it stands.
NO_IDS = [
    *("0", "-1", "+1", "01", "1.0", "1e3", "0x1", "1_0", "abc", "true", "None"),
    *(" 1", "1 ", "1\n", "1,,2", ",1", "1,", "1;2", "1\x00", "\x00", "٣", "１", "²"),
    *(str(2**63), "9" * 19, "9" * 5000, "[1]", "<script>", "' OR 1=1"),
]


def url(name: str, **query: object) -> str:
    address = reverse(f"celery_admin_runner_live:{name}")
    return f"{address}?{urlencode(query)}" if query else address


def client_of(user: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


def answer_of(response: HttpResponse, status: int = 200) -> Any:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == JSON
    return response.json()


def ids_of(response: HttpResponse) -> list[int]:
    return [run["id"] for run in answer_of(response)["runs"]]


def joined(*runs: TaskRunRecord) -> str:
    return ",".join(str(run.pk) for run in runs)


def statements(client: Client, method: str, *args: Any, **options: Any) -> list[str]:
    """Return the statements of a request, without the numbers in them."""
    with CaptureQueriesContext(
        connection,
    ) as queries:
        getattr(client, method)(*args, **options)
    return ["".join(sign for sign in query["sql"] if not sign.isdigit()) for query in queries]


@pytest.fixture
def user() -> User:
    return make_user(username="customer", is_staff=False)


@pytest.fixture
def other() -> User:
    return make_user(username="other", is_staff=False)


@pytest.fixture
def client(user: User) -> Client:
    return client_of(user)


# The runs as they are


def test_without_ids_all_runs_for_display_are_told(client: Client, user: User) -> None:
    running = make_run(run_by=user, state=State.STARTED)
    unseen = make_run(run_by=user)
    seen = make_run(run_by=user, seen_at=timezone.now())
    make_run(run_by=user, seen_at=timezone.now() - timedelta(minutes=1))

    answer = answer_of(client.get(url("snapshot")))

    assert (answer["type"], answer["more"]) == ("snapshot", False)
    assert [run["id"] for run in answer["runs"]] == [seen.pk, unseen.pk, running.pk]


def test_with_ids_only_these_are_told(client: Client, user: User) -> None:
    old, run, _other = (make_run(run_by=user) for _ in range(3))
    TaskRunRecord.objects.filter(pk=old.pk).update(seen_at=timezone.now() - timedelta(days=1))

    assert ids_of(client.get(url("snapshot", ids=joined(old, run)))) == [run.pk, old.pk]


def test_with_ids_and_display_both_are_told_each_once(client: Client, user: User) -> None:
    old, run, other_run = (make_run(run_by=user) for _ in range(3))
    TaskRunRecord.objects.filter(pk=old.pk).update(seen_at=timezone.now() - timedelta(days=1))

    response = client.get(url("snapshot", ids=joined(old, run), display=1))

    assert ids_of(response) == [other_run.pk, run.pk, old.pk]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ({}, 1),
        ({"display": "1"}, 1),
        ({"display": ""}, 1),
        ({"display": "0"}, 0),
        ({"ids": ""}, 0),
        ({"ids": "", "display": "0"}, 0),
        ({"ids": "", "display": "1"}, 1),
        ({"_": "17"}, 1),
    ],
)
def test_an_empty_list_of_ids_names_no_run(
    client: Client, user: User, query: dict[str, str], number: int
) -> None:
    make_run(run_by=user)

    assert len(ids_of(client.get(url("snapshot", **query)))) == number


def test_an_id_that_is_named_twice_is_told_once(client: Client, user: User) -> None:
    run, second = make_run(run_by=user), make_run(run_by=user)

    assert ids_of(client.get(url("snapshot", ids=f"{run.pk},{run.pk}"))) == [run.pk]
    assert ids_of(client.get(f"{url('snapshot')}?ids={run.pk}&ids={second.pk}")) == [
        second.pk,
        run.pk,
    ]


def test_of_more_runs_than_are_shown_the_newest_are_told(client: Client, user: User) -> None:
    make_runs(RUNS_MAX, run_by=user)
    all_of_them = answer_of(client.get(url("snapshot")))
    newest = make_run(run_by=user)

    answer = answer_of(client.get(url("snapshot")))

    assert (len(all_of_them["runs"]), all_of_them["more"]) == (RUNS_MAX, False)
    assert (len(answer["runs"]), answer["more"]) == (RUNS_MAX, True)
    assert answer["runs"][0]["id"] == newest.pk


def test_runs_that_are_named_are_told_however_many_others_there_are(
    client: Client, user: User
) -> None:
    oldest = make_run(run_by=user)
    make_runs(RUNS_MAX, run_by=user)

    answer = answer_of(client.get(url("snapshot", ids=oldest.pk, display=1)))

    ids = [run["id"] for run in answer["runs"]]
    assert (len(ids), ids[-1], answer["more"]) == (RUNS_MAX, oldest.pk, True)
    assert ids == sorted(ids, reverse=True)


def test_as_many_runs_as_are_shown_can_be_named(client: Client, user: User) -> None:
    make_runs(RUNS_MAX + 1, run_by=user)
    runs = list(TaskRunRecord.objects.all())

    assert len(ids_of(client.get(url("snapshot", ids=joined(*runs[1:]))))) == RUNS_MAX
    error = answer_of(client.get(url("snapshot", ids=joined(*runs))), 400)
    assert error == {"errors": {"__all__": ["ids: no more than 200 at once."]}}


def test_a_label_is_told_as_text_and_shown_escaped(client: Client, user: User) -> None:
    make_run(run_by=user, label="</script><script>alert(1)</script>", state=State.STARTED)

    [run] = answer_of(client.get(url("snapshot")))["runs"]

    assert run["label"] == "</script><script>alert(1)</script>"
    assert "<script" not in run["html"]


def test_the_answer_is_in_the_language_of_the_request(user: User, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    make_run(run_by=user, state=State.STARTED)
    client = client_of(user, headers={"accept-language": "de"})

    # The middleware leaves its language to what comes after it.
    with override("en"):
        response = client.get(url("snapshot"))
        error = client.get(url("snapshot", ids=2**63 - 1))

    assert answer_of(response)["runs"][0]["state_label"] == "Läuft"
    assert "Accept-Language" in response["Vary"]
    assert answer_of(error, 403)["errors"]["__all__"] == ["Sie dürfen das nicht tun."]


# What has changed


def test_a_page_that_knows_all_is_told_nothing(client: Client, user: User) -> None:
    make_run(run_by=user)
    [run] = answer_of(client.get(url("snapshot")))["runs"]

    answer = answer_of(client.get(url("changes", known=f"{run['id']}:{run['version']}")))

    assert answer == {"messages": []}


def test_a_page_is_told_what_is_new_what_has_moved_and_what_is_gone(
    client: Client, user: User
) -> None:
    moved, further, gone = (make_run(run_by=user, state=State.STARTED) for _ in range(3))
    shown = answer_of(client.get(url("snapshot")))["runs"]
    TaskRunRecord.objects.filter(pk=moved.pk).update(state=State.RETRY)
    TaskRunRecord.objects.filter(pk=further.pk).update(progress_current=5, progress_total=10)
    TaskRunRecord.objects.filter(pk=gone.pk).delete()
    new = make_run(run_by=user)

    known = ",".join(f"{run['id']}:{run['version']}" for run in shown)
    messages = answer_of(client.get(url("changes", known=known)))["messages"]

    assert [message["type"] for message in messages] == ["state", "progress", "state", "gone"]
    assert messages[0]["run"]["id"] == new.pk
    assert (messages[1]["id"], messages[1]["progress"]["percent"]) == (further.pk, 50)
    assert (messages[2]["run"]["id"], messages[2]["run"]["state"]) == (moved.pk, "RETRY")
    assert messages[3]["ids"] == [gone.pk]


def test_a_page_that_knows_nothing_is_told_each_run(client: Client, user: User) -> None:
    run = make_run(run_by=user)

    [message] = answer_of(client.get(url("changes")))["messages"]

    assert (message["type"], message["run"]["id"]) == ("state", run.pk)


def test_changes_are_of_the_same_runs_as_the_snapshot(client: Client, user: User) -> None:
    run, other_run = make_run(run_by=user), make_run(run_by=user)

    messages = answer_of(client.get(url("changes", ids=run.pk, known=f"{other_run.pk}:x")))[
        "messages"
    ]

    assert [message["type"] for message in messages] == ["state", "gone"]
    assert messages[1]["ids"] == [other_run.pk]


def test_of_known_runs_nobody_learns_whether_they_exist(
    client: Client, user: User, other: User
) -> None:
    foreign = make_run(run_by=other)

    known = f"{foreign.pk}:x,{foreign.pk + 1}:x"
    [message] = answer_of(client.get(url("changes", known=known)))["messages"]

    assert message == {"type": "gone", "ids": [foreign.pk, foreign.pk + 1]}


@pytest.mark.parametrize(
    "known",
    ["1", "1:", ":x", "x", "1:x,", "1:a b", "1:x:y", "1:é", "1:" + "x" * 65, "0:x", "1:x\n",
     "1:x,2", "1:\x00", "١:x"],
)  # fmt: skip
def test_junk_in_place_of_versions_is_refused(client: Client, known: str) -> None:
    assert answer_of(client.get(url("changes", known=known)), 400)["errors"]["__all__"]


def test_what_is_no_version_is_named_in_the_answer(client: Client) -> None:
    error = answer_of(client.get(url("changes", known="1:x,zz")), 400)

    assert error == {"errors": {"__all__": ["known: “zz” is no version of a run."]}}


def test_versions_of_no_more_runs_than_can_be_shown_are_taken(client: Client) -> None:
    known = [f"{number}:x" for number in range(1, views.KNOWN_MAX + 2)]

    taken = answer_of(client.get(url("changes", known=",".join(known[1:]))))
    error = answer_of(client.get(url("changes", known=",".join(known))), 400)

    assert len(taken["messages"][0]["ids"]) == views.KNOWN_MAX
    assert error == {"errors": {"__all__": ["known: no more than 400 at once."]}}


# Marking as seen


def post_json(client: Client, body: Any, **options: Any) -> HttpResponse:
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(url("mark_seen"), text, content_type=JSON, **options)


def seen_ids() -> set[int]:
    return set(TaskRunRecord.objects.exclude(seen_at=None).values_list("pk", flat=True))


def test_finished_runs_are_marked_as_seen(client: Client, user: User) -> None:
    run, left = make_run(run_by=user), make_run(run_by=user)

    answer = answer_of(post_json(client, {"ids": [run.pk]}))

    assert answer == {"type": "seen", "ids": [run.pk]}
    assert seen_ids() == {run.pk}
    assert left.pk not in seen_ids()


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_can_name_the_runs_too(client: Client, user: User, kind: str) -> None:
    run, second = make_run(run_by=user), make_run(run_by=user)
    data = {"ids": joined(run, second)}

    response = (
        client.post(url("mark_seen"), data)
        if kind == "multipart/form-data"
        else client.post(url("mark_seen"), urlencode(data), content_type=kind)
    )

    assert answer_of(response)["ids"] == [run.pk, second.pk]
    assert seen_ids() == {run.pk, second.pk}


def test_what_is_unfinished_is_not_seen(client: Client, user: User) -> None:
    run, running = make_run(run_by=user), make_run(run_by=user, state=State.STARTED)

    assert answer_of(post_json(client, {"ids": [running.pk, run.pk]}))["ids"] == [run.pk]


def test_marking_again_says_the_same_and_changes_nothing(client: Client, user: User) -> None:
    run = make_run(run_by=user)
    first = answer_of(post_json(client, {"ids": [run.pk]}))
    seen_at = TaskRunRecord.objects.get().seen_at

    again = answer_of(post_json(client, {"ids": [run.pk, run.pk]}))

    assert again == first
    assert TaskRunRecord.objects.get().seen_at == seen_at


def test_to_mark_none_is_no_mistake(client: Client) -> None:
    assert answer_of(post_json(client, {"ids": []})) == {"type": "seen", "ids": []}
    assert answer_of(client.post(url("mark_seen"), {"ids": ""})) == {"type": "seen", "ids": []}


def test_as_many_runs_as_are_shown_can_be_marked(client: Client, user: User) -> None:
    make_runs(RUNS_MAX + 1, run_by=user)
    ids = sorted(TaskRunRecord.objects.values_list("pk", flat=True))

    answer_of(post_json(client, {"ids": ids}), 400)
    answer_of(client.post(url("mark_seen"), {"ids": ",".join(map(str, ids))}), 400)
    assert seen_ids() == set()
    assert answer_of(post_json(client, {"ids": ids[1:]}))["ids"] == ids[1:]


@pytest.mark.parametrize(
    "body",
    [
        "", "null", "true", "1", '"1"', "[1]", "{}", '{"ids": null}', '{"ids": 1}',
        '{"ids": "1"}', '{"ids": ["1"]}', '{"ids": [true]}', '{"ids": [1.0]}', '{"ids": [0]}',
        '{"ids": [-1]}', '{"ids": [[1]]}', '{"ids": {"1": 1}}', '{"ids": [NaN]}',
        '{"ids": [1], "user": 2}', '{"ids": [1]', "{'ids': [1]}", b"\xff\xfe", b"\x00",
        json.dumps({"ids": [2**63]}), json.dumps({"ids": [1] * 201}), "[" * 50_000,
        f'{{"ids": [{"9" * 5000}]}}', f'{{"ids": {"[" * 5000}1{"]" * 5000}}}',
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_junk_in_json_is_refused(client: Client, body: str | bytes) -> None:
    assert answer_of(post_json(client, body), 400)["errors"]["__all__"]


@pytest.mark.parametrize("text", NO_IDS)
def test_junk_in_a_form_is_refused(client: Client, text: str) -> None:
    response = client.post(url("mark_seen"), {"ids": text})

    assert answer_of(response, 400)["errors"]["__all__"]


@pytest.mark.parametrize("text", NO_IDS)
@pytest.mark.parametrize("name", ["snapshot", "changes"])
def test_junk_in_place_of_ids_is_refused(client: Client, name: str, text: str) -> None:
    errors = answer_of(client.get(url(name, ids=text)), 400)["errors"]

    assert list(errors) == ["__all__"]
    assert len(errors["__all__"][0]) < 100


@pytest.mark.parametrize("text", ["2", "yes", "true", "-1", "\x00"])
def test_junk_in_place_of_a_yes_is_refused(client: Client, text: str) -> None:
    assert answer_of(client.get(url("snapshot", display=text)), 400)["errors"]["__all__"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/vnd.api+json", "x", ""]
)
def test_ids_in_a_body_of_another_kind_are_not_read(client: Client, user: User, kind: str) -> None:
    run = make_run(run_by=user)

    response = client.post(url("mark_seen"), f'{{"ids": [{run.pk}]}}', content_type=kind)

    assert answer_of(response, 400) == {"errors": {"__all__": ["ids: say which runs."]}}
    assert seen_ids() == set()


def test_the_largest_id_is_one_that_there_is_not(client: Client) -> None:
    largest = 2**63 - 1

    assert answer_of(client.get(url("snapshot", ids=largest)), 403) == FORBIDDEN
    assert answer_of(post_json(client, {"ids": [largest]}), 403) == FORBIDDEN


def test_a_body_that_is_too_large_is_refused(client: Client, settings: Any) -> None:
    spaces = " " * views.BODY_MAX_BYTES
    error = {"errors": {"__all__": ["The body is too large."]}}

    assert answer_of(post_json(client, f'{{"ids": []}}{spaces}'), 400) == error
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    assert answer_of(post_json(client, '{"ids": []}     '), 400) == error


def test_a_form_that_is_too_large_is_refused_in_json(user: User, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    request = RequestFactory().post(
        url("mark_seen"), "ids=" + "1," * 50, content_type="application/x-www-form-urlencoded"
    )
    request.user = user
    request.csrf_processing_done = True

    with pytest.raises(RequestDataTooBig):
        _ = request.POST
    assert views.mark_seen(request).status_code == 400


@pytest.mark.parametrize("name", ["snapshot", "changes"])
def test_more_parameters_than_django_takes_are_refused_in_json(
    client: Client, settings: Any, name: str
) -> None:
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 2

    response = client.get(url(name) + "?ids=1&ids=2&ids=3")

    assert answer_of(response, 400)["errors"]["__all__"] == ["There are too many parameters."]


# Whose runs they are


def test_two_users_see_and_mark_each_their_own(user: User, other: User) -> None:
    mine, others = make_run(run_by=user), make_run(run_by=other)
    make_run(run_by=None)

    assert ids_of(client_of(user).get(url("snapshot"))) == [mine.pk]
    assert ids_of(client_of(other).get(url("snapshot"))) == [others.pk]
    assert answer_of(post_json(client_of(user), {"ids": [mine.pk]}))["ids"] == [mine.pk]
    assert seen_ids() == {mine.pk}


def requests_for(ids: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return every way to ask for these ids."""
    body = {"ids": [int(pk) for pk in ids.split(",")]}
    return [
        ("get", url("snapshot", ids=ids), {}),
        ("get", url("snapshot", ids=ids, display=1), {}),
        ("get", url("changes", ids=ids), {}),
        ("get", url("changes", ids=ids, known="1:x"), {}),
        ("head", url("snapshot", ids=ids), {}),
        ("post", url("mark_seen"), {"data": json.dumps(body), "content_type": JSON}),
        ("post", url("mark_seen"), {"data": {"ids": ids}}),
    ]


@pytest.mark.parametrize("number", range(7))
def test_anothers_run_and_none_are_the_same_answer(
    client: Client, user: User, other: User, number: int
) -> None:
    mine, foreign = make_run(run_by=user), make_run(run_by=other, label="Secret")
    nobodys = make_run(run_by=None)
    makers = [joined(foreign), joined(nobodys), str(nobodys.pk + 7), str(2**63 - 1)]
    mixed = [f"{mine.pk},{pk}" for pk in makers]

    for kind in (makers, mixed):
        answers = []
        for ids in kind:
            method, address, options = requests_for(ids)[number]
            asked = statements(client, method, address, **options)
            response = getattr(client, method)(address, **options)
            headers = {key: value for key, value in response.items() if key != "Expires"}
            answers.append((response.status_code, response.content, headers, asked))
        assert answers[0][0] == 403
        assert answers[0][1] in (b"", json.dumps(FORBIDDEN).encode())
        assert [answer for answer in answers if answer != answers[0]] == []
    assert seen_ids() == set()


def test_who_may_see_all_runs_elsewhere_sees_here_only_his_or_her_own(other: User) -> None:
    foreign = make_run(run_by=other)
    for boss in (make_superuser(), make_user("view_taskrunrecord")):
        run = make_run(run_by=boss)
        client = client_of(boss)

        assert ids_of(client.get(url("snapshot"))) == [run.pk]
        assert answer_of(client.get(url("snapshot", ids=foreign.pk)), 403) == FORBIDDEN
        assert answer_of(post_json(client, {"ids": [run.pk, foreign.pk]}), 403) == FORBIDDEN
    assert seen_ids() == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_anonymous_are_refused_without_a_look(name: str) -> None:
    make_run(run_by=None)

    with CaptureQueriesContext(connection) as queries:
        response = Client().generic("POST" if name == "mark_seen" else "GET", url(name))

    assert answer_of(response, 403) == FORBIDDEN
    assert len(queries) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["ModelBackend", "AllowAllUsersModelBackend"])
def test_who_is_not_active_any_more_is_refused(
    user: User, settings: Any, name: str, backend: str
) -> None:
    path = f"django.contrib.auth.backends.{backend}"
    settings.AUTHENTICATION_BACKENDS = [path]
    client = Client()
    client.force_login(user, path)
    User.objects.update(is_active=False)

    response = client.generic("POST" if name == "mark_seen" else "GET", url(name))

    assert answer_of(response, 403) == FORBIDDEN


def test_where_others_are_sent_to_the_login_json_is_answered(settings: Any) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]

    for name in NAMES:
        response = Client().generic("POST" if name == "mark_seen" else "GET", url(name))
        assert answer_of(response, 403) == FORBIDDEN


# How it is asked


def test_to_mark_takes_the_token_of_the_page(user: User) -> None:
    run = make_run(run_by=user)
    client = client_of(user, enforce_csrf_checks=True)
    client.get(reverse("admin:login"))

    assert post_json(client, {"ids": [run.pk]}).status_code == 403
    assert seen_ids() == set()
    token = client.cookies["csrftoken"].value
    assert answer_of(post_json(client, {"ids": [run.pk]}, headers={"x-csrftoken": token}))


def test_to_mark_takes_the_token_where_the_site_has_no_middleware_for_it(
    user: User, settings: Any
) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    run = make_run(run_by=user)
    client = client_of(user, enforce_csrf_checks=True)

    assert post_json(client, {"ids": [run.pk]}).status_code == 403
    assert seen_ids() == set()


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("snapshot", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]),
        ("changes", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]),
        ("mark_seen", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]),
    ],
)
def test_other_methods_are_refused(
    client: Client, user: User, name: str, methods: list[str]
) -> None:
    make_run(run_by=user)

    for method in methods:
        response = client.generic(method, url(name))
        assert response.status_code == 405, method
        assert response["Allow"] == ("POST" if name == "mark_seen" else "GET, HEAD")
    assert seen_ids() == set()


def test_a_head_is_answered_without_the_runs(client: Client, user: User) -> None:
    make_run(run_by=user)

    response = client.head(url("snapshot"))

    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_known", [True, False])
def test_nobody_keeps_an_answer(user: User, name: str, is_known: bool) -> None:
    client = client_of(user) if is_known else Client()

    response = client.generic("POST" if name == "mark_seen" else "GET", url(name))

    assert "no-store" in response["Cache-Control"]
    assert "private" in response["Cache-Control"]
    assert "Cookie" in response["Vary"]


@pytest.mark.parametrize("name", NAMES)
def test_a_view_takes_part_in_no_transaction_of_the_request(name: str) -> None:
    view = resolve(url(name)).func

    assert view.__name__ == name
    assert connection.alias in view._non_atomic_requests


def test_what_is_marked_is_so_where_each_request_is_a_transaction(
    client: Client, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(run_by=user)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    with CaptureQueriesContext(connection) as queries:
        assert answer_of(post_json(client, {"ids": [run.pk]}))["ids"] == [run.pk]

    assert [query["sql"] for query in queries if "SAVEPOINT" in query["sql"]] == []
    assert seen_ids() == {run.pk}


@pytest.mark.parametrize("number", range(7))
def test_runs_are_read_from_where_they_are_written(
    client: Client, user: User, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Behind:
        def db_for_read(self, model: type, **hints: Any) -> str | None:
            return "replica" if model is TaskRunRecord else None

    run = make_run(run_by=user)
    method, address, options = requests_for(str(run.pk))[number]
    monkeypatch.setattr(router, "routers", [Behind()])

    response = getattr(client, method)(address, **options)

    assert response.status_code == 200


# How many queries that takes


@pytest.mark.parametrize("number", [1, 30])
def test_the_number_of_statements_is_fixed(
    client: Client, user: User, number: int, django_assert_num_queries: Any
) -> None:
    runs = make_runs(number, run_by=user)
    ids = list(TaskRunRecord.objects.values_list("pk", flat=True))
    text = ",".join(map(str, ids))

    # Session and user, then: the runs.
    with django_assert_num_queries(3):
        answer_of(client.get(url("snapshot")))
    with django_assert_num_queries(3):
        answer_of(client.get(url("snapshot", ids=text)))
    with django_assert_num_queries(4):
        answer_of(client.get(url("snapshot", ids=text, display=1)))
    with django_assert_num_queries(3):
        answer_of(client.get(url("changes")))
    # Whose they are, the mark, and which are seen.
    with django_assert_num_queries(5):
        answer = answer_of(post_json(client, {"ids": ids}))
    assert len(answer["ids"]) == len(runs)


def test_no_message_tells_what_is_for_staff(client: Client, user: User) -> None:
    secrets = {name: f"the {name}" for name in ("exception", "traceback", "reason", "worker")}
    make_run(run_by=user, state=State.FAILURE, args=["the args"], result="the result", **secrets)

    texts = [client.get(url(name)).content.decode() for name in ("snapshot", "changes")]

    kept = chain(secrets.values(), ["the args", "the result"])
    assert [secret for secret in kept if any(secret in text for text in texts)] == []
