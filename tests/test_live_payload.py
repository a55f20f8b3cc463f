"""What the user of a run is told of it, by polling and by websocket alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import models, router
from django.test.utils import isolate_apps
from django.urls import reverse, reverse_lazy
from django.utils.timezone import now
from django.utils.translation import override
from pytest_django import DjangoAssertNumQueries

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.live import links, payload
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import FINISHED, State
from tests.celery_app import app
from tests.factories import make_run, make_runs
from tests.models import Coin, Parcel, Report, ShortReport

pytestmark = pytest.mark.django_db

HOSTILE = "<script>alert(1)</script>\"'&"
SECRETS = ("first argument", "second argument", "the error", "the way", "the printed", "the why")
#: What a link of Linked leads to, by the first argument of the run.
TARGETS: dict[str, Callable[[TaskRunRecord], Any]] = {}


class Linked(DjangoTask):
    """Tells where its result is, as the test says."""

    def get_result_url(self, run: TaskRunRecord) -> Any:
        return TARGETS[run.args[0]](run) if run.args else ""


@app.task(base=Linked, name="tests.linked")
def linked(*args: str) -> None: ...


@pytest.fixture(autouse=True)
def _no_targets() -> Iterator[None]:
    yield
    TARGETS.clear()


@pytest.fixture
def _reports_have_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (Report, Parcel, Coin):
        monkeypatch.setattr(
            model, "get_absolute_url", lambda obj: f"/pages/{obj.pk}/", raising=False
        )


def read(**filters: Any) -> list[TaskRunRecord]:
    """Return runs as the views and the consumers read them, the newest first."""
    return list(payload.with_shown_columns(TaskRunRecord.objects.filter(**filters)))


def payload_of(run: TaskRunRecord) -> payload.RunPayload:
    [read_run] = read(pk=run.pk)
    return payload.run_payload(read_run)


def changes_of(known: dict[int, str]) -> list[payload.Change]:
    return list(payload.changes(read(), known))


def version_of(run: TaskRunRecord) -> str:
    [read_run] = read(pk=run.pk)
    return payload.version_of(read_run)


def link_to(target: Any, **fields: Any) -> str:
    """Return the link to the result of a run whose task tells ``target``."""
    TARGETS["key"] = target if callable(target) else lambda run: target
    return payload_of(make_run(task_name="tests.linked", args=["key"], **fields))["url"]


def about(obj: Any) -> dict[str, Any]:
    return {"content_type": ContentType.objects.get_for_model(obj), "object_id": str(obj.pk)}


# What is told


def test_a_run_is_told_as_its_user_sees_it() -> None:
    start = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    run = make_run(
        label="Report of January",
        state=State.STARTED,
        created_at=start,
        started_at=start + timedelta(seconds=1),
        progress_current=3,
        progress_total=12,
        progress_message="third",
    )

    told = payload_of(run)

    assert (told["id"], told["task_id"], told["label"]) == (
        run.pk,
        run.task_id,
        "Report of January",
    )
    assert (told["state"], told["state_label"]) == ("STARTED", "Running")
    assert (told["finished"], told["seen"], told["url"]) == (False, False, "")
    assert told["progress"] == {"current": 3, "total": 12, "percent": 25, "message": "third"}
    assert (told["created_at"], told["started_at"], told["finished_at"]) == (
        "2026-01-31T12:30:00+00:00",
        "2026-01-31T12:30:01+00:00",
        None,
    )
    assert f'data-version="{told["version"]}"' in told["html"]


@pytest.mark.parametrize("state", State)
def test_each_state_is_told_by_its_name_and_in_words(state: State) -> None:
    told = payload_of(make_run(state=state))

    assert (told["state"], told["state_label"]) == (state.value, str(state.label))
    assert told["finished"] is (state in FINISHED)


def test_the_state_is_told_in_the_language_of_who_asks() -> None:
    run = make_run(state=State.STARTED)

    with override("de"):
        told = payload_of(run)

    assert told["state_label"] == "Läuft"
    assert "Läuft" in told["html"]


def test_nobody_is_told_arguments_errors_output_and_reasons() -> None:
    run = make_run(
        state=State.FAILURE,
        args=["first argument"],
        kwargs={"key": "second argument"},
        exception="the error",
        traceback="the way",
        publish_error="the way",
        result="the printed",
        reason="the why",
    )
    run.output.create(seq=1, stream="stdout", text="the printed")

    told = json.dumps(payload_of(run))

    assert [secret for secret in SECRETS if secret in told] == []


def test_what_nobody_is_told_is_not_even_read() -> None:
    make_run(state=State.FAILURE, traceback="long")

    [run] = read()

    assert {"args", "kwargs", "result", "exception", "traceback"} <= run.get_deferred_fields()


def test_a_run_is_told_without_further_queries(django_assert_num_queries: Any) -> None:
    make_run(state=State.FAILURE)
    [run] = read()

    with django_assert_num_queries(0):
        payload.run_payload(run)


def test_a_run_without_a_label_is_called_by_its_task() -> None:
    assert payload_of(make_run(task_name="shop.tasks.build_report"))["label"] == "Build report"


@pytest.mark.parametrize("field", ["label", "progress_message"])
def test_what_developers_write_is_escaped(field: str) -> None:
    run = make_run(state=State.STARTED, progress_current=1, **{field: HOSTILE})

    told = payload_of(run)
    step = payload.progress_message(run)

    assert "alert(1)" in told["html"]
    assert "<script" not in told["html"] + step["html"]


def test_a_hostile_name_of_a_task_is_escaped() -> None:
    assert "<script" not in payload_of(make_run(task_name=HOSTILE))["html"]


def test_a_hostile_link_is_escaped() -> None:
    TARGETS["key"] = lambda run: '/x"><script>'
    html = payload_of(make_run(task_name="tests.linked", args=["key"]))["html"]

    assert "/x&quot;&gt;" in html


# How far it is


@pytest.mark.parametrize(
    ("current", "total", "message", "percent"),
    [
        (0, 10, "", 0),
        (1, 3, "", 33),
        (10, 10, "", 100),
        (11, 10, "", 100),
        (999, 1000, "", 99),
        (5, None, "", None),
        (0, None, "begun", None),
        (0, 0, "", None),
        (2**62, 2**63 - 1, "", 50),
    ],
)
def test_progress_has_its_percent(
    current: int, total: int | None, message: str, percent: int | None
) -> None:
    run = make_run(
        state=State.STARTED,
        progress_current=current,
        progress_total=total,
        progress_message=message,
    )

    progress = payload_of(run)["progress"]

    assert progress == {
        "current": current,
        "total": total,
        "percent": percent,
        "message": message,
    }


def test_a_task_that_tells_nothing_has_no_progress() -> None:
    assert payload_of(make_run(state=State.STARTED))["progress"] is None


# Where its result is


def test_a_task_tells_where_its_result_is() -> None:
    assert link_to(lambda run: f"/reports/{run.pk - run.pk}/") == "/reports/0/"


@pytest.mark.usefixtures("_reports_have_pages")
def test_the_task_knows_better_than_the_object() -> None:
    report = Report.objects.create(title="Report")

    assert link_to("/of-the-task/", **about(report)) == "/of-the-task/"
    assert link_to("", **about(report)) == f"/pages/{report.pk}/"


@pytest.mark.usefixtures("_reports_have_pages")
@pytest.mark.parametrize("state", [*sorted(set(State) - {State.SUCCESS})])
def test_only_a_run_that_succeeded_has_a_link(state: State) -> None:
    report = Report.objects.create(title="Report")

    assert link_to("", state=state, **about(report)) == ""
    assert link_to("/of-the-task/", state=state, **about(report)) == ""


@pytest.mark.usefixtures("_reports_have_pages")
@pytest.mark.parametrize("model", [Report, Parcel, Coin])
def test_the_link_leads_to_the_object_whatever_its_key_is(model: Any) -> None:
    obj = model.objects.create(**({"code": "x y"} if model is Coin else {"title": "One"}))

    assert payload_of(make_run(**about(obj)))["url"] == f"/pages/{obj.pk}/"


def test_an_object_without_a_page_is_no_link() -> None:
    assert payload_of(make_run(**about(ShortReport.objects.create(title="One"))))["url"] == ""


@pytest.mark.parametrize(
    "link",
    [
        "/reports/1/",
        "reports/1/",
        "?page=1",
        "#there",
        "/a path/with: colons",
        "http://example.org/x",
        "HTTPS://example.org/x?a=1&b=2",
        reverse_lazy("admin:index"),
    ],
)
def test_a_link_leads_to_a_page(link: Any) -> None:
    assert link_to(link) == str(link)


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        " javascript:alert(1)",
        "\tjavascript:alert(1)",
        "java\nscript:alert(1)",
        "\x01javascript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "ftp://example.org/",
        "mailto:a@example.org",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https:evil.example",
        "http:\\\\evil.example",
        "//[broken",
        None,
        "",
        0,
    ],
)
def test_what_is_no_link_to_a_page_is_none(link: Any) -> None:
    assert link_to(link) == ""


def test_spaces_around_a_link_are_none_of_it() -> None:
    assert link_to(" https://example.org/\n") == "https://example.org/"


def failing(error: BaseException) -> Callable[[TaskRunRecord], str]:
    def fail(run: TaskRunRecord) -> str:
        raise error

    return fail


@pytest.mark.parametrize(
    "target",
    [
        lambda run: reverse("there-is-none"),
        lambda run: reverse_lazy("there-is-none"),
        lambda run: run.nothing,
        lambda run: run.obj.pk,
        failing(RuntimeError("text")),
        failing(TaskRunRecord.DoesNotExist()),
    ],
)
def test_a_link_that_fails_takes_nobodys_list_away(
    target: Any, caplog: pytest.LogCaptureFixture
) -> None:
    TARGETS.update(broken=target, whole=lambda run: "/whole/")
    runs = [make_run(task_name="tests.linked", args=[key]) for key in ("whole", "broken")]

    with caplog.at_level(logging.ERROR, "celery_admin_runner"):
        message = payload.snapshot(read())

    assert [run["url"] for run in message["runs"]] == ["", "/whole/"]
    [record] = caplog.records
    assert runs[1].task_id in record.getMessage()
    assert record.exc_info


def test_what_ends_the_process_is_not_held_up() -> None:
    with pytest.raises(SystemExit):
        link_to(failing(SystemExit()))


@pytest.mark.usefixtures("_reports_have_pages")
@pytest.mark.parametrize(
    "object_id",
    ["abc", "", "0", "-1", "1.5", "٣", str(10**30), str(2**63), "99999", "x" * 255, "NaN"],
)
def test_an_object_that_is_none_is_no_link(object_id: str) -> None:
    kind = ContentType.objects.get_for_model(Report)
    parcel = ContentType.objects.get_for_model(Parcel)
    make_run(content_type=kind, object_id=object_id)
    make_run(content_type=parcel, object_id=object_id)

    message = payload.snapshot(read())

    assert [run["url"] for run in message["runs"]] == ["", ""]


@pytest.mark.parametrize(
    ("text", "key"), [("7", 7), ("abc", None), (str(10**30), None), (str(2**63), None)]
)
def test_a_key_that_is_an_object_itself_is_the_key_of_that_one(text: str, key: int | None) -> None:
    report = models.OneToOneField(Report, models.CASCADE, primary_key=True, related_name="+")
    with isolate_apps("tests"):
        cover = type("Cover", (models.Model,), {"report": report, "__module__": "tests.models"})

    assert links._key(cover, text) == key


@pytest.mark.usefixtures("_reports_have_pages")
def test_one_object_that_is_none_keeps_no_other_away() -> None:
    report = Report.objects.create(title="Report")
    make_run(**about(report))
    make_run(**{**about(report), "object_id": "abc"})

    message = payload.snapshot(read())

    assert [run["url"] for run in message["runs"]] == ["", f"/pages/{report.pk}/"]


def test_a_run_about_a_model_that_is_gone_is_told() -> None:
    kind = ContentType.objects.create(app_label="gone", model="gone")
    TARGETS["key"] = lambda run: f"/about-{run.obj}/"
    make_run(content_type=kind, object_id="1")
    make_run(content_type=kind, object_id="1", task_name="tests.linked", args=["key"])

    message = payload.snapshot(read())

    assert [run["url"] for run in message["runs"]] == ["/about-None/", ""]


@pytest.mark.usefixtures("_reports_have_pages")
@pytest.mark.usefixtures("_reports_have_pages")
def test_objects_that_cannot_be_read_take_nobodys_list_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coin = Coin.objects.create()
    make_run(**about(coin))
    make_run(**about(Report.objects.create(title="Elsewhere")))
    monkeypatch.setattr(router, "routers", [_NowhereRouter()])

    with caplog.at_level(logging.ERROR):
        urls = [run["url"] for run in payload.snapshot(read())["runs"]]

    assert urls == ["", f"/pages/{coin.pk}/"]
    assert "is about can't be read." in caplog.text


class _NowhereRouter:
    """Looks for reports in a database that there is not."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        return "nowhere" if model is Report else None


