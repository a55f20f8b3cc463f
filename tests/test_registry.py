from __future__ import annotations

import pytest
from celery import Celery, current_app, shared_task
from celery.signals import import_modules
from django.core.checks.registry import registry

from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.registry import (
    Rule,
    all_task_infos,
    celery_app,
    get_task,
    get_task_info,
    matching,
    rule_for,
)
from tests.celery_app import app

#: Celery has Django check itself before it imports tasks, and Django 6.1 asks the database.
pytestmark = pytest.mark.django_db

ADD = "tests.tasks.add"

routed_app = Celery("routed", set_as_current=False)
routed_app.conf.task_routes = {"tests.*": {"queue": "slow"}}


@routed_app.task(name="tests.routed")
def routed():
    """Go where the router says."""


lost_app = Celery("lost", set_as_current=False)
lost_app.conf.task_create_missing_queues = False
lost_app.conf.task_routes = {"tests.*": {"queue": "not configured"}}


@lost_app.task(name="tests.lost")
def lost():
    """Go to a queue that is not there."""


picky_app = Celery("picky", set_as_current=False)
picky_app.conf.task_routes = (lambda name, args, kwargs, options, task=None: {"queue": args[0]},)


@picky_app.task(name="tests.picked")
def picked(queue):
    """Go where the argument says."""


def new_app() -> Celery:
    """Return an app with a task, whose modules nobody has imported."""
    app = Celery("asking", set_as_current=False)

    @app.task(name="tests.asked", shared=False)
    def asked():
        """Be asked for."""

    return app


@pytest.fixture
def registered():
    """Tell the tasks that were registered before; those of one test go with it."""
    before = set(app.tasks)
    yield before
    for name in set(app.tasks) - before:
        del app.tasks[name]


def names_of(infos):
    return [info.name for info in infos]


def test_the_app_of_the_settings_is_ours():
    assert celery_app() is app


def test_without_a_setting_the_current_app_is_ours(configure):
    configure(APP=None)

    assert celery_app() is current_app._get_current_object()


@pytest.mark.parametrize("path", ["tests.celery_app:app", "tests.celery_app.app"])
def test_the_app_can_be_named_with_a_colon_or_a_dot(configure, path):
    configure(APP=path)

    assert celery_app() is app


def test_an_app_that_can_not_be_imported_is_an_error(configure):
    configure(APP="no_such_package:app")

    with pytest.raises(ImportError):
        celery_app()


def test_a_task_is_found_by_its_name():
    assert get_task(ADD).name == ADD


def test_a_task_that_is_not_registered_is_an_error_that_says_what_to_check():
    with pytest.raises(TaskNotFound, match=r"'tests\.gone' is registered\. Check the name"):
        get_task("tests.gone")


def test_what_is_known_of_a_task():
    info = get_task_info(ADD)

    assert info.name == ADD
    assert info.summary == "Add two numbers."
    assert info.doc.startswith("Add two numbers.")
    assert info.package == "tests"
    assert info.queue == app.conf.task_default_queue
    assert info.is_runnable
    assert info.rule == Rule()


@pytest.mark.parametrize(("app_name", "task"), [("lost_app", "lost"), ("picky_app", "picked")])
def test_a_task_that_can_not_be_routed_is_listed_without_a_queue(configure, app_name, task):
    configure(APP=f"tests.test_registry:{app_name}")

    assert get_task_info(f"tests.{task}").queue == ""


@pytest.mark.usefixtures("registered")
def test_a_task_without_a_docstring_has_none_and_not_that_of_celery():
    @app.task(name="tests.silent")
    def silent():
        pass

    assert get_task_info("tests.silent").doc == ""


@pytest.mark.usefixtures("registered")
def test_a_docstring_that_is_no_text_is_none():
    @app.task(name="tests.numbered")
    def numbered():
        pass

    app.tasks["tests.numbered"].run.__doc__ = 42

    assert get_task_info("tests.numbered").doc == ""


@pytest.mark.usefixtures("registered")
def test_the_docstring_of_a_class_based_task_is_its_own():
    class Sized(app.Task):
        """Tell a ``size``."""

        name = "tests.sized"

        def run(self):
            return 1

    app.register_task(Sized())

    assert get_task_info("tests.sized").summary == "Tell a size."


