"""The runs about an object, and its tasks, in the admin of whatever model it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import Model
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone
from import_export.admin import ExportActionMixin, ImportExportModelAdmin

from celery_admin_runner.admin import RunHistoryAdmin
from celery_admin_runner.admin.history_runs import RUNS_PER_PAGE
from celery_admin_runner.admin.history_selected import SelectedObjects
from celery_admin_runner.admin.periodic import PeriodicTaskRunMixin
from celery_admin_runner.admin.questions import MAX_SELECTED
from celery_admin_runner.admin.runs import TaskRunRecordAdmin
from celery_admin_runner.admin.tasks import CeleryTaskAdmin
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_runs, make_superuser, make_user
from tests.models import Coin, OldReport, Parcel, Remark, Report

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
ON_COMMIT = pytest.mark.django_db(transaction=True)

VIEW = "tests.view_report"
CHANGE = "tests.change_report"
BUILD = "tests.model_task_models.Report.build"
SHOUT = "tests.model_task_models.Report.shout"
HIDDEN = "Hidden"
#: A template for the change page that a project may have.
OTHER_TEMPLATE = "admin/import_export/change_form.html"


class ReportAdmin(RunHistoryAdmin):
    """Hides some reports."""

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).exclude(title=HIDDEN)


#: A site that has all of it.
SITE = admin.AdminSite(name="shop")
SITE.register(Report, ReportAdmin)
SITE.register([Parcel, Coin, Remark], RunHistoryAdmin)
SITE.register(CeleryTask, CeleryTaskAdmin)
SITE.register(TaskRunRecord, TaskRunRecordAdmin)
#: A site that has neither the journal nor the tasks.
SMALL_SITE = admin.AdminSite(name="small")
SMALL_SITE.register([Report, OldReport, Parcel], RunHistoryAdmin)
urlpatterns = [
    path("admin/", admin.site.urls),
    path("shop/", SITE.urls),
    path("small/", SMALL_SITE.urls),
]


@pytest.fixture(autouse=True)
def selection_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name tasks for selected reports; in other tests a check would tell that there are none."""
    names = ("tests.export_reports", "tests.send_reports", "tests.there_is_no_such")
    monkeypatch.setattr(ReportAdmin, "selection_tasks", names)


def url(view: str, *args: object, model: str = "report", site: str = "shop") -> str:
    return reverse(f"{site}:tests_{model}_{view}", args=args)


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def make_report(title: str = "June") -> Report:
    return Report.objects.create(title=title)


def about(obj: Model) -> dict[str, Any]:
    """Return the fields of a run about an object."""
    return {"content_type": ContentType.objects.get_for_model(obj), "object_id": str(obj.pk)}


@pytest.fixture
def operator() -> User:
    return make_user("run_celerytask", "view_taskrunrecord", CHANGE, username="ada")


@pytest.fixture
def client(operator: User) -> Client:
    return client_of(operator)


def url_of_form(task_name: str) -> str:
    return reverse("shop:celery_admin_runner_celerytask_run", args=[task_name])


def finish() -> None:
    """Let every run have succeeded."""
    TaskRunRecord.objects.update(state=State.SUCCESS, finished_at=timezone.now(), active_key=None)


def export_by_key(reports) -> None:  # type: ignore[no-untyped-def]
    """Write the reports of these keys to one file."""


def export_one(report: int) -> None:
    """Write one report to a file."""