@pytest.mark.usefixtures("_reports_have_pages")
def test_a_run_whose_task_is_gone_leads_to_its_object() -> None:
    report = Report.objects.create(title="Report")

    run = make_run(task_name="gone.tasks.build", **about(report))

    assert payload_of(run)["url"] == f"/pages/{report.pk}/"


@pytest.mark.usefixtures("_reports_have_pages")
def test_the_routers_are_asked_where_an_object_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Listening:
        def db_for_read(self, model: type, **hints: Any) -> None:
            asked.append(model)

    monkeypatch.setattr(router, "routers", [Listening()])
    report = Report.objects.create(title="Report")

    payload_of(make_run(**about(report)))

    assert Report in asked


# How many queries that takes


def make_all(number: int) -> None:
    """Make runs of every kind: about three models, gone, and of a task that tells links."""
    kind = ContentType.objects.get_for_model(Report)
    gone, _created = ContentType.objects.get_or_create(app_label="gone", model="gone")
    for count in range(number):
        make_run(**about(Report.objects.create(title="One")))
        make_run(**about(Parcel.objects.create(title="One")))
        make_run(**about(Coin.objects.create(code=str(uuid4())[:20])))
        make_run(content_type=kind, object_id=str(10_000 + count))
        make_run(content_type=gone, object_id="1")
        make_run(task_name="tests.linked", args=["key"], result="/result/")
        make_run(state=State.STARTED, **about(Report.objects.create(title="One")))


