"""What pages that follow their runs are told, and the output and progress they show."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation

from celery_admin_runner.admin import live
from celery_admin_runner.models import TaskRunOutput, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_superuser, make_user

pytestmark = pytest.mark.django_db

HTML = "<script>alert(1)</script>"
#: The parts of the page that follow the run.
PARTS = ("head", "progress", "outcome", "details", "dependencies")
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="\w+"')


def url(view: str, *args: object, **query: object) -> str:
    address = reverse(f"admin:celery_admin_runner_taskrunrecord_{view}", args=args)
    return f"{address}?{urlencode(query)}" if query else address


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def add_output(run: TaskRunRecord, *texts: str, stream: str = "stdout", start: int = 1) -> None:
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=number, stream=stream, text=text)
        for number, text in enumerate(texts, start)
    )


def answer_of(client: Client, run: TaskRunRecord, **query: object) -> dict[str, Any]:
    response = client.get(url("live", run.pk, **query))
    assert response.status_code == 200
    return response.json()


def text_of(client: Client, run: TaskRunRecord) -> str:
    response = client.get(url("change", run.pk))
    assert response.status_code == 200
    return response.content.decode()


def squeezed(html: str) -> str:
    """Return HTML without what differs from one answer to the next: the masks of the token."""
    return TOKEN.sub("", html)


@pytest.fixture
def auditor() -> Client:
    return client_of(make_user("view_taskrunrecord", username="auditor"))


# What is told of a run


def test_the_answer_tells_state_times_and_progress(auditor: Client) -> None:
    start = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    run = make_run(
        state=State.SUCCESS,
        created_at=start,
        started_at=start + timedelta(seconds=1),
        finished_at=start + timedelta(seconds=3.5),
        progress_current=3,
        progress_total=10,
        progress_message="third",
    )

    answer = answer_of(auditor, run)

    assert (answer["state"], answer["label"], answer["finished"]) == ("SUCCESS", "Succeeded", True)
    assert datetime.fromisoformat(answer["times"]["started"]["iso"]) == run.started_at
    assert answer["times"]["created"]["text"] == "Jan. 31, 2026, 1:30 p.m."
    assert answer["times"]["duration"] == {"iso": "P0DT00H00M02.500000S", "text": "2.5 s"}
    assert answer["progress"] == {"current": 3, "total": 10, "message": "third"}


def test_what_has_not_happened_is_null(auditor: Client) -> None:
    answer = answer_of(auditor, make_run(state=State.PENDING))

    assert answer["finished"] is False
    assert answer["progress"] is None
    assert [name for name, moment in answer["times"].items() if moment] == ["created"]
    assert (answer["output"], answer["last_seq"], answer["more"]) == ([], 0, False)


def test_the_answer_is_in_the_language_of_the_user(auditor: Client) -> None:
    run = make_run(state=State.STARTED)

    with translation.override("de"):
        answer = answer_of(auditor, run)

    assert answer["label"] == "Läuft"
    assert "Läuft" in answer["fragments"]["head"]


@pytest.mark.parametrize("state", State)
def test_each_part_is_what_the_page_shows(state: State) -> None:
    client = client_of(make_superuser())
    now = timezone.now()
    run = make_run(
        state=state,
        started_at=now,
        progress_current=1,
        progress_total=2,
        exception="ValueError",
        reason="May",
        publish_error="refused",
    )

    fragments = answer_of(client, run)["fragments"]
    page = squeezed(text_of(client, run))

    assert set(fragments) == {*PARTS, "output", "notes"}
    for name in PARTS:
        assert f'<div data-live-part="{name}">{squeezed(fragments[name])}</div>' in page


def test_the_token_of_a_button_in_the_answer_is_valid() -> None:
    user = make_superuser()
    run = make_run(run_by=user, state=State.UNSENT, args=["********"])
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    visible = make_run(run_by=user, state=State.UNSENT, args=[1])

    head = answer_of(client, visible)["fragments"]["head"]
    found = re.search(r'csrfmiddlewaretoken" value="(\w+)"', head)
    assert found
    response = client.post(url("send_again", run.pk), {"csrfmiddlewaretoken": found[1]})

    assert response.status_code == 302


# New output


def test_the_output_after_a_piece_is_told(auditor: Client) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, "one\n", "two\n")
    add_output(run, "three\n", stream="stderr", start=3)
    add_output(make_run(), "another's", start=9)

    answer = answer_of(auditor, run, after=1)

    assert answer["output"] == [
        {"seq": 2, "stream": "stdout", "text": "two\n"},
        {"seq": 3, "stream": "stderr", "text": "three\n"},
    ]
    assert (answer["last_seq"], answer["more"]) == (3, False)
    assert answer["fragments"]["output"] == (
        '<span class="run-piece run-piece-stdout" data-seq="2">two\n</span>'
        '<span class="run-piece run-piece-stderr" data-seq="3">three\n</span>'
    )
    assert answer_of(auditor, run, after=3)["output"] == []
    assert answer_of(auditor, run, after=3)["last_seq"] == 3


def test_much_output_is_told_in_several_answers(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PART_MAX_LENGTH", 10)
    run = make_run(state=State.STARTED)
    texts = ["12345678", "x" * 30, "", "a", "b", "c" * 9, "d"]
    add_output(run, *texts)

    told: list[str] = []
    rounds = 0
    after, more = 0, True
    while more:
        answer = answer_of(auditor, run, after=after)
        told += [piece["text"] for piece in answer["output"]]
        after, more = answer["last_seq"], answer["more"]
        rounds += 1

    assert told == texts
    assert rounds == 3


def test_many_pieces_are_told_in_several_answers(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PART_MAX_PIECES", 2)
    run = make_run(state=State.STARTED)
    add_output(run, "a", "b", "c")

    first = answer_of(auditor, run)
    second = answer_of(auditor, run, after=2)

    assert [piece["text"] for piece in first["output"]] == ["a", "b"]
    assert (first["more"], second["more"]) == (True, False)


@pytest.mark.parametrize("after", ["", "x", "-1", "1.5", "٣", "9" * 19, "9" * 5000, "1 OR 1"])
def test_what_is_no_number_of_a_piece_is_refused(auditor: Client, after: str) -> None:
    run = make_run()

    response = auditor.get(url("live", run.pk, after=after))

    assert response.status_code == 400
    assert "after" in response.json()["errors"]["__all__"][0]


@pytest.mark.parametrize("after", ["0", "007", str(2**63 - 1)])
def test_every_number_of_a_piece_is_taken(auditor: Client, after: str) -> None:
    assert auditor.get(url("live", make_run().pk, after=after)).status_code == 200


def test_notes_of_what_was_left_out_are_told_again(auditor: Client) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, "one")
    add_output(run, "left out", stream="note", start=2)
    add_output(run, "three", start=3)

    answer = answer_of(auditor, run, after=3)

    assert answer["output"] == []
    assert answer["fragments"]["notes"] == (
        '<span class="run-piece run-piece-note" data-seq="2">left out</span>'
    )
    assert answer_of(auditor, run, after=1)["fragments"]["notes"] == ""


def test_html_in_the_output_is_text(auditor: Client) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, HTML)

    assert "&lt;script&gt;" in answer_of(auditor, run)["fragments"]["output"]
    assert HTML not in text_of(auditor, run)
    assert "&lt;script&gt;" in text_of(auditor, run)


# Who may see it, and what it costs


@pytest.mark.parametrize("view", ["live", "output"])
def test_who_sees_the_page_sees_what_it_asks_for(view: str) -> None:
    owner = make_user("run_celerytask")
    run = make_run(run_by=owner)
    codes = [
        client_of(user).get(url(view, run.pk)).status_code
        for user in (owner, make_user("view_taskrunrecord"), make_user("run_celerytask"))
    ]

    assert codes == [200, 200, 404]
    assert client_of(make_user()).get(url(view, run.pk)).status_code == 403
    assert client_of(make_superuser()).get(url(view, 999999)).status_code == 404
    assert client_of(make_superuser()).get(url(view, "x")).status_code == 404


def test_who_is_not_logged_in_is_told_so_in_json() -> None:
    run = make_run()

    for address in (url("live", run.pk), url("live_list", ids=run.pk)):
        response = Client().get(address)
        assert response.status_code == 403
        assert response.json()["errors"]
        assert "no-store" in response["Cache-Control"]
    assert "/login/" in Client().get(url("output", run.pk))["Location"]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_it_is_only_read(method: str) -> None:
    run = make_run()
    client = client_of(make_superuser())

    for address in (url("live", run.pk), url("live_list", ids=run.pk), url("output", run.pk)):
        assert getattr(client, method)(address).status_code == 405


def test_it_is_never_cached(auditor: Client) -> None:
    run = make_run()

    for address in (url("live", run.pk), url("live_list", ids=run.pk), url("output", run.pk)):
        assert "no-store" in auditor.get(address)["Cache-Control"]


def test_an_answer_is_four_queries_at_most_beside_the_user() -> None:
    user = make_user("run_celerytask", "cancel_taskrunrecord", "retry_taskrunrecord")
    run = make_run(state=State.CANCELLING, run_by=user, cancel_requested_by=user)
    add_output(run, *("x" for _ in range(100)))
    others = re.compile(r"django_session|auth_permission|auth_user_groups|FROM .?auth_user. WHERE")
    client = client_of(user)

    with CaptureQueriesContext(connection) as queries:
        answer_of(client, run, after=50)

    # The run and who cancels it (which counts as a user above), its output, its notes, and
    # how many runs it waits for, or wait for it.
    assert len([query for query in queries if not others.search(query["sql"])]) == 4
    assert len(queries) <= 9


# The list


def test_the_list_is_told_of_its_runs() -> None:
    now = timezone.now()
    started = make_run(state=State.STARTED, started_at=now)
    done = make_run(started_at=now - timedelta(seconds=2), finished_at=now)
    client = client_of(make_superuser())

    runs = client.get(url("live_list", ids=f"{started.pk},{done.pk}")).json()["runs"]

    assert runs[str(started.pk)]["state"] == "STARTED"
    assert runs[str(started.pk)]["finished"] is False
    assert runs[str(started.pk)]["cells"]["took"] == "–"
    assert runs[str(done.pk)]["finished"] is True
    assert runs[str(done.pk)]["cells"]["took"] == "2.0 s"
    assert "run-state-success" in runs[str(done.pk)]["cells"]["state_column"]
    columns = {"state_column", "earliest_start", "started", "took"}
    assert set(runs[str(done.pk)]["cells"]) == columns


def test_the_list_is_told_only_of_runs_that_its_user_may_see() -> None:
    user = make_user("run_celerytask")
    own, other = make_run(run_by=user), make_run()

    runs = client_of(user).get(url("live_list", ids=f"{own.pk},{other.pk}")).json()["runs"]

    assert set(runs) == {str(own.pk)}
    assert client_of(make_user()).get(url("live_list", ids=own.pk)).status_code == 403


def test_the_list_is_one_query_beside_the_user(auditor: Client) -> None:
    ids = ",".join(str(make_run(state=State.STARTED).pk) for _ in range(5))

    with CaptureQueriesContext(connection) as queries:
        auditor.get(url("live_list", ids=ids))

    ours = [
        query["sql"] for query in queries if "celery_admin_runner_taskrunrecord" in query["sql"]
    ]
    assert len([sql for sql in ours if "auth_permission" not in sql]) == 1
    assert not re.search(r"\bargs\b", ours[-1])


@pytest.mark.parametrize("ids", ["x", "1,x", "-1", "1,,2", "9" * 19, ""])
def test_what_are_no_numbers_of_runs_is_refused(auditor: Client, ids: str) -> None:
    assert auditor.get(url("live_list") + f"?ids={ids}").status_code == 400


def test_the_list_is_told_of_so_many_runs_at_most(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LIST_MAX", 2)
    ids = ",".join(str(make_run().pk) for _ in range(3))

    assert len(auditor.get(url("live_list", ids=ids)).json()["runs"]) == 2


def test_only_unfinished_runs_of_the_list_are_followed(auditor: Client) -> None:
    running, _done = make_run(state=State.STARTED), make_run()

    page = auditor.get(url("changelist")).content.decode()

    assert re.findall(r'data-live-run="(\d+)"', page) == [str(running.pk)]
    assert f'data-url="{url("live_list")}"' in page


# The page


def test_an_unfinished_run_is_followed_from_the_output_that_is_shown(auditor: Client) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, "one", start=1795268221000000)

    page = text_of(auditor, run)

    assert f'data-url="{url("live", run.pk)}" data-after="1795268221000000"' in page
    assert 'id="run-live"' not in text_of(auditor, make_run())


def test_numbers_for_the_script_are_written_without_separators(
    auditor: Client, settings: Any
) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    run = make_run(pk=1234567, state=State.STARTED, progress_current=12345, progress_total=1234567)
    add_output(run, "one", start=1795268221000000)

    page = text_of(auditor, run) + auditor.get(url("changelist")).content.decode()

    assert 'data-after="1795268221000000"' in page
    assert 'data-seq="1795268221000000"' in page
    assert 'value="12345" max="1234567"' in page
    assert "12,345 / 1,234,567" in page
    assert 'data-live-run="1234567"' in page
    assert "/1234567/live/" in page


def test_the_page_shows_the_end_of_much_output(
    auditor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PART_MAX_LENGTH", 10)
    run = make_run()
    add_output(run, "first\n", "second\n", "third\n")

    page = text_of(auditor, run)

    assert "first" not in page
    assert ">second\n</span>" in page
    assert page.index("second") < page.index("third")
    assert '<span id="run-output-cut">' in page
    assert f'href="{url("output", run.pk)}"' in page


def test_all_of_little_output_is_shown(auditor: Client) -> None:
    run = make_run()
    add_output(run, "first\n")

    page = text_of(auditor, run)

    assert '<span id="run-output-cut" hidden>' in page
    assert '<div class="module run-output" id="run-output">' in page


def test_no_output_is_not_shown(auditor: Client) -> None:
    assert 'id="run-output" hidden>' in text_of(auditor, make_run())


def test_the_complete_output_is_a_file_of_plain_text(auditor: Client) -> None:
    run = make_run()
    add_output(run, "grün\n", HTML, "end")

    response = auditor.get(url("output", run.pk))

    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert response["Content-Disposition"] == f'attachment; filename="run-{run.pk}.txt"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response.content.decode() == f"grün\n{HTML}end"


def test_a_run_that_nobody_has_heard_of_says_so(auditor: Client) -> None:
    long_ago = datetime(2020, 1, 31, 12, 30, tzinfo=UTC)
    lost = make_run(state=State.STARTED, created_at=long_ago, started_at=long_ago)
    page = text_of(auditor, lost)

    assert "Nobody has heard of this run since Jan. 31, 2020, 1:30 p.m.:" in page
    for other in (make_run(state=State.STARTED, started_at=timezone.now()), make_run()):
        assert "Nobody has heard" not in text_of(auditor, other)


PROGRESS = re.compile(r"<progress[^>]*>")


def test_progress_is_a_bar_with_its_text(auditor: Client) -> None:
    run = make_run(
        state=State.STARTED, progress_current=3, progress_total=10, progress_message="third"
    )

    page = text_of(auditor, run)

    assert PROGRESS.findall(page) == ['<progress value="3" max="10" aria-label="Progress">']
    assert "3 / 10 third" in page
    assert "30 %" in page


def test_progress_of_an_unknown_total_is_shown_as_running(auditor: Client) -> None:
    run = make_run(state=State.STARTED, progress_current=3, progress_message="files")

    assert PROGRESS.findall(text_of(auditor, run)) == ['<progress aria-label="Progress">']


def test_a_finished_run_of_an_unknown_total_is_not_shown_as_running(auditor: Client) -> None:
    page = text_of(auditor, make_run(progress_current=3, progress_message="files"))

    assert PROGRESS.findall(page) == []
    assert "3 files" in page


def test_a_run_without_progress_has_no_bar(auditor: Client) -> None:
    assert "run-progress" not in text_of(auditor, make_run(state=State.STARTED))


@pytest.mark.parametrize("state", [State.FAILURE, State.RETRY, State.CANCELLING, State.REVOKED])
def test_an_exception_that_is_kept_as_the_result_is_not_shown_as_one(
    auditor: Client, state: State
) -> None:
    run = make_run(state=state, result={"exc_type": "ValueError"})

    assert "exc_type" not in text_of(auditor, run)


def test_what_only_some_runs_have_is_shown(auditor: Client) -> None:
    run = make_run(
        state=State.STARTED,
        periodic_task_name="every night",
        custom_state="UPLOADING",
        heartbeat_at=datetime(2026, 1, 31, 12, 30, tzinfo=UTC),
    )

    page = text_of(auditor, run)

    for text in ("every night", "UPLOADING", "Jan. 31, 2026, 1:30 p.m."):
        assert text in page
    for name in ("periodic_task_name", "custom_state", "heartbeat_at"):
        assert f"field-{name}" not in text_of(auditor, make_run())


def test_a_run_is_linked_with_what_started_it_and_what_it_started(auditor: Client) -> None:
    root = make_run(label="root")
    parent = make_run(label="parent", parent_id=root.task_id, root_id=root.task_id)
    run = make_run(
        parent_id=parent.task_id, root_id=root.task_id, started_at=timezone.now(), label="middle"
    )
    child = make_run(label="child", parent_id=run.task_id, root_id=root.task_id)

    page = text_of(auditor, run)

    for label, other in (("First of all", root), ("Started by", parent), ("Has started", child)):
        link = f'<a href="{url("change", other.pk)}">{other.label} ({other.task_id})</a>'
        row = rf"<label>{label}:</label>\s*<div class=\"readonly\">{re.escape(link)}"
        assert re.search(row, page)


def test_a_root_that_is_the_parent_is_linked_once(auditor: Client) -> None:
    root = make_run(label="root")
    run = make_run(parent_id=root.task_id, root_id=root.task_id)

    page = text_of(auditor, run)

    assert page.count(url("change", root.pk)) == 1
    assert "Started by:" in page


def test_runs_of_others_are_not_linked_as_family() -> None:
    user = make_user("run_celerytask")
    root = make_run(label="theirs")
    own = make_run(run_by=user, parent_id=root.task_id, started_at=timezone.now())
    make_run(parent_id=own.task_id, label="theirs too")

    assert "theirs" not in text_of(client_of(user), own)
