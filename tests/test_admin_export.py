"""The export page and action of the journal."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection, connections
from django.http import FileResponse
from django.test import AsyncClient, Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import translation
from import_export.formats.base_formats import CSV as CSVFormat
from import_export.signals import post_export

from celery_admin_runner.export import EXPORT_FIELDS
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_superuser, make_user

pytestmark = pytest.mark.django_db

LIST = "changelist"
CSV, TSV, JSON, HTML = range(4)


class BrokenFormat(CSVFormat):
    """A format that can't be written."""

    def export_data(self, dataset: Any, **kwargs: Any) -> str:
        raise ValueError("No table can hold this.")


def url(view: str = "export", **query: object) -> str:
    address = reverse(f"admin:celery_admin_runner_taskrunrecord_{view}")
    return f"{address}?{urlencode(query)}" if query else address


def form(*fields: str, file_format: int = CSV, **data: Any) -> dict[str, Any]:
    names = [f"taskrunrecordresource_{name}" for name in fields or EXPORT_FIELDS]
    return {"resource": "0", "format": str(file_format), **dict.fromkeys(names, "on"), **data}


def rows_of(response: Any) -> list[dict[str, str]]:
    assert response.status_code == 200
    text = response.getvalue().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def ids_of(response: Any) -> list[int]:
    return [int(row["id"]) for row in rows_of(response)]


def message() -> str:
    return LogEntry.objects.get().get_change_message()


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def auditor() -> Client:
    return client_of(make_user("view_taskrunrecord", "export_taskrunrecord", username="auditor"))


# Who may export what


@pytest.mark.parametrize(
    "permissions",
    [
        ("view_taskrunrecord", "run_celerytask", "retry_taskrunrecord", "cancel_taskrunrecord"),
        ("export_taskrunrecord",),
    ],
)
def test_exporting_needs_both_permissions(permissions: tuple[str, ...]) -> None:
    run = make_run()
    client = client_of(make_user(*permissions))
    action = {"action": "export_admin_action", "_selected_action": [run.pk]}

    assert client.get(url()).status_code == 403
    assert client.post(url(), form()).status_code == 403
    refused = client.post(url(LIST), action)
    assert "export_items" not in refused.content.decode()
    assert LogEntry.objects.count() == 0


def test_the_list_offers_the_export_to_who_may(auditor: Client) -> None:
    viewer = client_of(make_user("view_taskrunrecord"))
    make_run()

    assert (
        f'href="{url()}?state=SUCCESS"' in auditor.get(url(LIST, state="SUCCESS")).content.decode()
    )
    assert "export" not in viewer.get(url(LIST)).content.decode()


def test_who_runs_tasks_exports_only_the_own_runs() -> None:
    user = make_user("run_celerytask", "export_taskrunrecord")
    other = make_run()
    own = make_run(run_by=user)
    client = client_of(user)

    assert ids_of(client.post(url(), form())) == [own.pk]
    refused = client.post(url(), form(export_items=[other.pk]))
    assert refused.status_code == 200
    assert "Select a valid choice" in refused.content.decode()
    assert not refused.streaming


# The page


def test_the_page_offers_csv_first_and_every_column(auditor: Client) -> None:
    page = auditor.get(url()).content.decode()

    assert '<option value="0" selected>csv</option>' in page
    assert page.count('type="checkbox" name="taskrunrecordresource_') == len(EXPORT_FIELDS)


def test_the_page_without_a_column_says_so(auditor: Client) -> None:
    response = auditor.post(url(), {"resource": "0", "format": "0"})

    assert "Select at least 1 field" in response.content.decode()


def test_the_filter_and_the_search_of_the_list_hold(auditor: Client) -> None:
    make_run(state=State.FAILURE, task_name="bank.close")
    make_run(task_name="shop.close")
    wanted = make_run(state=State.FAILURE, task_name="shop.close")
    address = url(state="FAILURE", q="shop.", o="-3", p="1")
    page = auditor.get(address).content.decode()
    action = re.search(r'<form action="([^"]*)" method="post" class="run-export"', page)
    assert action is not None

    response = auditor.post(action[1].replace("&amp;", "&"), form())

    assert ids_of(response) == [wanted.pk]


def test_a_filter_that_can_not_be_read_exports_nothing(auditor: Client) -> None:
    make_run()

    response = auditor.post(url(state="NO"), form(), follow=True)

    assert "This filter can’t be read" in response.content.decode().replace("&#x27;", "’")
    assert LogEntry.objects.count() == 0


def test_the_columns_are_those_that_were_ticked(auditor: Client) -> None:
    run = make_run()

    rows = rows_of(auditor.post(url(), form("task_id", "state")))

    assert rows == [{"task_id": run.task_id, "state": "SUCCESS"}]