@pytest.mark.usefixtures("_reports_have_pages")
@pytest.mark.parametrize("number", [1, 5])
def test_a_snapshot_takes_one_query_and_one_for_each_model(
    number: int, django_assert_num_queries: Any
) -> None:
    TARGETS["key"] = lambda run: run.result
    make_all(number)
    payload.snapshot(read())

    # The runs, three models, and what the task that tells links looks at.
    with django_assert_num_queries(5):
        message = payload.snapshot(read())

    assert sum(run["url"] != "" for run in message["runs"]) == 4 * number


def test_where_nothing_has_changed_no_object_is_read(django_assert_num_queries: Any) -> None:
    TARGETS["key"] = lambda run: run.result
    make_all(2)
    known = {run.pk: payload.version_of(run) for run in read()}

    with django_assert_num_queries(1):
        assert changes_of(known) == []


def test_of_changes_only_the_objects_of_those_are_read(django_assert_num_queries: Any) -> None:
    make_all(2)
    known = {run.pk: payload.version_of(run) for run in read()}
    changed = [make_run(**about(Report.objects.create(title="One"))) for _ in range(2)]

    with django_assert_num_queries(2):
        messages = changes_of(known)

    assert [message["run"]["id"] for message in messages] == [changed[1].pk, changed[0].pk]