def test_the_queue_of_a_task_is_that_of_the_router(configure):
    configure(APP="tests.test_registry:routed_app")

    assert get_task_info("tests.routed").queue == "slow"


@pytest.mark.parametrize("name", ["celery.chord", "celery.backend_cleanup"])
@pytest.mark.parametrize("allowed", [None, ["*"], ["celery.*"], {"celery.*": {}}])
def test_the_tasks_of_celery_itself_are_never_runnable(configure, name, allowed):
    configure(RUNNABLE_TASKS=allowed)

    assert rule_for(name) is None


@pytest.mark.parametrize(
    ("allowed", "is_runnable"),
    [
        (None, True),
        ([ADD], True),
        (["tests.*"], True),
        (("other.*", "*.add"), True),
        ({"tests.tasks.add"}, True),
        (["tests.tasks.ADD"], False),
        (["tests"], False),
        (["other.*"], False),
        ([], False),
        ({}, False),
        ("other.*", False),
    ],
    ids=repr,
)
def test_the_allowlist_decides_what_is_runnable(configure, allowed, is_runnable):
    configure(RUNNABLE_TASKS=allowed)

    assert (rule_for(ADD) is not None) is is_runnable
    assert get_task_info(ADD).is_runnable is is_runnable


def test_the_first_rule_that_matches_counts(configure):
    configure(
        RUNNABLE_TASKS={
            "tests.tasks.*": {
                "permission": "auth.add_user",
                "groups": ["Finance"],
                "confirm": True,
            },
            "tests.*": {"reason": True},
        }
    )

    rule = rule_for(ADD)

    assert rule == Rule(permission="auth.add_user", groups=("Finance",), confirm=True)


@pytest.mark.parametrize("value", [{"groups": "Finance"}, {"colour": 1}])
def test_a_rule_that_can_not_be_read_allows_nothing_by_accident(value):
    with pytest.raises(TypeError):
        Rule.from_setting(value)


def test_only_runnable_tasks_are_listed_if_so_set(configure):
    configure(SHOW_ONLY_RUNNABLE=True, RUNNABLE_TASKS=["tests.tasks.a*"])

    names = names_of(all_task_infos())

    assert ADD in names
    assert all(name.startswith("tests.tasks.a") for name in names)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("", True),
        ("TASKS.ADD", True),
        ("two numbers", True),
        ("numbers add", True),
        ("xyz", False),
    ],
)
def test_tasks_are_searched_by_words_in_name_and_docstring(text, is_found):
    found = matching([get_task_info(ADD)], text)

    assert bool(found) is is_found


def test_the_modules_of_tasks_are_imported_once():
    celery_app()
    imports = []

    def listener(**kwargs):
        imports.append(kwargs)

    import_modules.connect(listener)
    celery_app()
    import_modules.disconnect(listener)

    assert imports == []


def test_a_check_of_django_may_ask_for_a_task_while_tasks_are_imported(configure, monkeypatch):
    # Celery has Django check itself before it imports tasks.
    asked = []
    monkeypatch.setattr(registry, "registered_checks", set())
    registry.register(lambda **kwargs: asked.append(get_task("tests.asked").name) or [])
    monkeypatch.setattr("tests.test_registry.asking_app", asking_app := new_app(), raising=False)
    configure(APP="tests.test_registry:asking_app")

    assert celery_app() is asking_app
    assert asked == ["tests.asked"]


@pytest.mark.usefixtures("registered")
def test_a_shared_task_belongs_to_our_app_too():
    @shared_task(name="tests.shared")
    def share():
        """Share."""

    assert get_task_info("tests.shared").summary == "Share."


@pytest.mark.django_db
def test_every_task_is_listed_by_name_and_celerys_own_last() -> None:
    names = names_of(all_task_infos())

    own = [name for name in names if name.startswith(("celery.", "celery_admin_runner."))]
    assert own == sorted(own)
    assert "celery.chord" in own
    assert names == [*sorted(set(names) - set(own)), *own]
