"""Running periodic tasks by hand from django-celery-beat's admin, and who may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone

from celery_admin_runner.admin.periodic import PeriodicTaskRunMixin
from celery_admin_runner.admin.questions import MAX_SELECTED
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.periodic import beat_models, make_periodic
from tests.typed_tasks import as_task, greet

pytestmark = pytest.mark.django_db
ON_COMMIT = pytest.mark.django_db(transaction=True)

ADD = "tests.tasks.add"
ELSEWHERE = "elsewhere.tasks.count"
VIEW = "django_celery_beat.view_periodictask"
CHANGE = "django_celery_beat.change_periodictask"
#: Django's own admin of the periodic tasks on a site without our journal.
SITE = admin.AdminSite(name="schedules")


class PlainAdmin(PeriodicTaskRunMixin, admin.ModelAdmin):
    """A project's own ModelAdmin, which knows nothing of django-celery-beat's."""

    actions = ("run_tasks",)
    change_form_template = None


SITE.register(beat_models.PeriodicTask, PlainAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("schedules/", SITE.urls)]


def url(view: str, *args: object, site: str = "admin") -> str:
    return reverse(f"{site}:django_celery_beat_periodictask_{view}", args=args)


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> User:
    return make_user("run_celerytask", VIEW, username="ada")


@pytest.fixture
def client(operator: User) -> Client:
    return client_of(operator)


def told_by(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def answer(client: Client, shown: Any, **data: Any) -> Any:
    """Press the button of a page that asks."""
    context = shown.context
    items = context.get("items") or []
    data = {
        "_selected_action": [item.periodic_task.pk for item in items],
        "_confirmed": context["digest"],
        "known": context["known"],
        **data,
    }
    return client.post(context["form_url"], data, follow=True)


def run_now(client: Client, periodic_task: Any, **data: Any) -> Any:
    return answer(client, client.get(url("run_now", periodic_task.pk)), **data)


def ask_selected(client: Client, *periodic_tasks: Any, **data: Any) -> Any:
    keys = [task.pk for task in periodic_tasks]
    return client.post(
        url("changelist"), {"action": "run_tasks", "_selected_action": keys, **data}, follow=True
    )


# One periodic task


@ON_COMMIT
def test_the_button_asks_and_then_runs(client: Client, operator: User) -> None:
    periodic_task = make_periodic(args=[1], kwargs={"b": 5}, priority=3)
    page = client.get(url("change", periodic_task.pk))

    shown = client.get(page.context["run_now_url"])
    assert not TaskRunRecord.objects.exists()
    response = answer(client, shown, reason=" Because ")

    run = TaskRunRecord.objects.get()
    assert (shown.context["asked"].preview.args, "priority" in shown.text) == ("[\n  1\n]", True)
    assert "Its schedule stays as it is." in shown.text
    assert "This is the new run." in told_by(response)
    assert response.redirect_chain[-1][0].endswith(f"/taskrunrecord/{run.pk}/change/")
    assert (run.source, run.run_by, run.reason) == ("periodic", operator, "Because")
    entry = LogEntry.objects.get()
    assert entry.object_id == str(periodic_task.pk)
    assert entry.get_change_message() == f"Run now as {run.task_id}."


@ON_COMMIT
def test_a_button_that_is_pressed_twice_asks_again(client: Client) -> None:
    periodic_task = make_periodic(args=[1])
    shown = client.get(url("run_now", periodic_task.pk))
    answer(client, shown)

    again = answer(client, shown)
    assert TaskRunRecord.objects.count() == 1
    answer(client, again)

    assert "Do you want one more?" in again.text
    assert TaskRunRecord.objects.count() == 2


@ON_COMMIT
def test_a_page_that_shows_what_has_changed_since_is_shown_again(client: Client) -> None:
    periodic_task = make_periodic(args=[1])
    shown = client.get(url("run_now", periodic_task.pk))
    beat_models.PeriodicTask.objects.update(args="[2]")

    again = answer(client, shown)

    assert again.context["asked"].preview.args == "[\n  2\n]"
    assert not TaskRunRecord.objects.exists()


@pytest.mark.parametrize("data", [{}, {"_confirmed": "forged"}, {"_confirmed": "ä"}])
def test_what_was_not_confirmed_is_not_run(client: Client, data: dict[str, str]) -> None:
    periodic_task = make_periodic(args=[1])

    response = client.post(url("run_now", periodic_task.pk), data)

    assert response.status_code == 200
    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
def test_a_reason_is_asked_for_where_the_rule_says_so(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={"*": {"reason": True, "confirm": True}})
    periodic_task = make_periodic(args=[1])

    without = run_now(client, periodic_task, reason=" ")
    assert not TaskRunRecord.objects.exists()
    answer(client, without, reason="Audit")

    assert without.context["errors"] == "This task needs a reason."
    assert TaskRunRecord.objects.get().reason == "Audit"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"args": "[1"}, "args: This is no valid JSON"),
        ({"kwargs": "[]"}, "kwargs: This must be a JSON object."),
        ({"args": '["<b>x"]'}, "a: "),
        ({"expires": timezone.now()}, "expires: It has expired"),
        ({"task": "celery.backend_cleanup"}, "The settings do not allow to run this task."),
    ],
)
def test_what_can_not_be_run_is_told_why(
    client: Client, fields: dict[str, Any], text: str
) -> None:
    periodic_task = make_periodic(args=[1])
    beat_models.PeriodicTask.objects.update(**fields)

    shown = client.get(url("run_now", periodic_task.pk))
    forged = client.post(url("run_now", periodic_task.pk), {"_confirmed": "x"})

    assert shown.context["asked"].problems[0].startswith(text)
    assert "Yes, run it" not in shown.text
    assert "<b>x" not in shown.text
    assert forged.status_code == 200
    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
@pytest.mark.parametrize("name", [ADD, ELSEWHERE])
def test_a_broker_that_is_away_is_told_of_and_the_run_can_be_sent_again(
    client: Client, name: str
) -> None:
    with broker_away():
        response = run_now(client, make_periodic(name, args=[1]))

    assert TaskRunRecord.objects.get().state == State.UNSENT
    assert "Not sent: " in told_by(response)[0]
    client.post(response.context["send_again_url"])
    assert TaskRunRecord.objects.get().state == State.PENDING


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"enabled": False}, "It is disabled"),
        ({"one_off": True}, "It is a one-off task"),
        ({"task": ELSEWHERE}, "No task of this name is registered here"),
        ({}, None),
    ],
)
def test_the_page_notes_what_is_to_be_known(
    client: Client, fields: dict[str, Any], note: str | None
) -> None:
    periodic_task = make_periodic(**{"args": [1], **fields})

    shown = client.get(url("run_now", periodic_task.pk))

    notes = shown.context["asked"].notes
    assert (notes[0].startswith(note) if note else notes == []) is True
    assert "Yes, run it" in shown.text


def test_secrets_are_masked_on_the_page(client: Client) -> None:
    kwargs = {"path": "/x", "password": "hunter2"}
    headers = '{"my_token": "hunter3"}'
    periodic_task = make_periodic("tests.tasks.tell_secret", kwargs=kwargs, headers=headers)

    shown = client.get(url("run_now", periodic_task.pk))

    assert MASK in shown.text
    assert "hunter" not in shown.text


# Who may


@pytest.mark.parametrize(
    ("permissions", "may_run"),
    [
        (["run_celerytask", VIEW], True),
        (["run_celerytask", CHANGE], True),
        (["view_celerytask", "view_taskrunrecord", CHANGE], False),
        ([VIEW], False),
    ],
)
def test_run_now_is_for_who_runs_tasks_and_sees_periodic_tasks(
    permissions: list[str], may_run: bool
) -> None:
    periodic_task = make_periodic(args=[1])
    client = client_of(make_user(*permissions))

    page = client.get(url("change", periodic_task.pk))
    listed = client.get(url("changelist"))

    assert ("Run now" in page.text) is may_run
    assert ("run_tasks" in listed.text) is may_run
    asked = client.get(url("run_now", periodic_task.pk))
    assert asked.status_code == (200 if may_run else 403)


@pytest.mark.parametrize("permissions", [[VIEW], [CHANGE], ["run_celerytask"], []])
def test_a_forged_request_of_who_may_not_runs_nothing(permissions: list[str]) -> None:
    periodic_task = make_periodic(args=[1])
    digest = client_of(make_user("run_celerytask", VIEW)).get(url("run_now", periodic_task.pk))
    confirmed = {"_confirmed": digest.context["digest"], "_selected_action": periodic_task.pk}
    client = client_of(make_user(*permissions))

    codes = {
        client.post(url("run_now", periodic_task.pk), confirmed).status_code,
        client.post(url("run_now_selected"), confirmed).status_code,
    }
    ask_selected(client, periodic_task)

    assert codes == {403}
    assert not TaskRunRecord.objects.exists()


def test_a_rule_that_the_user_does_not_meet_hides_the_button(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={"*": {"groups": ["Finance"]}})
    periodic_task = make_periodic(args=[1])

    page = client.get(url("change", periodic_task.pk))
    asked = client.get(url("run_now", periodic_task.pk))
    selected = ask_selected(client, periodic_task)

    assert "Run now" not in page.text
    assert asked.status_code == 403
    assert selected.context["left_out"][0].problems == ["You are not allowed to run this task."]


def test_what_is_not_runnable_has_no_button(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS=[])
    periodic_task = make_periodic(args=[1])

    assert "Run now" not in client.get(url("change", periodic_task.pk)).text


def test_a_get_runs_nothing_and_csrf_is_asked_for(client: Client, operator: User) -> None:
    periodic_task = make_periodic(args=[1])
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(operator)

    assert client.get(url("run_now_selected")).status_code == 405
    assert strict.post(url("run_now", periodic_task.pk)).status_code == 403
    assert not TaskRunRecord.objects.exists()


@pytest.mark.parametrize("key", ["9999", "x", "9" * 30])
def test_a_periodic_task_that_is_not_there_is_not_found(client: Client, key: str) -> None:
    response = client.get(url("run_now", key))

    assert response.status_code in {302, 404}


# Several


@ON_COMMIT
def test_several_are_run_after_a_page_that_shows_them(client: Client) -> None:
    good = make_periodic(args=[1])
    other = make_periodic(ELSEWHERE, name="elsewhere", enabled=False)
    bad = make_periodic(name="bad", args=["x"])
    gone = make_periodic("celery.backend_cleanup", name="celery.backend_cleanup")

    shown = ask_selected(client, good, other, bad, gone)
    response = answer(client, shown, reason="All")

    assert [item.periodic_task for item in shown.context["items"]] == [good, other]
    assert [item.periodic_task for item in shown.context["left_out"]] == [bad, gone]
    runs = TaskRunRecord.objects.order_by("pk")
    assert [run.periodic_task_name for run in runs] == ["hourly", "elsewhere"]
    assert {run.reason for run in runs} == {"All"}
    assert told_by(response) == ["2 runs were sent."]
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize("digest", ["", "forged"])
def test_several_that_were_not_confirmed_are_not_run(client: Client, digest: str) -> None:
    shown = ask_selected(client, make_periodic(args=[1]), make_periodic(name="b", args=[2]))

    again = answer(client, shown, _confirmed=digest)

    assert len(again.context["items"]) == 2
    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
def test_several_that_are_confirmed_twice_are_asked_for_again(client: Client) -> None:
    shown = ask_selected(client, make_periodic(args=[1]), make_periodic(name="b", args=[2]))
    answer(client, shown)

    again = answer(client, shown)

    assert "Do you want one more?" in again.text
    assert TaskRunRecord.objects.count() == 2


def test_one_of_several_that_needs_a_reason_asks_for_it(
    client: Client, configure: Callable[..., None]
) -> None:
    configure(RUNNABLE_TASKS={ADD: {"reason": True}, "*": {}})
    shown = ask_selected(client, make_periodic(args=[1]), make_periodic(ELSEWHERE, name="b"))

    again = answer(client, shown)

    assert again.context["errors"] == "One of these tasks needs a reason."
    assert not TaskRunRecord.objects.exists()


def test_one_that_its_admin_hides_from_the_user_is_not_run(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, shown = make_periodic(args=[1], name="hidden"), make_periodic(args=[2])
    model_admin = admin.site.get_model_admin(beat_models.PeriodicTask)

    def sees(request: HttpRequest, obj: Any = None) -> bool:
        return obj is None or obj.name != "hidden"

    monkeypatch.setattr(model_admin, "has_view_or_change_permission", sees)

    page = ask_selected(client, hidden, shown)

    assert [item.periodic_task for item in page.context["items"]] == [shown]
    assert client.get(url("run_now", hidden.pk)).status_code == 403


def test_too_many_are_refused_at_once(client: Client) -> None:
    every = make_periodic(args=[1]).interval
    beat_models.PeriodicTask.objects.bulk_create(
        beat_models.PeriodicTask(name=f"t{number}", task=ADD, interval=every)
        for number in range(MAX_SELECTED)
    )

    response = ask_selected(client, *beat_models.PeriodicTask.objects.all(), select_across="1")

    assert "at most 100 can be taken at once" in told_by(response)[0]


# Its runs


def test_its_page_shows_its_runs_as_far_as_the_user_may_see_them(operator: User) -> None:
    periodic_task = make_periodic(args=[1])
    mine = make_run(run_by=operator, periodic_task_name="hourly", source="periodic")
    make_run(periodic_task_name="hourly", source="periodic")
    make_run(run_by=operator, periodic_task_name="daily", source="periodic")
    address = url("change", periodic_task.pk)

    own = client_of(operator).get(address)
    everyone = client_of(make_user(VIEW, "view_taskrunrecord")).get(address)
    nobody = client_of(make_user(VIEW)).get(address)

    assert [run.pk for run in own.context["periodic_runs"]] == [mine.pk]
    assert len(everyone.context["periodic_runs"]) == 2
    assert "Recent runs" not in nobody.text


def test_the_page_leads_to_the_journal_and_back(operator: User) -> None:
    periodic_task = make_periodic(name="close & go")
    run = make_run(periodic_task_name="close & go", source="periodic")
    make_run()
    client = client_of(make_user(VIEW, "view_taskrunrecord"))

    page = client.get(url("change", periodic_task.pk))
    journal = client.get(page.context["all_runs_url"])
    run_page = client.get(page.context["periodic_runs"][0].url)

    assert [shown.pk for shown in journal.context["cl"].result_list] == [run.pk]
    links = {link.text: link.url for link in run_page.context["links"]}
    assert links["close & go"] == url("change", periodic_task.pk)
    assert links["All runs of this periodic task"] == page.context["all_runs_url"]


def test_who_may_not_see_the_periodic_task_gets_no_link_to_it() -> None:
    make_periodic()
    run = make_run(periodic_task_name="hourly")
    address = reverse("admin:celery_admin_runner_taskrunrecord_change", args=[run.pk])

    page = client_of(make_user("view_taskrunrecord")).get(address)

    assert "hourly" not in {link.text for link in page.context["links"]}


def test_the_page_takes_as_many_queries_for_many_runs_as_for_one(
    operator: User, django_assert_num_queries: Any, client: Client
) -> None:
    periodic_task = make_periodic(args=[1])
    make_run(run_by=operator, periodic_task_name="hourly")
    address = url("change", periodic_task.pk)
    client.get(address)
    with CaptureQueriesContext(connection) as few:
        client.get(address)
    for _number in range(12):
        make_run(run_by=operator, periodic_task_name="hourly")

    with django_assert_num_queries(len(few)):
        page = client.get(address)

    assert len(page.context["periodic_runs"]) == 10


# Other sites, other orders


@override_settings(ROOT_URLCONF=__name__)
@ON_COMMIT
def test_another_site_without_the_journal_runs_them_too(client: Client) -> None:
    periodic_task = make_periodic(args=[1])
    page = client.get(url("change", periodic_task.pk, site="schedules"))

    shown = client.get(page.context["run_now_url"])
    response = answer(client, shown)

    assert TaskRunRecord.objects.get().periodic_task_name == "hourly"
    assert response.redirect_chain[-1][0] == url("change", periodic_task.pk, site="schedules")
    assert "run_tasks" in client.get(url("changelist", site="schedules")).text


@override_settings(ROOT_URLCONF=__name__)
def test_the_form_to_add_one_is_as_it_was(client: Client) -> None:
    adder = client_of(make_user("run_celerytask", "django_celery_beat.add_periodictask"))

    page = adder.get(url("add"))

    assert page.status_code == 200
    assert "Run now" not in page.text


def test_beats_own_action_is_gone(rf: Any) -> None:
    request: HttpRequest = rf.get("/")
    request.user = make_user(CHANGE)

    actions = admin.site.get_model_admin(beat_models.PeriodicTask).get_actions(request)

    assert "enable_tasks" in actions
    assert "run_tasks" not in actions


ORDERS = {
    "ours first": ["django.contrib.admin", "celery_admin_runner", "django_celery_beat"],
    "beat first": ["django_celery_beat", "celery_admin_runner", "django.contrib.admin"],
    "without beat": ["django.contrib.admin", "celery_admin_runner"],
}
LOAD = """
import sys
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "import_export",
                    "django.contrib.messages", "django_celery_results", *sys.argv[1:]],
    SECRET_KEY="x", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()