def test_what_was_read_whole_is_not_read_again(django_assert_num_queries: Any) -> None:
    TARGETS["key"] = lambda run: run.result
    run = make_run(task_name="tests.linked", args=["key"], result="/result/")

    with django_assert_num_queries(0):
        assert links.result_url(run) == "/result/"


def test_a_run_that_is_deleted_meanwhile_is_told_without_a_link() -> None:
    TARGETS["key"] = lambda run: run.result
    make_run(task_name="tests.linked", args=["key"], result="/result/")
    [run] = read()
    TaskRunRecord.objects.all().delete()

    assert payload.run_payload(run)["url"] == ""


# All at once


def test_a_snapshot_tells_the_runs_in_their_order() -> None:
    runs = [make_run() for _ in range(3)]

    message = payload.snapshot(read())

    assert message["type"] == "snapshot"
    assert [run["id"] for run in message["runs"]] == [run.pk for run in reversed(runs)]
    assert message["more"] is False


def test_a_snapshot_of_more_than_are_shown_says_so() -> None:
    make_runs(payload.RUNS_MAX)
    exactly = payload.snapshot(read())
    make_run()
    message = payload.snapshot(read())

    assert (len(exactly["runs"]), exactly["more"]) == (payload.RUNS_MAX, False)
    assert (len(message["runs"]), message["more"]) == (payload.RUNS_MAX, True)
    assert message["runs"][0]["id"] > exactly["runs"][0]["id"]


def test_a_snapshot_says_that_there_are_others_if_it_is_told_so() -> None:
    assert payload.snapshot([], more=True)["more"] is True


# What has changed


def test_who_knows_all_is_told_nothing() -> None:
    run = make_run(state=State.STARTED)

    assert changes_of({run.pk: version_of(run)}) == []