def registered(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Have a task of this name for one test."""
    # A shared task would come with each app that a later test makes.
    app.task(function, name=name, lazy=False, shared=False)
    yield name
    app.tasks.pop(name)


@pytest.fixture
def export_task() -> Iterator[str]:
    def export(reports: list[Report]) -> None:
        """Write the reports to one file."""

    yield from registered("tests.export_reports", export)


@pytest.fixture
def send_task() -> Iterator[str]:
    def send(reports: list[Report], to: str) -> None:
        """Send the reports to somebody."""

    yield from registered("tests.send_reports", send)


def told_by(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def run_url(obj: Model, task: str = "build", model: str = "report") -> str:
    name = f"tests.model_task_models.{type(obj).__name__}.{task}"
    return url("run_task", quote(obj.pk), name, model=model)


def answer(client: Client, shown: Any, **data: Any) -> Any:
    """Press the button of a page that asks."""
    context = shown.context
    items = context.get("items") or []
    given = {
        "_confirmed": context.get("digest"),
        "known": context.get("known"),
        "task": context["choice"].task.name if "choice" in context else "",
        "_selected_action": [item.obj.pk for item in items],
        **data,
    }
    return client.post(context["form_url"], given, follow=True)


def ask_selected(client: Client, *objects: Model, model: str = "report", **data: Any) -> Any:
    keys = [obj.pk for obj in objects]
    data = {"action": "run_task_for_selected", "_selected_action": keys, **data}
    return client.post(url("changelist", model=model), data, follow=True)


def choose(client: Client, shown: Any, task: str) -> Any:
    """Choose a task for the selected objects."""
    keys = [obj.pk for obj in shown.context["objects"]]
    return client.post(shown.context["form_url"], {"_selected_action": keys, "task": task})


# The page with the runs


def test_the_page_shows_the_runs_of_the_object_newest_first(client: Client) -> None:
    report = make_report()
    old = make_run(**about(report), task_name=BUILD, reason="Audit", state=State.FAILURE)
    new = make_run(**about(report), label="Again")
    make_run(**about(make_report()))

    page = client.get(url("runs", report.pk))

    shown = page.context["runs"]
    assert [item.run.pk for item in shown] == [new.pk, old.pk]
    assert [item.task for item in shown] == ["tests.tasks.add", "Build the report"]
    for text in ("<title>June | Runs", "Audit", "Again", "run-state-failure", "2 runs"):
        assert text in page.text
    assert f"/shop/celery_admin_runner/taskrunrecord/{old.pk}/change/" in page.text
    assert "June › Runs" in page.text


def test_the_page_says_that_there_is_no_run(client: Client) -> None:
    page = client.get(url("runs", make_report().pk))

    assert "There is no run about this object yet that you can see." in page.text
    assert "run-items" not in page.text


def test_the_page_shows_only_runs_that_the_user_may_see() -> None:
    user = make_user("run_celerytask", VIEW)
    report = make_report()
    own = make_run(**about(report), run_by=user)
    make_run(**about(report), run_by=make_user())

    page = client_of(user).get(url("runs", report.pk))

    assert [item.run.pk for item in page.context["runs"]] == [own.pk]


def test_the_page_has_a_fixed_number_of_queries_and_of_runs(client: Client) -> None:
    few, many = make_report(), make_report()
    make_runs(2, **about(few), task_name=BUILD)
    make_runs(RUNS_PER_PAGE + 2, **about(many), state=State.STARTED)
    client.get(url("runs", few.pk))

    with CaptureQueriesContext(connection) as for_few:
        client.get(url("runs", few.pk))
    with CaptureQueriesContext(connection) as for_many:
        page = client.get(url("runs", many.pk))

    # Where one page holds all of them they are not counted.
    assert len(for_many) == len(for_few) + 1 <= 9
    assert len(page.context["runs"]) == RUNS_PER_PAGE
    assert "?p=2" in page.text
    assert len(client.get(url("runs", many.pk), {"p": "2"}).context["runs"]) == 2


@pytest.mark.parametrize(
    ("permissions", "code"),
    [([VIEW], 200), ([CHANGE], 200), (["view_taskrunrecord", "run_celerytask"], 403)],
)
def test_the_page_is_for_who_sees_the_object(permissions: list[str], code: int) -> None:
    client = client_of(make_user(*permissions))

    response = client.get(url("runs", make_report().pk))

    assert response.status_code == code


@pytest.mark.parametrize("key", ["9999", "x", "9" * 30])
def test_an_object_that_is_not_there_or_hidden_is_not_found(client: Client, key: str) -> None:
    hidden = make_report(HIDDEN)

    for pk in (key, hidden.pk):
        assert client.get(url("runs", pk)).status_code == 404
        assert client.get(url("run_task", pk, BUILD)).status_code == 404
        assert client.post(url("run_task", pk, BUILD)).status_code == 404


def test_an_unfinished_run_is_followed_by_who_has_the_journal() -> None:
    report = make_report()
    make_run(**about(report), state=State.STARTED, run_by=make_user())
    viewer = make_user("view_taskrunrecord", VIEW)

    page = client_of(viewer).get(url("runs", report.pk))
    elsewhere = client_of(viewer).get(url("runs", report.pk, site="small"))

    assert "data-live-run" in page.text
    assert "/shop/celery_admin_runner/taskrunrecord/live/" in page.text
    assert "data-live-run" not in elsewhere.text
    assert "Running" in elsewhere.text


@pytest.mark.parametrize("model", [Parcel, Coin])
def test_a_primary_key_may_be_a_uuid_or_any_text(client: Client, model: type[Model]) -> None:
    obj = model(title="Old one")
    if model is Coin:
        obj.pk = "a/b_c ü?#"
    obj.save(force_insert=True)
    run = make_run(**about(obj))
    name = model._meta.model_name
    user = make_user("run_celerytask", "view_taskrunrecord", f"tests.change_{name}")
    client = client_of(user)

    change = client.get(url("change", quote(obj.pk), model=str(name)))
    page = client.get(change.context["run_history"]["url"])
    shown = client.get(run_url(obj, "shout", model=str(name)))

    assert [item.run.pk for item in page.context["runs"]] == [run.pk]
    assert change.context["run_history"]["url"] in change.text
    assert getattr(obj.pk, "hex", obj.pk) in shown.context["preview"].args
    answer(client, shown)
    assert TaskRunRecord.objects.for_object(obj).count() == 2


# The buttons


def test_the_change_page_links_to_the_runs_and_offers_the_tasks(client: Client) -> None:
    report = make_report()

    page = client.get(url("change", report.pk))

    offers = {offer.title: offer.url for offer in page.context["run_history"]["offers"]}
    assert offers["Build the report"] == run_url(report)
    assert list(offers) == ["Archive", "Build the report", "Hand in", "Load", "Shout", "Verify"]
    assert page.text.index("Run: Build the report") < page.text.index('class="historylink"')
    assert url("runs", report.pk) in page.text


def test_a_model_without_tasks_has_just_the_page_with_the_runs() -> None:
    remark = Remark.objects.create(run=make_run())
    client = client_of(make_user("run_celerytask", "tests.change_remark"))

    page = client.get(url("change", remark.pk, model="remark"))
    listed = client.get(url("changelist", model="remark"))

    assert page.context["run_history"]["offers"] == []
    assert url("runs", remark.pk, model="remark") in page.text
    assert "run_task_for_selected" not in listed.text
    assert client.get(url("runs", remark.pk, model="remark")).status_code == 200


@pytest.mark.parametrize(
    ("permissions", "may_run"),
    [
        (["run_celerytask", CHANGE], True),
        (["run_celerytask", VIEW], False),
        (["view_celerytask", "view_taskrunrecord", CHANGE], False),
        (["run_celerytask"], False),
    ],
)
def test_a_task_is_for_who_may_change_the_object_and_run_the_task(
    permissions: list[str], may_run: bool
) -> None:
    report = make_report()
    shown = client_of(make_user("run_celerytask", CHANGE)).get(run_url(report))
    client = client_of(make_user(*permissions))

    pages = client.get(url("change", report.pk)), client.get(url("runs", report.pk))
    asked = client.get(run_url(report))
    forged = client.post(run_url(report), {"_confirmed": shown.context["digest"]})

    assert {"Run: Build" in page.text for page in pages} == {may_run}
    assert (url("runs", report.pk) in pages[0].text) is (pages[0].status_code == 200)
    assert asked.status_code == (200 if may_run else 403)
    assert forged.status_code == (302 if may_run else 403)
    assert TaskRunRecord.objects.exists() is may_run


def test_a_rule_that_the_user_does_not_meet_hides_the_button(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={BUILD: {"groups": ["Finance"]}, "*": {}})
    report = make_report()

    page = client.get(url("change", report.pk))

    titles = [offer.title for offer in page.context["run_history"]["offers"]]
    assert "Build the report" not in titles
    assert "Load" in titles
    assert client.get(run_url(report)).status_code == 403
    assert client.post(run_url(report)).status_code == 403


@ON_COMMIT
def test_the_button_asks_and_then_runs(client: Client, operator: User) -> None:
    report = make_report()

    shown = client.get(run_url(report, "shout"))
    assert not TaskRunRecord.objects.exists()
    response = answer(client, shown, reason=" Because ")

    run = TaskRunRecord.objects.get()
    assert SHOUT in shown.text
    assert (run.obj, run.args, run.kwargs) == (report, [report.pk], {})
    assert (run.source, run.run_by, run.reason) == ("admin", operator, "Because")
    assert run.state == State.PENDING
    assert told_by(response) == ["This is the new run."]
    assert response.redirect_chain[-1][0].endswith(
        f"/shop/celery_admin_runner/taskrunrecord/{run.pk}/change/"
    )
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.get_change_message()) == (
        str(report.pk),
        f"Run “Shout” as {run.task_id}.",
    )


@pytest.mark.parametrize("data", [{}, {"_confirmed": "forged"}])
def test_what_was_not_confirmed_is_not_run(client: Client, data: dict[str, str]) -> None:
    response = client.post(run_url(make_report(), "shout"), data)

    assert response.status_code == 200
    assert not TaskRunRecord.objects.exists()


def test_a_reason_is_asked_for_where_the_rule_says_so(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={"*": {"reason": True}})
    report = make_report()
    shown = client.get(run_url(report, "shout"))

    without = answer(client, shown, reason=" ")
    assert not TaskRunRecord.objects.exists()
    answer(client, without, reason="Audit")

    assert without.context["errors"] == "This task needs a reason."
    assert TaskRunRecord.objects.get().reason == "Audit"


@ON_COMMIT
def test_a_button_that_is_pressed_twice_asks_again(client: Client) -> None:
    report = make_report()
    shown = client.get(run_url(report, "shout"))
    answer(client, shown)
    finish()

    again = answer(client, shown)
    assert TaskRunRecord.objects.count() == 1
    answer(client, again)

    assert "Do you want one more?" in again.text
    assert TaskRunRecord.objects.count() == 2


@ON_COMMIT
def test_a_site_without_the_journal_has_no_link_to_the_run_that_was_asked_for() -> None:
    client = client_of(make_superuser())
    name = "tests.model_task_models.Report.shout"
    shown = client.get(url("run_task", make_report().pk, name, site="small"))
    answer(client, shown)
    finish()

    again = answer(client, shown)

    assert f": {TaskRunRecord.objects.get().task_id} is the new run." in again.text


@ON_COMMIT
def test_while_a_run_is_active_the_button_says_so_and_links_to_it(client: Client) -> None:
    report = make_report()
    shown = client.get(run_url(report, "shout"))
    active = report.shout.run()

    page = client.get(url("change", report.pk))
    again = answer(client, shown)

    offer = next(o for o in page.context["run_history"]["offers"] if o.title == "Shout")
    assert (offer.url, offer.active_label) == ("", "Queued")
    assert offer.active_url.endswith(
        f"/shop/celery_admin_runner/taskrunrecord/{active.pk}/change/"
    )
    assert f'href="{offer.active_url}"' in page.text
    assert "It is active already." in again.context["problem"]
    assert offer.active_url in again.text
    assert "Yes, run it" not in again.text
    assert TaskRunRecord.objects.count() == 1


@ON_COMMIT
def test_an_active_run_that_the_user_may_not_see_is_told_of_without_a_link() -> None:
    report = make_report()
    report.shout.run()
    client = client_of(make_user("run_celerytask", CHANGE))

    page = client.get(url("runs", report.pk))
    change = client.get(url("change", report.pk))
    shown = client.get(run_url(report, "shout"))

    assert "Shout: Queued" in page.text
    assert "Shout: Queued" in change.text
    assert "/taskrunrecord/" not in shown.context["problem"]
    assert page.context["runs"] == []


def test_a_run_that_was_faster_is_told_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report()
    shown = client.get(run_url(report, "shout"))
    active = report.shout.run()
    monkeypatch.setattr(SelectedObjects, "active_runs", lambda *_args: {})

    response = answer(client, shown)

    assert "It is active already." in told_by(response)[0]
    assert f"/taskrunrecord/{active.pk}/change/" in told_by(response)[0]
    assert response.redirect_chain[-1][0] == url("runs", report.pk)
    assert TaskRunRecord.objects.count() == 1


def test_of_a_task_that_is_not_unique_there_may_be_several() -> None:
    coin = Coin.objects.create(pk="euro", title="Euro")
    coin.spend.run()
    client = client_of(make_user("run_celerytask", "tests.change_coin"))

    answer(client, client.get(run_url(coin, "spend", model="coin")))

    assert TaskRunRecord.objects.for_object(coin).count() == 2


@ON_COMMIT
def test_other_arguments_do_not_keep_a_task_away_that_is_unique_by_them() -> None:
    coin = Coin.objects.create(pk="euro", title="Euro")
    client = client_of(make_user("run_celerytask", "view_taskrunrecord", "tests.change_coin"))
    coin.toss.run("tails")

    page = client.get(url("change", "euro", model="coin"))

    offer = next(o for o in page.context["run_history"]["offers"] if o.title == "Toss")
    assert (bool(offer.url), offer.active_label) == (True, "Queued")


@ON_COMMIT
def test_a_generator_of_keys_that_fails_breaks_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> str:
        raise ZeroDivisionError

    report = make_report()
    report.shout.run()
    monkeypatch.setattr(Report.shout.task, "unique_key_generator", fail)

    page = client_of(make_superuser()).get(url("change", report.pk))

    assert "Run: Shout" in page.text


@ON_COMMIT
def test_a_run_about_a_key_in_other_letters_breaks_no_page() -> None:
    coin = Coin.objects.create(pk="euro", title="Euro")
    coin.toss.run()
    # MySQL and MariaDB take the one for the other.
    TaskRunRecord.objects.update(object_id="EURO")

    page = client_of(make_superuser()).get(url("change", "euro", model="coin"))

    assert "Run: Toss" in page.text


def test_a_task_that_depends_on_one_that_the_user_may_not_run_says_so(
    client: Client, configure: Callable[..., None]
) -> None:
    load = "tests.model_task_models.Report.load"
    configure(RUNNABLE_TASKS={load: {"groups": ["Finance"]}, "*": {}})
    report = make_report()

    response = answer(client, client.get(run_url(report)))

    assert told_by(response) == [f"You are not allowed to run {load}."]
    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
def test_its_form_too_says_that_a_run_is_active(client: Client) -> None:
    report = make_report()
    active = report.shout.run()

    response = client.post(url_of_form(SHOUT), {"args-object": report.pk, "mode": "typed"})

    assert f"/shop/celery_admin_runner/taskrunrecord/{active.pk}/change/" in told_by(response)[0]
    assert "runs only once" in response.text
    assert TaskRunRecord.objects.count() == 1


@ON_COMMIT
def test_a_broker_that_is_away_is_told_of(client: Client) -> None:
    report = make_report()

    with broker_away():
        response = answer(client, client.get(run_url(report, "shout")))

    assert TaskRunRecord.objects.get().state == State.UNSENT
    assert "Not sent: " in told_by(response)[0]


def test_a_get_runs_nothing_and_csrf_is_asked_for(client: Client, operator: User) -> None:
    report = make_report()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(operator)

    assert client.get(url("run_task_for_selected")).status_code == 405
    assert client.post(url("runs", report.pk)).status_code == 405
    for address in (run_url(report), url("run_task_for_selected")):
        assert strict.post(address, {"_selected_action": report.pk}).status_code == 403
    assert not TaskRunRecord.objects.exists()


@pytest.mark.parametrize("name", ["tests.tasks.add", "tests.model_task_models.Parcel.send", "x"])
def test_only_tasks_of_the_model_can_be_run(client: Client, name: str) -> None:
    report = make_report()

    assert client.get(url("run_task", report.pk, name)).status_code == 404
    assert client.post(url("run_task", report.pk, name)).status_code == 404


# Tasks with parameters


@ON_COMMIT
def test_a_task_that_needs_arguments_leads_to_its_form_with_the_object_filled_in() -> None:
    parcel = Parcel.objects.create(title="Shoes")
    user = make_user("run_celerytask", "view_taskrunrecord", "tests.change_parcel")
    client = client_of(user)

    page = client.get(url("change", parcel.pk, model="parcel"))
    offers = {offer.title: offer.url for offer in page.context["run_history"]["offers"]}
    form = client.get(offers["Send"])
    response = client.post(
        form.context["form_url"],
        {"args-object": str(parcel.pk), "args-to": "Vienna", "mode": "typed"},
        follow=True,
    )

    run = TaskRunRecord.objects.get()
    assert f"selected>{parcel}" in form.text
    assert run.obj == parcel
    assert run in TaskRunRecord.objects.for_object(parcel)
    assert told_by(response) == ["1 task was sent."]
    assert client.get(run_url(parcel, "send", model="parcel")).url == offers["Send"]


def test_the_form_takes_no_object_that_the_site_hides(client: Client) -> None:
    hidden = make_report(HIDDEN)
    form = url_of_form(SHOUT)

    shown = client.get(f"{form}?object={hidden.pk}")
    forged = client.post(form, {"args-object": hidden.pk, "mode": "typed"})
    as_json = client.post(form, {"json-args": f"[{hidden.pk}]", "mode": "json"})

    assert HIDDEN not in shown.text
    assert (forged.status_code, as_json.status_code) == (200, 200)
    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
@pytest.mark.parametrize("task", [SHOUT, "tests.model_task_models.OldReport.burn"])
def test_who_sees_an_object_by_a_proxy_only_runs_its_tasks_there(task: str) -> None:
    client = client_of(make_user("run_celerytask", "tests.change_oldreport"))
    report = make_report()
    place = {"model": "oldreport", "site": "small"}

    answer(client, client.get(url("run_task", report.pk, task, **place)))

    assert TaskRunRecord.objects.get().task_name == task
    assert TaskRunRecord.objects.get().obj == report
    assert client.get(url("runs", report.pk, **place)).context["page"].paginator.count == 1


def test_a_site_without_the_tasks_offers_none_that_needs_arguments() -> None:
    parcel = Parcel.objects.create(title="Shoes")
    client = client_of(make_user("run_celerytask", "tests.change_parcel"))

    page = client.get(url("change", parcel.pk, model="parcel", site="small"))

    titles = [offer.title for offer in page.context["run_history"]["offers"]]
    assert "Shout" in titles
    assert "Send" not in titles
    assert page.context["run_history"]["offers"][0].url.startswith("/small/")


# Selected objects


@ON_COMMIT
def test_a_task_is_run_about_each_selected_object(client: Client, operator: User) -> None:
    first, second, busy = make_report("A"), make_report("B"), make_report("C")
    busy.shout.run()

    chosen = ask_selected(client, first, second, busy)
    shown = choose(client, chosen, SHOUT)
    assert TaskRunRecord.objects.count() == 1
    response = answer(client, shown, reason="All")

    assert [item.obj for item in shown.context["items"]] == [first, second]
    assert [item.obj for item in shown.context["left_out"]] == [busy]
    assert "2 runs, one about each of these objects" in shown.text
    runs = list(TaskRunRecord.objects.filter(run_by=operator).order_by("pk"))
    assert [run.obj for run in runs] == [first, second]
    assert {run.reason for run in runs} == {"All"}
    assert told_by(response) == ["2 runs were sent."]
    assert LogEntry.objects.count() == 2


def test_who_chooses_no_task_is_asked_again(client: Client) -> None:
    chosen = ask_selected(client, make_report())

    again = choose(client, chosen, "")

    assert "Choose a task." in again.text
    assert "Choose a task." not in chosen.text
    assert again.context["choices"]


@ON_COMMIT
def test_selected_objects_that_are_confirmed_twice_are_asked_for_again(client: Client) -> None:
    shown = choose(client, ask_selected(client, make_report("A"), make_report("B")), SHOUT)
    answer(client, shown)
    finish()

    again = answer(client, shown)

    assert "Do you want one more?" in again.text
    assert TaskRunRecord.objects.count() == 2


def test_a_reason_is_asked_for_selected_objects_where_the_rule_says_so(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={"*": {"reason": True}})
    shown = choose(client, ask_selected(client, make_report()), SHOUT)

    again = answer(client, shown)

    assert again.context["errors"] == "This task needs a reason."
    assert not TaskRunRecord.objects.exists()


def test_of_selected_objects_that_another_was_faster_with_is_told_each(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, free = make_report("Busy"), make_report("Free")
    shown = choose(client, ask_selected(client, busy, free), SHOUT)
    busy.shout.run()
    monkeypatch.setattr(SelectedObjects, "active_runs", lambda *_args: {})

    response = answer(client, shown)

    assert TaskRunRecord.objects.for_object(free).count() == 1
    assert "“Busy” was left out: " in told_by(response)[-1]


def test_a_model_admin_may_let_run_who_only_sees_its_objects(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    may_view = ReportAdmin.has_view_permission
    monkeypatch.setattr(ReportAdmin, "has_run_tasks_permission", may_view, raising=False)
    report = make_report()
    viewer = client_of(make_user("run_celerytask", VIEW))

    shown = viewer.get(run_url(report, "shout"))
    configure(RUNNABLE_TASKS=[])
    refused = ask_selected(viewer, report)

    assert "Yes, run it now" in shown.text
    assert refused.status_code == 403


def test_the_only_task_is_not_asked_for(configure: Callable[..., None], client: Client) -> None:
    configure(RUNNABLE_TASKS=["*.shout"])

    shown = ask_selected(client, make_report())

    assert shown.context["choice"].task.title == "Shout"


@ON_COMMIT
def test_one_run_takes_the_keys_of_all_selected_objects(
    client: Client, operator: User, export_task: str
) -> None:
    first, second = make_report("A"), make_report("B")
    chosen = ask_selected(client, first, second)

    shown = choose(client, chosen, export_task)
    response = answer(client, shown, reason="All")

    assert "One run for all 2." in chosen.text
    assert "One run for these 2 objects" in shown.text
    run = TaskRunRecord.objects.get()
    assert (run.task_name, run.args, run.reason) == (export_task, [[first.pk, second.pk]], "All")
    assert (run.run_by, run.source) == (operator, "admin")
    assert told_by(response) == ["This is the new run."]
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize("permissions", [["run_celerytask", VIEW], [CHANGE], ["run_celerytask"]])
def test_a_forged_request_about_selected_objects_runs_nothing(permissions: list[str]) -> None:
    report = make_report()
    allowed = client_of(make_user("run_celerytask", CHANGE))
    shown = choose(allowed, ask_selected(allowed, report), BUILD)
    client = client_of(make_user(*permissions))

    forged = answer(client, shown)
    asked = ask_selected(client, report)

    assert forged.status_code == 403
    assert "choices" not in asked.context if asked.context else asked.status_code == 403
    assert not TaskRunRecord.objects.exists()


def test_a_task_that_the_user_may_not_run_can_not_be_chosen(
    client: Client, configure: Callable[..., None], export_task: str
) -> None:
    configure(
        RUNNABLE_TASKS={BUILD: {"groups": ["Finance"]}, export_task: {"groups": ["X"]}, "*": {}}
    )
    report = make_report()

    chosen = ask_selected(client, report)
    codes = {choose(client, chosen, name).status_code for name in (BUILD, export_task, "x")}

    names = [choice.task.name for choice, _text in chosen.context["choices"]]
    assert BUILD not in names
    assert export_task not in names
    assert codes == {403}


@ON_COMMIT
def test_selected_objects_that_the_admin_hides_are_left_out(client: Client) -> None:
    hidden, shown = make_report(HIDDEN), make_report()
    page = choose(client, ask_selected(client, shown), SHOUT)

    response = answer(client, page, _selected_action=[hidden.pk, shown.pk])
    alone = answer(client, page, _selected_action=[hidden.pk, "x", "9" * 30])

    assert TaskRunRecord.objects.get().obj == shown
    assert told_by(response) == ["1 run was sent."]
    assert told_by(alone) == ["None of these objects is there any more."]


def test_a_selected_object_that_the_user_may_not_change_is_left_out(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, free = make_report("Locked"), make_report("Free")

    def may_change(self: Any, request: HttpRequest, obj: Any = None) -> bool:
        return obj is None or obj.title != "Locked"

    monkeypatch.setattr(ReportAdmin, "has_change_permission", may_change)
    page = choose(client, ask_selected(client, locked, free), SHOUT)
    answer(client, page, _selected_action=[locked.pk, free.pk])

    assert [item.obj for item in page.context["left_out"]] == [locked]
    assert TaskRunRecord.objects.get().obj == free
    assert client.get(run_url(locked)).status_code == 403


def test_too_many_are_refused_at_once(client: Client) -> None:
    Report.objects.bulk_create(Report(title="x") for _ in range(MAX_SELECTED + 1))

    response = ask_selected(client, *Report.objects.all()[:100], select_across="1")

    assert "at most 100 can be taken at once" in told_by(response)[0]


def test_the_page_about_selected_objects_has_a_fixed_number_of_queries(client: Client) -> None:
    few, many = [make_report()], [make_report() for _ in range(30)]
    for report in many[:20]:
        report.build.run()

    counts = []
    for reports in (few, few, many):
        with CaptureQueriesContext(connection) as queries:
            ask_selected(client, *reports, task=BUILD)
        counts.append(len(queries))

    assert counts[1] == counts[2] <= 20


def test_objects_whose_texts_are_made_of_others_cost_no_query_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model_admin = SITE.get_model_admin(Remark)
    monkeypatch.setattr(model_admin, "list_select_related", ["run"])
    monkeypatch.setattr(model_admin, "selection_tasks", ["tests.export_reports"])
    monkeypatch.setattr(Remark, "__str__", lambda remark: f"about {remark.run.task_name}")
    remarks = [Remark.objects.create(run=make_run()) for _ in range(12)]
    client = client_of(make_user("run_celerytask", "tests.change_remark"))

    counts = []
    for name in registered("tests.export_reports", export_by_key):
        for asked in (remarks[:1], remarks[:1], remarks):
            data = {"_selected_action": [remark.pk for remark in asked], "task": name}
            with CaptureQueriesContext(connection) as queries:
                page = client.post(url("run_task_for_selected", model="remark"), data)
            counts.append(len(queries))

    assert counts[1] == counts[2]
    assert page.text.count("about ") >= 12


def test_a_list_task_that_needs_more_leads_to_its_form(client: Client, send_task: str) -> None:
    first, second = make_report("A"), make_report("B")
    chosen = ask_selected(client, first, second)

    response = choose(client, chosen, send_task)

    assert response.status_code == 302
    assert response.url == f"{url_of_form(send_task)}?reports={first.pk}&reports={second.pk}"
    form = client.get(response.url)
    assert form.text.count(" selected>") >= 2


@pytest.mark.parametrize(
    ("function", "problem"),
    [(export_by_key, ""), (export_one, "report: Input should be a valid integer")],
)
def test_a_list_task_may_take_keys_and_one_that_takes_no_list_says_so(
    client: Client, function: Callable[..., Any], problem: str
) -> None:
    report = make_report()
    for name in registered("tests.export_reports", function):
        shown = choose(client, ask_selected(client, report), name)
        answer(client, shown)

    assert shown.context["problem"] == problem
    assert ("Yes, run it now" in shown.text) is (not problem)
    assert [run.args for run in TaskRunRecord.objects.all()] == (
        [] if problem else [[[report.pk]]]
    )


@ON_COMMIT
def test_what_waits_for_other_runs_is_told_of(client: Client) -> None:
    shown = choose(client, ask_selected(client, make_report()), BUILD)

    response = answer(client, shown)

    assert "These are run first, unless they have succeeded already: Load, Verify." in shown.text
    assert told_by(response) == ["1 run waits for others first: its page says for which."]


# Any ModelAdmin


def test_a_model_admin_may_have_no_actions_or_its_own(client: Client) -> None:
    class Silent(ReportAdmin):
        actions = None

    class Own(ReportAdmin):
        @admin.action(permissions=["view"])
        def wink(self, request: HttpRequest, queryset: Any) -> None:
            """Do nothing."""

        actions = ("wink",)

    request = RequestFactory().get("/")
    request.user = make_superuser()

    assert Silent(Report, SITE).get_actions(request) == {}
    assert {"wink", "run_task_for_selected"} <= set(Own(Report, SITE).get_actions(request))


def test_every_action_names_its_permission() -> None:
    assert RunHistoryAdmin.run_task_for_selected.allowed_permissions == ["run_tasks"]


def test_a_model_admin_may_have_templates_and_methods_of_its_own(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make_report()
    for name in ("about", "item", "ask", "protected", "run_url", "view_url", "templates", "start"):
        monkeypatch.setattr(ReportAdmin, name, None, raising=False)
    monkeypatch.setattr(ReportAdmin, "change_form_template", OTHER_TEMPLATE)

    page = client.get(url("change", report.pk))

    assert "Run: Build the report" in page.text
    assert OTHER_TEMPLATE in [template.name for template in page.templates]
    assert client.get(url("runs", report.pk)).status_code == 200


# That of import-export does not know Django 6.1's.
@pytest.mark.filterwarnings("ignore:Overriding get_actions")
def test_the_mixin_goes_with_others_that_change_the_page() -> None:
    class Both(RunHistoryAdmin, ImportExportModelAdmin, ExportActionMixin):
        """Imports and exports too."""

    class Twice(PeriodicTaskRunMixin, RunHistoryAdmin):
        """Wraps the page as well."""

        def _page_context(self, request: HttpRequest, periodic_task: Any) -> dict[str, Any]:
            return {"run_now_url": "/elsewhere/"}

    report = make_report()
    request = RequestFactory().get("/shop/")
    request.user = make_superuser()

    exporting, wrapped = Both(Report, SITE), Twice(Report, SITE)

    assert {"run_task_for_selected", "export_admin_action"} <= set(exporting.get_actions(request))
    for model_admin in (exporting, wrapped):
        page = model_admin.change_view(request, str(report.pk)).render()
        assert "Run: Build the report" in page.text
    assert "/elsewhere/" in page.text


def test_adding_and_popups_have_no_links(client: Client) -> None:
    report = make_report()
    operator = make_superuser()

    added = client_of(operator).get(url("add"))
    popup = client_of(operator).get(url("change", report.pk), {"_popup": "1"})

    assert "run_history" not in added.context
    assert "Run: Build" not in popup.text


def test_the_pages_pass_the_checks_of_admin() -> None:
    for model in (Parcel, Coin, Remark):
        assert SITE.get_model_admin(model).check() == []


def test_a_task_for_selected_objects_that_there_is_not_is_an_error(
    export_task: str, send_task: str
) -> None:
    [error] = SITE.get_model_admin(Report).check()

    assert (error.id, error.obj) == ("celery_admin_runner.E016", ReportAdmin)
    assert "'tests.there_is_no_such'" in error.msg
    assert error.hint.startswith("Did you mean") or "registered" in error.hint


def test_the_task_that_was_meant_for_selected_objects_is_named(
    export_task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReportAdmin, "selection_tasks", ["tests.export_report"])

    [error] = SITE.get_model_admin(Report).check()

    assert "'tests.export_reports'" in error.hint


def test_one_name_is_no_list_of_tasks_for_selected_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ReportAdmin, "selection_tasks", "tests.export_reports")

    [error] = SITE.get_model_admin(Report).check()

    assert (error.id, error.hint) == (
        "celery_admin_runner.E016",
        "For example ['tests.export_reports'].",
    )


def test_tasks_that_cannot_be_imported_are_not_told_of_again(
    configure: Callable[..., None],
) -> None:
    configure(APP="tests.nowhere:app")

    assert SITE.get_model_admin(Report).check() == []