def test_the_file_is_csv_named_by_what_and_when(auditor: Client) -> None:
    response = auditor.post(url(), form())

    assert response.streaming
    assert not isinstance(response, FileResponse)
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(
        r'attachment; filename="TaskRunRecord-\d{4}-\d\d-\d\d.csv"',
        response["Content-Disposition"],
    )


@pytest.mark.parametrize("file_format", [CSV, TSV, JSON, HTML])
def test_formulas_are_escaped_in_every_format(auditor: Client, file_format: int) -> None:
    make_run(reason="=1+1", exception="<b>")

    response = auditor.post(url(), form("reason", "exception", file_format=file_format))

    text = response.getvalue().decode()
    assert "'=1+1" in text
    assert ("<b>" in text) is (file_format != HTML)


def test_html_of_a_run_is_escaped_on_the_page(auditor: Client) -> None:
    page = auditor.get(url(q="<script>x")).content.decode()

    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


@override_settings(EXPORT_FORMATS=[CSVFormat, BrokenFormat])
def test_a_format_that_can_not_hold_the_runs_says_so(auditor: Client) -> None:
    response = auditor.post(url(), form(file_format=1))

    assert "No table can hold this." in response.content.decode()


# The action


def test_a_selection_is_exported(auditor: Client) -> None:
    runs = make_runs(5)
    selected = [runs[1].pk, runs[3].pk]
    page = auditor.post(
        url(LIST, state="SUCCESS"),
        {"action": "export_admin_action", "_selected_action": selected},
    )
    hidden = re.findall(r'name="export_items" value="(\d+)"', page.content.decode())
    assert sorted(map(int, hidden)) == selected

    response = auditor.post(url(state="SUCCESS"), form(export_items=hidden))

    assert ids_of(response) == selected[::-1]
    assert "2 selected runs" in page.content.decode()
    assert f"state=SUCCESS; selected: {', '.join(hidden)}" in message()


def test_a_selected_run_that_has_moved_on_is_exported_still(auditor: Client) -> None:
    run = make_run(state=State.PENDING)
    TaskRunRecord.objects.update(state=State.STARTED)

    response = auditor.post(url(state="PENDING"), form(export_items=[run.pk]))

    assert ids_of(response) == [run.pk]


@pytest.mark.parametrize("junk", ["x", "999999", "1\x00"])
def test_a_selection_of_what_is_no_run_is_an_error(auditor: Client, junk: str) -> None:
    response = auditor.post(url(), form(export_items=[make_run().pk, junk]))

    assert not response.streaming
    assert response.status_code == 200


def test_select_all_is_a_redirect_with_the_filter_and_names_no_run(auditor: Client) -> None:
    make_runs(150)
    failed = make_runs(101, state=State.FAILURE)
    selected = [run.pk for run in failed[1:]]

    response = auditor.post(
        url(LIST, state="FAILURE", q="tests."),
        {
            "action": "export_admin_action",
            "_selected_action": selected,
            "select_across": "1",
        },
    )

    assert response.status_code == 302
    assert parse_qs(urlsplit(response["Location"]).query) == {
        "state": ["FAILURE"],
        "q": ["tests."],
    }
    page = auditor.get(response["Location"])
    assert b"export_items" not in page.content
    exported = auditor.post(response["Location"], form("id"))
    assert ids_of(exported) == [run.pk for run in reversed(failed)]


def test_no_key_of_a_run_is_read_to_check_a_selection(auditor: Client) -> None:
    runs = make_runs(20)

    with CaptureQueriesContext(connection) as queries:
        auditor.post(url(), form(export_items=[runs[0].pk])).getvalue()

    unbounded = [
        query["sql"]
        for query in queries
        if 'FROM "celery_admin_runner_taskrunrecord"' in query["sql"]
        and "LIMIT" not in query["sql"]
        and " IN (" not in query["sql"]
    ]
    assert unbounded == []


@pytest.mark.parametrize("query", [{}, {"state": "FAILURE", "q": "tests."}, {"q": "nothing"}])
def test_nothing_is_counted_to_export_runs(auditor: Client, query: dict[str, str]) -> None:
    make_runs(3, state=State.FAILURE)

    with CaptureQueriesContext(connection) as queries:
        auditor.get(url(**query))
        auditor.post(url(**query), form()).getvalue()

    assert [query["sql"] for query in queries if "COUNT(" in query["sql"].upper()] == []


@override_settings(IMPORT_EXPORT_SKIP_ADMIN_ACTION_EXPORT_UI=True)
def test_the_page_can_be_skipped_by_the_action(auditor: Client) -> None:
    runs = make_runs(3)

    response = auditor.post(
        url(LIST), {"action": "export_admin_action", "_selected_action": [runs[0].pk]}
    )

    assert ids_of(response) == [runs[0].pk]
    assert f"selected: {runs[0].pk}" in message()


@override_settings(IMPORT_EXPORT_SKIP_ADMIN_EXPORT_UI=True)
def test_the_page_can_be_skipped(auditor: Client) -> None:
    run = make_run()

    assert ids_of(auditor.get(url())) == [run.pk]