def test_a_run_that_nobody_knows_is_told_whole() -> None:
    run = make_run()

    [message] = changes_of({})

    assert (message["type"], message["run"]) == ("state", payload_of(run))


def test_progress_is_a_message_of_its_own() -> None:
    run = make_run(state=State.STARTED)
    known = {run.pk: version_of(run)}
    TaskRunRecord.objects.update(progress_current=1, progress_total=2, progress_message="half")

    [message] = changes_of(known)

    assert (message["type"], message["id"]) == ("progress", run.pk)
    assert message["progress"] == {"current": 1, "total": 2, "percent": 50, "message": "half"}
    assert message["version"] == version_of(run)
    assert "half" in message["html"]


def test_a_move_and_progress_are_one_message_of_the_state() -> None:
    run = make_run(state=State.PENDING)
    known = {run.pk: version_of(run)}
    TaskRunRecord.objects.update(state=State.STARTED, progress_current=1)

    [message] = changes_of(known)

    assert (message["type"], message["run"]["state"]) == ("state", "STARTED")
    assert message["run"]["progress"]["current"] == 1


@pytest.mark.parametrize("junk", ["", "-", "x", "0" * 12, "é-", "-".join("abcd")])
def test_who_knows_a_version_that_never_was_is_told_the_run_whole(junk: str) -> None:
    run = make_run()

    [message] = changes_of({run.pk: junk})

    assert message["type"] == "state"


def test_what_is_shown_no_more_is_gone() -> None:
    run = make_run()

    messages = changes_of({run.pk: version_of(run), run.pk + 7: "x", run.pk + 3: "y"})

    assert messages == [{"type": "gone", "ids": [run.pk + 3, run.pk + 7]}]


# Versions


@pytest.mark.parametrize(
    "change",
    [
        {"state": State.RETRY},
        {"retries": 1},
        {"label": "Other"},
        {"task_name": "tests.tasks.other"},
        {"object_id": "2"},
        {"started_at": now()},
        {"state": State.SUCCESS, "finished_at": now()},
    ],
    ids=lambda change: ",".join(change),
)
def test_each_change_is_another_version_of_the_state(change: dict[str, Any]) -> None:
    run = make_run(state=State.STARTED, object_id="1")
    before = version_of(run)
    TaskRunRecord.objects.update(**change)

    after = version_of(run)

    assert before.partition("-")[0] != after.partition("-")[0]
    assert before.partition("-")[2] == after.partition("-")[2]


def test_being_seen_is_another_version() -> None:
    run = make_run()
    before = version_of(run)
    run.mark_seen()

    assert version_of(run) != before


@pytest.mark.parametrize(
    "change",
    [{"progress_current": 2}, {"progress_total": 9}, {"progress_message": "on"}],
    ids=lambda change: ",".join(change),
)
def test_each_step_is_another_version_of_the_progress_alone(change: dict[str, Any]) -> None:
    run = make_run(state=State.STARTED)
    before = version_of(run)
    TaskRunRecord.objects.update(**change)

    after = version_of(run)

    assert before.partition("-")[0] == after.partition("-")[0]
    assert before != after


def test_what_nobody_sees_is_no_other_version() -> None:
    run = make_run(state=State.STARTED)
    before = version_of(run)
    TaskRunRecord.objects.update(heartbeat_at=now(), worker="celery@there", reason="why")

    assert version_of(run) == before


def test_fields_do_not_run_into_each_other() -> None:
    one = make_run(state=State.STARTED, label="a", task_name="bc")
    two = make_run(state=State.STARTED, label="ab", task_name="c")

    assert version_of(one) != version_of(two)


def test_a_run_in_memory_has_the_version_of_its_row() -> None:
    moment = datetime(2026, 1, 31, 13, 30, tzinfo=timezone(timedelta(hours=1)))
    run = make_run(state=State.SUCCESS, started_at=moment, finished_at=moment)

    assert payload.version_of(run) == version_of(run)


def test_a_version_is_told_by_its_columns_alone(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    run = make_run()
    row = TaskRunRecord.objects.only(*payload.VERSION_FIELDS).get(pk=run.pk)

    with django_assert_num_queries(0):
        assert payload.version_of(row) == payload.version_of(run)


def test_a_version_goes_into_an_address_as_it_is() -> None:
    version = version_of(make_run(label="é, : &"))

    assert version.replace("-", "").isalnum()
    assert version.isascii()
    assert len(version) == 25
