"""Tasks on methods of models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import uuid4

import pytest
from celery import Celery
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import connection, connections, models, transaction
from django.db.migrations.state import ProjectState
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.urls import reverse
from django.utils import timezone

from celery_admin_runner import model_tasks, unique
from celery_admin_runner.calls import signature_of
from celery_admin_runner.contexts import RunContext
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.encoding import from_plain
from celery_admin_runner.exceptions import InvalidArguments, TaskNotRunnable
from celery_admin_runner.headers import DATABASE_HEADER
from celery_admin_runner.model_tasks import model_task, model_tasks_of
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.object_tasks import ModelTask
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, State
from tests.factories import make_run, make_superuser, make_user
from tests.model_task_models import (
    Archivable,
    Coin,
    OldReport,
    Parcel,
    Report,
    ShortReport,
    Titled,
)
from tests.waiting import wait_for_state, wait_until

HERE = "tests.model_task_models"


@pytest.fixture
def report(db: None) -> Report:
    return Report.objects.create(title="Year")


def end(run: TaskRunRecord, state: State = State.SUCCESS) -> None:
    """Let a run end as a worker does."""
    moved = TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=set(State) - FINISHED, target=state, finished_at=timezone.now()
    )
    assert moved == 1
    run.refresh_from_db()


def all_runs() -> list[tuple[str, str, str]]:
    """Return method, state and source of every run."""
    rows = TaskRunRecord.objects.order_by("pk").values_list("task_name", "state", "source")
    return [(name.rpartition(".")[2], state, source) for name, state, source in rows]


def names_of(model: type[models.Model]) -> list[str]:
    return [task.name for task in model_tasks_of(model)]


# Which models have which tasks


def test_each_model_that_has_the_method_has_a_task_of_its_own():
    assert names_of(Report) == [
        f"{HERE}.Report.{name}"
        for name in ("archive", "build", "hand_in", "load", "shout", "verify")
    ]
    assert f"{HERE}.Coin.shout" in names_of(Coin)
    assert names_of(Titled) == []
    assert {task.model for task in model_tasks_of(Coin)} == {Coin}


def test_a_child_with_a_table_of_its_own_has_tasks_of_its_own(db):
    short = ShortReport.objects.create(title="Week")

    run = short.load.run()

    assert names_of(ShortReport) == [
        f"{HERE}.ShortReport.{name}" for name in ("archive", "build", "hand_in", "load", "verify")
    ]
    assert (run.task_name, run.obj) == (f"{HERE}.ShortReport.load", short)
    assert short.report_ptr.load.current() is None
    assert short.build.task.apply([short.pk]).get() == "short Week"


def test_a_method_that_is_overridden_by_a_plain_one_is_no_task(db):
    short = ShortReport.objects.create(title="Week")

    assert short.shout() == "Week"
    with pytest.raises(AttributeError, match="has no task 'shout'"):
        _ = super(ShortReport, short).shout.task
    with pytest.raises(AttributeError, match=r"has no task 'build' by Report\.build"):
        super(ShortReport, short).build.run()


def test_a_proxy_shares_the_tasks_of_its_model_but_for_its_own(report):
    old = OldReport.objects.get(pk=report.pk)

    run = old.load.run()

    assert report.load.current() == run
    assert names_of(OldReport) == [
        f"{HERE}.{name}"
        for name in (
            *("OldReport.archive", "Report.build", "OldReport.burn", "OldReport.hand_in"),
            *("Report.load", "Report.shout", "Report.verify"),
        )
    ]
    assert OldReport.hand_in.task.needs == (f"{HERE}.Report.load", f"{HERE}.OldReport.archive")
    assert old.burn.task.apply([old.pk]).get() == "OldReport burns"
    assert old.burn.run().obj == report


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def test_the_method_of_a_mixin_that_is_no_model_is_a_task_of_the_model(report):
    assert report.archive.task.apply([report.pk]).get() == f"Report {report.pk} is archived"
    with pytest.raises(AttributeError, match="Archivable has no task"):
        _ = Archivable.archive.task


def test_an_app_has_the_tasks_whenever_it_was_made():
    later = Celery("later", set_as_current=False)

    assert f"{HERE}.Report.build" in later.tasks
    later.close()


@pytest.mark.django_db
def test_the_models_of_migrations_have_no_tasks_of_their_own():
    state = ProjectState.from_apps(apps)

    old_kind = state.apps.get_model("tests", "Report")

    assert issubclass(old_kind, Archivable)
    assert old_kind is not Report
    assert model_tasks_of(old_kind) == []


@isolate_apps("tests")
def test_a_model_of_a_test_alone_has_no_tasks():
    class Alone(models.Model):
        act = model_task(act)

        def __str__(self) -> str:
            return "Alone"

    assert model_tasks_of(Alone) == []


def test_the_user_model_may_have_tasks_and_its_app_may_come_first(tmp_path):
    (tmp_path / "accounts").mkdir()
    (tmp_path / "accounts" / "__init__.py").touch()
    (tmp_path / "accounts" / "models.py").write_text(
        "from django.contrib.auth.models import AbstractUser\n"
        "from celery_admin_runner.model_tasks import model_task\n"
        "class Person(AbstractUser):\n"
        "    @model_task\n"
        "    def greet(self): pass\n"
    )
    (tmp_path / "try_it.py").write_text(
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(AUTH_USER_MODEL='accounts.Person', INSTALLED_APPS=['accounts',\n"
        "    'django.contrib.contenttypes', 'django.contrib.auth', 'celery_admin_runner'])\n"
        "django.setup()\n"
        "from accounts.models import Person\n"
        "from celery_admin_runner.model_tasks import model_tasks_of\n"
        "print([task.name for task in model_tasks_of(Person)])\n"
    )

    output = subprocess.run(
        [sys.executable, "try_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert output.stdout.strip() == "['accounts.models.Person.greet']", output.stderr


# What is refused when the class is made


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "mine"}, "can't have the option 'name'"),
        ({"bind": True}, "celery.current_task"),
        ({"base": object}, "has to be a ModelTask"),
    ],
)
def test_an_option_that_a_method_can_not_have_is_refused(options, text):
    with pytest.raises(TypeError, match=text):

        @model_task(**options)
        def act(self): ...


def _no_self(): ...


def _keywords_only(*, a): ...


def _object(self, object): ...


def _user(self, user=None): ...


def _reason(self, *, reason): ...


async def _coroutine(self): ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_no_self, "is no method"),
        (_keywords_only, "is no method"),
        (staticmethod(_no_self), "methods of an object"),
        (property(_no_self), "methods of an object"),
        (_coroutine, "is a coroutine"),
        (_object, "can't have a parameter 'object'"),
        (_user, "run\\(user=...\\) says who"),
        (_reason, "run\\(reason=...\\) says who"),
    ],
)
def test_what_can_be_no_task_on_an_object_is_refused(function, text):
    with pytest.raises(TypeError, match=text):
        model_task(function)


def make_model(**attributes: object) -> type[models.Model]:
    """Make a model of the test project, if it is let."""
    meta = type("Meta", (), {"app_label": "tests"})
    given = {"__module__": __name__, "Meta": meta, **attributes}
    return type("Refused", (models.Model,), given)


def act(self) -> None: ...


def act_on(self, target) -> None: ...


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({"a": model_task(depends_on="b")(act)}, "Refused.a depends on 'b', which is no model"),
        (
            {"a": model_task(depends_on="b")(act), "b": act},
            "Refused.a depends on 'b', which is no model task",
        ),
        ({"a": model_task(depends_on="a")(act)}, "in a circle: a -> a"),
        (
            {"a": model_task(depends_on=["b"])(act), "b": model_task(depends_on=["a"])(act)},
            "Refused depend on each other in a circle: [ab] -> [ab] -> [ab]",
        ),
        (
            {"a": model_task(depends_on="b")(act), "b": model_task(act_on)},
            "without arguments: it requires target",
        ),
        (
            {
                "pk": models.CompositePrimaryKey("x", "y"),
                "x": models.IntegerField(),
                "y": models.IntegerField(),
                "a": model_task(act),
            },
            "a primary key of several columns",
        ),
    ],
)
def test_a_model_whose_tasks_can_not_be_run_is_refused(methods, text):
    with pytest.raises(ImproperlyConfigured, match=text):
        make_model(**methods)

    assert "refused" not in apps.all_models["tests"]


# The method as a method, and as a task


def test_called_the_method_runs_here_and_now(report):
    assert report.shout(2) == "YEAR!!"
    assert Report.shout(report, marks=3) == "YEAR!!!"
    assert not TaskRunRecord.objects.exists()


def test_it_says_what_it_is(report):
    assert repr(report.build) == f"<BoundModelTask build of {report!r}>"
    assert Report.build.task is report.build.task
    assert isinstance(report.build.task, ModelTask)
    assert (report.build.title, report.load.title) == ("Build the report", "Load")


def test_a_template_shows_the_state_and_runs_nothing(report):
    report.build.run()
    template = Template(
        "{{ r.build.current.state }} {{ r.build.delay }}{{ r.build.is_processing }}"
    )

    text = template.render(Context({"r": report}))

    assert text == "WAITING True"
    assert TaskRunRecord.objects.filter(task_name=f"{HERE}.Report.build").count() == 1


def test_the_form_knows_the_object_and_the_parameters_of_the_method():
    signature = signature_of(Report.build.task)

    about, pages, cover = signature.parameters
    assert (about.name, about.annotation_text, about.is_required) == ("object", "Report", True)
    assert (pages.annotation, pages.default, pages.help_text) == (int, 1, "how many there are.")
    assert (cover.annotation_text, cover.help_text) == ("bool", "whether there is one.")
    assert signature.summary == "Write the report."


def test_arguments_that_do_not_fit_the_method_are_refused_and_nothing_is_written(report):
    with pytest.raises(InvalidArguments, match="pages"):
        report.build.run("many")
    with pytest.raises(TypeError):
        report.build.delay(1, 2)
    with pytest.raises(TypeError, match="primary key of an object"):
        report.build.task.delay()

    assert not TaskRunRecord.objects.exists()


# Running


def test_a_run_is_about_its_object(report):
    user = make_superuser()

    run = report.load.run("here", user=user, reason="asked for")

    run.refresh_from_db()
    assert (run.task_name, run.args, run.kwargs) == (
        f"{HERE}.Report.load",
        [report.pk, "here"],
        {},
    )
    assert (run.obj, run.object_id) == (report, str(report.pk))
    assert (run.run_by, run.reason, run.source) == (user, "asked for", Source.CODE)


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.delay(),
        lambda task: task.apply_async(countdown=1),
        lambda task: task.on_commit(),
        lambda task: task.task.delay(task.obj.pk),
        lambda task: task.task.apply_async(kwargs={"object": str(task.obj.pk)}),
        lambda task: TaskRunner().run(task.task.name, [task.obj.pk]),
    ],
)
@pytest.mark.parametrize("model", [Report, Coin, Parcel])
def test_however_it_is_called_the_run_is_about_the_object(db, call, model):
    fields = {"code": "one"} if model is Coin else {}
    obj = model.objects.create(title="It", **fields)

    call(obj.shout)

    run = TaskRunRecord.objects.for_object(obj).get()
    assert run.obj == obj
    assert run == obj.shout.current()
    [key] = from_plain([*run.args, *run.kwargs.values()])
    assert obj.shout.task.load(key) == obj


def test_who_asks_may_say_so(report):
    user = make_user()
    context = RunContext(user=user, label="Yearly", reason="asked for")

    report.load.apply_async(run_context=context)

    run = report.load.current()
    assert run is not None
    assert (run.run_by, run.label, run.reason, run.obj) == (user, "Yearly", "asked for", report)


def test_a_run_of_a_model_task_is_about_its_object_whatever_its_caller_says(report):
    other = Report.objects.create(title="Other")

    report.load.apply_async(run_context=RunContext(obj=other, label="Yearly"))
    run = TaskRunner().run(report.shout.task.name, [report.pk], obj=other)

    assert (report.load.current().obj, report.load.current().label) == (report, "Yearly")
    assert run.obj == report


def _saved_and_deleted() -> Report:
    report = Report.objects.create(title="Gone")
    report.delete()
    return report


@pytest.mark.parametrize("verb", ["run", "delay", "apply_async", "on_commit"])
@pytest.mark.parametrize("make", [lambda: Report(title="New"), lambda: Report(pk=5), Parcel])
def test_an_object_that_is_not_saved_has_nothing_to_run(db, verb, make):
    obj = make()

    with pytest.raises(ValueError, match="is not saved: save it before you run shout"):
        getattr(obj.shout, verb)()

    assert not TaskRunRecord.objects.exists()
    assert obj.shout.current() is None
    assert list(obj.shout.archives()) == []


def test_an_object_that_was_deleted_has_nothing_to_run(db):
    with pytest.raises(ValueError, match="is not saved"):
        _saved_and_deleted().load.run()


def test_a_user_needs_the_permissions_of_task_and_model(report):
    without_model = make_user("run_celerytask")
    without_task = make_user("tests.view_report")
    allowed = make_user("run_celerytask", "tests.view_report")

    with pytest.raises(InvalidArguments, match="may not view"):
        report.load.run(user=without_model)
    with pytest.raises(PermissionDenied):
        report.load.run(user=without_task)

    assert report.load.run(user=allowed).run_by == allowed


def test_trusted_code_runs_what_users_may_not(report, configure):
    configure(RUNNABLE_TASKS=[])

    with pytest.raises(TaskNotRunnable):
        report.load.run()
    report.load.delay()

    assert all_runs() == [("load", State.PENDING, Source.CODE)]


# One run at a time


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", ["run", "delay", "on_commit"])
def test_of_an_object_one_run_is_active_whatever_the_arguments(verb):
    report, other = Report.objects.create(title="Year"), Report.objects.create(title="Other")
    run = report.load.run("here")

    with transaction.atomic():
        again = getattr(report.load, verb)("there")

    assert (again.task_id if verb == "run" else again.id) == run.task_id
    assert report.load.current() == run
    assert other.load.run() != run


def test_when_a_run_has_ended_another_may_begin(report):
    first = report.load.run()
    end(first, State.FAILURE)

    second = report.load.run()

    assert second != first
    assert report.load.current() == second
    assert list(report.load.archives()) == [first]


def test_a_task_may_say_what_is_the_same(db):
    coin = Coin.objects.create(title="Euro", code="EUR")

    heads, tails = coin.toss.run(), coin.toss.run("tails")

    assert heads != tails
    assert coin.toss.run(side="heads") == heads
    assert coin.spend.run() != coin.spend.run()
    other = Coin.objects.create(title="Dollar", code="USD")
    assert other.toss.run() not in {heads, tails}


def test_however_its_key_is_written_an_object_is_the_same(report):
    run = report.load.run()

    assert report.load.task.delay(str(report.pk)).id == run.task_id
    assert report.load.task.apply_async(kwargs={"object": report.pk}).id == run.task_id


LONG_AGO = timezone.now() - timedelta(days=8)


@pytest.mark.parametrize(
    "fields",
    [
        {"created_at": LONG_AGO, "claimed_at": LONG_AGO},
        # As a publish leaves it that fails.
        {"active_key": None, "claimed_at": None, "publish_error": "The broker is away."},
    ],
    ids=["silent for a week", "not sent"],
)
def test_a_run_that_keeps_no_other_from_running_is_not_waited_for(report, fields):
    run = report.load.run()
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)

    waiting = report.verify.run()

    assert report.load.current() != run
    assert list(waiting.depends_on.all()) == [report.load.current()]


def test_an_object_tells_whether_it_is_being_worked_at(report):
    assert not report.load.is_processing()

    run = report.load.run()
    assert report.load.is_processing()
    assert not report.verify.is_processing()

    end(run)
    assert not report.load.is_processing()


# The history of an object


def test_an_object_has_the_runs_that_are_about_it(report):
    other = Report.objects.create(title="Other")
    runs = [report.load.run(), report.archive.run()]
    other.load.run()
    runs.append(TaskRunner().run("tests.tasks.add", [1], obj=report))

    assert list(TaskRunRecord.objects.for_object(report)) == runs[::-1]
    assert (
        list(TaskRunRecord.objects.for_object(OldReport.objects.get(pk=report.pk))) == runs[::-1]
    )
    assert not TaskRunRecord.objects.for_object(Report()).exists()
    assert not TaskRunRecord.objects.for_object(Parcel(pk=uuid4())).exists()


def test_the_history_of_an_object_is_one_query_by_its_index(report):
    report.load.run()
    runs = TaskRunRecord.objects.for_object(report)

    with CaptureQueriesContext(connection) as queries:
        assert len(runs) == 1

    assert len(queries) == 1
    if connection.vendor == "sqlite":
        assert "taskrun_by_object_idx" in runs.explain()


def test_the_page_of_a_run_names_the_object(report, client):
    client.force_login(make_superuser())
    run = report.load.run()

    page = client.get(reverse("admin:celery_admin_runner_taskrunrecord_change", args=[run.pk]))

    assert f"Report {report.pk}" in page.content.decode()


# What the worker does


def test_the_object_is_loaded_afresh(report):
    Report.objects.filter(pk=report.pk).update(title="Changed")

    assert report.shout.task.apply([report.pk], {"marks": 2}).get() == "CHANGED!!"
    assert report.shout.task.apply(kwargs={"object": report.pk}).get() == "CHANGED!"


def test_an_object_that_its_manager_hides_is_found(db):
    coin = Coin.objects.create(code="ATS", title="Schilling")

    assert coin.toss.run("tails").obj == coin
    assert coin.toss.task.apply([coin.pk, "tails"]).get() == "tails"


def test_an_object_that_is_gone_fails_with_a_text_that_says_which(report):
    task, pk = report.shout.task, report.pk
    report.delete()

    result = task.apply([pk])

    assert result.state == "FAILURE"
    assert isinstance(result.result, Report.DoesNotExist)
    assert str(result.result) == (
        f"There is no report (tests.Report) with the primary key {pk} any more."
    )


@pytest.fixture
def other_database(transactional_db: None) -> Iterator[str]:
    """The same database, by another alias."""
    connections["other"] = connection.copy("other")
    yield "other"
    connections["other"].close()
    del connections["other"]


def test_the_object_is_loaded_from_the_database_that_it_is_in(other_database, monkeypatch):
    report = Report.objects.create(title="Year")
    seen = []
    loaded = ModelTask.load
    monkeypatch.setattr(ModelTask, "load", lambda *args: seen.append(loaded(*args)) or seen[-1])
    elsewhere = Report.objects.using("other").get(pk=report.pk)

    run = elsewhere.verify.run()
    elsewhere.shout.delay()

    assert run.options == {"headers": {DATABASE_HEADER: "other"}}
    assert elsewhere.load.current().options == run.options
    assert elsewhere.shout.current().options["headers"] == {DATABASE_HEADER: "other"}
    report.shout.task.apply([report.pk], headers={DATABASE_HEADER: "other"})
    report.shout.task.apply([report.pk])
    assert [obj._state.db for obj in seen] == ["other", "default"]


def test_on_commit_is_that_of_the_database_that_the_object_is_in(other_database):
    Report.objects.create(title="Year")
    elsewhere = Report.objects.using("other").get()

    with transaction.atomic(using="other"):
        handle = elsewhere.shout.on_commit()
        assert elsewhere.shout.current() is None

    assert elsewhere.shout.current().task_id == handle.id


# Dependencies


def test_what_a_task_depends_on_is_run_first_in_order(report):
    run = report.build.run(3, cover=True, reason="asked for")

    load, verify = report.load.current(), report.verify.current()
    assert all_runs() == [
        ("load", State.UNSENT, Source.DEPENDENCY),
        ("verify", State.WAITING, Source.DEPENDENCY),
        ("build", State.WAITING, Source.CODE),
    ]
    assert set(verify.depends_on.all()) == {load}
    assert set(run.depends_on.all()) == {load, verify}
    assert {item.obj for item in (load, verify, run)} == {report}
    assert {item.reason for item in (load, verify, run)} == {"asked for"}


def test_of_two_that_are_needed_the_second_waits_for_the_first(report):
    run = report.hand_in.run()

    archive = report.archive.current()
    assert list(archive.depends_on.all()) == [report.load.current()]
    assert set(run.depends_on.all()) == {report.load.current(), archive}


@pytest.mark.parametrize("verb", ["run", "delay", "on_commit"])
def test_what_has_succeeded_is_not_run_again(report, verb):
    end(report.load.run())

    getattr(report.build, verb)()

    build = report.build.current()
    assert build.state == State.WAITING
    assert [run.task_name for run in build.depends_on.all()] == [f"{HERE}.Report.verify"]
    assert report.load.archives().count() == 0


@pytest.mark.parametrize("verb", ["run", "delay"])
def test_if_all_has_succeeded_the_task_is_sent_at_once(report, verb):
    end(report.load.run())
    end(report.verify.run())

    getattr(report.build, verb)()

    build = report.build.current()
    assert build.state in {State.UNSENT, State.PENDING}
    assert not build.depends_on.exists()


@pytest.mark.parametrize("state", sorted(FINISHED - {State.SUCCESS, State.IGNORED}))
def test_what_has_not_succeeded_at_last_is_run_again(report, state):
    end(report.load.run())
    end(report.load.run(), state)

    run = report.verify.run()

    load = report.load.current()
    assert load.state == State.UNSENT
    assert list(run.depends_on.all()) == [load]


def test_what_is_active_is_joined(report):
    load = report.load.run()

    run = report.verify.run()

    assert list(run.depends_on.all()) == [load]
    assert len(all_runs()) == 2


def test_what_is_not_unique_is_joined_too_and_runs_as_often_as_it_is_called(db):
    coin = Coin.objects.create(title="Euro", code="EUR")

    coin.miss.run()
    coin.miss.delay()

    assert [name for name, _, _ in all_runs()] == ["spend", "miss", "miss"]


def test_a_second_call_changes_nothing_of_the_first(report):
    run = report.build.run()
    before, awaited = all_runs(), set(run.depends_on.all())

    again = [report.build.run(5), report.build.delay(), report.verify.run()]

    assert (again[0], again[1].id, again[2]) == (run, run.task_id, report.verify.current())
    assert all_runs() == before
    assert set(run.depends_on.all()) == awaited


@pytest.mark.parametrize("verb", ["delay", "on_commit"])
def test_trusted_code_starts_what_is_needed_too(report, verb, configure):
    result = getattr(report.build, verb)(3)

    load, verify, build = TaskRunRecord.objects.order_by("pk")
    assert all_runs() == [
        ("load", State.UNSENT, Source.DEPENDENCY),
        ("verify", State.WAITING, Source.DEPENDENCY),
        ("build", State.WAITING, Source.CODE),
    ]
    assert (build.task_id, build.args) == (result.id, [report.pk, 3])
    assert set(build.depends_on.all()) == {load, verify}


def test_by_its_name_or_again_a_task_starts_what_it_needs_too(report):
    run = TaskRunner().run(f"{HERE}.Report.verify", [], {"object": report.pk})
    end(run, State.FAILURE)
    end(report.load.current(), State.FAILURE)

    again = TaskRunner().retry(run)

    assert list(run.depends_on.all()) == list(report.load.archives())
    assert list(again.depends_on.all()) == [report.load.current()]
    assert report.load.archives().count() == 1


def test_who_may_not_run_what_is_needed_may_not_run_the_task(report, configure):
    configure(RUNNABLE_TASKS=["*.build", "*.load"])
    user = make_user("run_celerytask", "tests.view_report")

    with pytest.raises(TaskNotRunnable, match="verify"):
        report.build.run(user=user)
    assert all_runs() == []

    configure(RUNNABLE_TASKS=None)
    end(report.load.run())
    configure(RUNNABLE_TASKS=["*.verify"])
    assert report.verify.run(user=user).run_by == user


def test_a_needed_task_that_was_skipped_at_last_is_run_again(report):
    end(report.load.run())
    end(report.verify.run())
    end(report.load.run(), State.FAILURE)
    skipped = report.verify.run()
    end(report.load.current(), State.FAILURE)
    Dispatcher().dispatch()
    skipped.refresh_from_db()
    assert skipped.state == State.IGNORED

    run = report.build.run()

    assert report.verify.current().state == State.WAITING
    assert set(run.depends_on.all()) == {report.load.current(), report.verify.current()}


def test_who_finds_the_same_call_active_at_last_has_started_nothing(report, monkeypatch):
    key = unique.key_of(report.build.task, [report.pk], {})
    start_needed = model_tasks.start_needed

    def start_while_another_is_faster(*args, **kwargs):
        needed = start_needed(*args, **kwargs)
        make_run(task_id="faster", state=State.PENDING, active_key=key)
        return needed

    monkeypatch.setattr(model_tasks, "start_needed", start_while_another_is_faster)

    result = report.build.delay()

    assert result.id == "faster"
    assert report.load.current() is None


def test_a_dependency_that_another_user_has_started_is_joined(report):
    user = make_user("run_celerytask", "tests.view_report")
    load = report.load.run(user=make_superuser())

    run = report.verify.run(user=user)

    assert list(run.depends_on.all()) == [load]


def end_with_window(run: TaskRunRecord) -> None:
    """Let a run succeed, since when others are ignored for an hour."""
    end(run)
    until = timezone.now() + timedelta(hours=1)
    TaskRunRecord.objects.filter(pk=run.pk).update(ignore_until=until)


def test_a_call_that_is_ignored_counts_as_the_success_that_it_is_ignored_for(db):
    parcel = Parcel.objects.create(title="Box")
    success = parcel.weigh.run()
    end_with_window(success)
    assert parcel.weigh.run().state == State.IGNORED
    assert parcel.weigh.current() == success
    make_run(task_name=parcel.weigh.task.name, state=State.FAILURE, obj=parcel)

    run = parcel.stamp.run()

    assert run.state == State.UNSENT
    assert not run.depends_on.exists()


@pytest.mark.parametrize("verb", ["run", "delay"])
def test_a_call_that_is_ignored_starts_nothing(db, verb):
    parcel = Parcel.objects.create(title="Box")
    end(parcel.weigh.run())
    end_with_window(parcel.stamp.run())
    end(parcel.weigh.run(), State.FAILURE)
    before = TaskRunRecord.objects.count()

    getattr(parcel.stamp, verb)()

    assert TaskRunRecord.objects.count() == before + 1
    assert TaskRunRecord.objects.first().state == State.IGNORED


def test_a_member_of_a_canvas_waits_too_and_joins_nothing(report):
    run = report.verify.run()

    report.verify.apply_async(task_id="mine")

    mine = TaskRunRecord.objects.get(task_id="mine")
    assert mine.state == State.WAITING
    assert list(mine.depends_on.all()) == list(run.depends_on.all()) == [report.load.current()]


def test_what_was_skipped_itself_is_run_again(report):
    report.build.run()
    load = report.load.current()
    TaskRunner().cancel(load)
    Dispatcher().dispatch()
    assert [state for _, state, _ in all_runs()] == [State.REVOKED, State.IGNORED, State.IGNORED]

    report.build.run()

    assert [(name, state) for name, state, _ in all_runs()[3:]] == [
        ("load", State.UNSENT),
        ("verify", State.WAITING),
        ("build", State.WAITING),
    ]


@pytest.mark.parametrize("state", sorted(FINISHED - {State.SUCCESS}))
def test_a_dependency_that_does_not_succeed_hangs_nothing(report, state):
    run = report.verify.run()

    end(report.load.current(), state)
    Dispatcher().dispatch()

    run.refresh_from_db()
    assert run.state == State.IGNORED
    assert run.active_key is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", ["run", "delay", "on_commit"])
def test_a_rollback_leaves_nothing_of_what_would_wait(verb):
    report = Report.objects.create(title="Year")

    with transaction.atomic():
        getattr(report.build, verb)()
        transaction.set_rollback(True)

    assert all_runs() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", ["run", "delay", "on_commit"])
def test_of_two_who_call_at_once_one_starts_what_is_needed(verb):
    report = Report.objects.create(title="Year")
    number = 4
    barrier = Barrier(number)

    def call(_index: int) -> None:
        try:
            barrier.wait()
            getattr(report.build, verb)()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(number) as threads:
        list(threads.map(call, range(number)))

    runs = TaskRunRecord.objects.exclude(state=State.IGNORED)
    assert sorted(_last(run.task_name) for run in runs) == ["build", "load", "verify"]
    assert set(report.build.current().depends_on.all()) == {
        report.load.current(),
        report.verify.current(),
    }


# With a real worker


def dispatched_until(condition: Callable[[], object]) -> None:
    """Send what is due until ``condition`` holds."""
    dispatcher = Dispatcher()

    def holds() -> object:
        dispatcher.dispatch()
        return condition()

    wait_until(holds, why=lambda: f"{all_runs()}")


def test_a_worker_runs_the_method_and_all_that_it_depends_on_in_order(worker, tmp_path):
    report = Report.objects.create(title="Year", folder=str(tmp_path))
    run = report.build.run(3, cover=True, reason="asked for")
    Report.objects.filter(pk=report.pk).update(title="Month")

    dispatched_until(lambda: not report.build.is_processing())

    run.refresh_from_db()
    lines = ["load", "verify", f"build 3 True Month {run.task_id} asked for"]
    assert run.state == State.SUCCESS
    assert (tmp_path / "notes").read_text().splitlines() == lines
    assert run.complete_output().splitlines() == lines


def test_a_worker_skips_what_waits_for_a_task_that_fails(worker, tmp_path):
    report = Report.objects.create(title="load fails", folder=str(tmp_path))
    report.build.delay()

    dispatched_until(lambda: not report.build.is_processing())

    assert [state for _, state, _ in all_runs()] == [State.FAILURE, State.IGNORED, State.IGNORED]
    assert not (tmp_path / "notes").exists()


def test_a_worker_says_which_object_is_gone(worker):
    report = Report.objects.create(title="Gone")
    with transaction.atomic():
        run = report.shout.run()
        Report.objects.filter(pk=report.pk).delete()

    wait_for_state(run, State.FAILURE)

    assert f"There is no report (tests.Report) with the primary key {report.pk}" in run.exception