# The trace it leaves


def test_an_export_leaves_its_filter_and_the_number_of_rows(auditor: Client) -> None:
    make_runs(3, state=State.FAILURE)
    make_run()

    response = auditor.post(url(state="FAILURE"), form())

    assert message() == "Export started: CSV; state=FAILURE"
    rows_of(response)
    assert message() == "Exported 3 runs: CSV; state=FAILURE"
    entry = LogEntry.objects.get()
    assert entry.user.get_username() == "auditor"
    assert entry.action_flag == CHANGE
    assert entry.content_type.model_class() is TaskRunRecord


def test_the_other_formats_leave_the_same(auditor: Client) -> None:
    make_run()

    auditor.post(url(), form(file_format=JSON))

    assert message() == "Exported 1 run: JSON; no filter"


@pytest.mark.django_db(transaction=True)
def test_an_export_that_the_client_leaves_says_how_far_it_came(auditor: Client) -> None:
    make_runs(250)
    response = auditor.post(url(), form())
    parts = iter(response)
    next(parts)
    next(parts)

    response.close()

    assert message() == "Export stopped after 100 rows: CSV; no filter"


def test_the_trace_is_in_the_language_of_the_request(auditor: Client) -> None:
    response = auditor.post(url(), form())

    with translation.override("de"):
        response.getvalue()

    assert message() == "Exported 0 runs: CSV; no filter"


def test_the_pages_of_the_admin_show_the_trace(auditor: Client) -> None:
    auditor.post(url(), form()).getvalue()

    assert auditor.get(reverse("admin:index")).status_code == 200


def test_post_export_is_sent(auditor: Client) -> None:
    models = []

    def receiver(model: Any, **kwargs: Any) -> None:
        models.append(model)

    post_export.connect(receiver)
    try:
        auditor.post(url(), form())
        auditor.post(url(), form(file_format=JSON))
    finally:
        post_export.disconnect(receiver)

    assert models == [TaskRunRecord, TaskRunRecord]


@pytest.mark.django_db(transaction=True)
def test_each_batch_is_read_when_it_is_asked_for(auditor: Client) -> None:
    make_runs(250)
    response = auditor.post(url(), form())
    parts = iter(response)

    with CaptureQueriesContext(connection) as header:
        next(parts)
    with CaptureQueriesContext(connection) as first:
        next(parts)
    response.close()

    assert len(header) == 0
    assert len([query for query in first if "task_name" in query["sql"]]) == 1


# Under ASGI


@pytest.mark.django_db(transaction=True)
def test_under_asgi_the_file_is_the_same() -> None:
    make_runs(250)
    user = make_superuser()

    async def export() -> bytes:
        client = AsyncClient()
        await client.aforce_login(user)
        response = await client.post(url(), form())
        assert response.is_async
        whole = b"".join([part async for part in response])
        await sync_to_async(connections.close_all)()
        return whole

    text = asyncio.run(export()).decode()

    assert len(list(csv.DictReader(io.StringIO(text, newline="")))) == 250
    assert message() == "Exported 250 runs: CSV; no filter"


@pytest.mark.django_db(transaction=True)
def test_under_asgi_a_client_that_leaves_ends_the_export() -> None:
    make_runs(300, traceback="x" * 50_000)
    client = client_of(make_superuser())
    page = client.get(url())
    body = urlencode(form(csrfmiddlewaretoken=page.context["csrf_token"])).encode()
    cookies = "; ".join(f"{name}={cookie.value}" for name, cookie in client.cookies.items())
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": url(),
        "query_string": b"",
        "headers": [
            (b"host", b"testserver"),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"content-length", str(len(body)).encode()),
            (b"cookie", cookies.encode()),
        ],
    }

    async def leave() -> None:
        server = ApplicationCommunicator(get_asgi_application(), scope)
        await server.send_input({"type": "http.request", "body": body})
        assert (await server.receive_output(10))["status"] == 200
        while len((await server.receive_output(10))["body"]) < 1000:
            pass
        await server.send_input({"type": "http.disconnect"})
        await server.wait(10)

    asyncio.run(leave())

    assert re.fullmatch(r"Export stopped after \d+ rows: CSV; no filter", message())


def test_the_place_in_the_list_is_no_filter_of_an_export(client: Client) -> None:
    client.force_login(make_superuser())
    runs = make_runs(2)
    query = {"state": "SUCCESS", "before": "1769862601123456-7"}

    page = client.get(url(**query))
    response = client.post(url(**query), form("id"))

    exported = b"".join(response.streaming_content).decode().split()
    assert page.context["filter"] == "state=SUCCESS"
    assert {int(cell) for cell in exported[1:]} == {run.pk for run in runs}
    assert "before" not in LogEntry.objects.get().change_message