from django.contrib import admin
if "django_celery_beat" not in sys.argv:
    assert not [name for name in sys.modules if name.startswith("django_celery_beat")]
else:
    from celery_admin_runner.admin.periodic import PeriodicTaskRunMixin
    from django_celery_beat.models import PeriodicTask
    from django_celery_beat.admin import PeriodicTaskAdmin
    found = admin.site.get_model_admin(PeriodicTask)
    assert isinstance(found, PeriodicTaskRunMixin) and isinstance(found, PeriodicTaskAdmin)
"""


@pytest.mark.parametrize("apps", ORDERS.values(), ids=ORDERS)
def test_the_order_of_the_apps_does_not_matter(apps: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *apps], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.returncode == 0


def test_an_admin_that_has_the_mixin_already_is_left_alone() -> None:
    site = admin.AdminSite(name="own")
    site.register(beat_models.PeriodicTask, PlainAdmin)
    from_beat = pytest.importorskip("celery_admin_runner.admin.beat")

    from_beat.add_run_now(site)
    from_beat.add_run_now(empty := admin.AdminSite(name="empty"))

    assert type(site.get_model_admin(beat_models.PeriodicTask)) is PlainAdmin
    assert not empty.is_registered(beat_models.PeriodicTask)


def test_objects_in_arguments_must_be_visible_to_the_user(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.tasks, "greet", as_task(greet))
    user = make_user()
    periodic_task = make_periodic("greet", kwargs={"user": user.pk, "groups": []})

    shown = client.get(url("run_now", periodic_task.pk))

    assert shown.context["asked"].preview is None
    assert shown.context["asked"].problems[0].startswith("user: ")


# In another language


def test_the_pages_are_german_for_who_reads_german(client: Client, settings: Any) -> None:
    settings.LANGUAGE_CODE = "de"
    first = make_periodic(name="first", args=[1, 2], enabled=False)
    second = make_periodic(name="second", args=[1, 2])
    broken = make_periodic(name="broken", args="1, 2")

    page = client.get(url("change", first.pk)).text
    one = client.get(url("run_now", first.pk)).text
    several = ask_selected(client, first, second, broken).text

    assert ">Sofort ausführen</a>" in page
    assert "Noch keine, die Sie sehen können." in page
    assert "Sie ist deaktiviert: Beat sendet sie nicht." in one
    assert "Ihr Zeitplan bleibt, wie er ist." in one
    assert ">Ja, sofort ausführen</button>" in one
    assert "Diese 2 periodischen Aufgaben werden sofort ausgeführt" in several
    assert "Das muss eine JSON-Liste sein." in several
    assert ">Ja, diese 2 sofort ausführen</button>" in several
