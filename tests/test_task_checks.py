from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from django.core.checks import CheckMessage, Error, run_checks
from django.core.management import CommandError, call_command
from django.utils.translation import gettext_lazy

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.commands import CommandTask
from celery_admin_runner.registry import with_tasks

#: Django 6.1 asks the database in checks of its own.
pytestmark = pytest.mark.django_db

#: What the checker of a test says of a task, by the part of the name behind the dot.
ANSWERS: dict[str, Any] = {}
#: The tasks with which the checker was called.
seen: list[str] = []
#: A message that a project gives for several tasks.
SHARED = Error("No owner.", id="shop.E001")
NOT_CALLABLE = "a text"


def nothing() -> None:
    """Do nothing."""


def add(app: Celery, name: str, **options: Any) -> None:
    """Add a task to this app alone."""
    app.task(name=f"shop.{name}", shared=False, **options)(nothing)


def checker(task: Any) -> Any:
    """Say of a task what a test wants to be said."""
    seen.append(task.name)
    answer = ANSWERS.get(task.name.rpartition(".")[2])
    return answer() if callable(answer) else answer


def complaining() -> Iterator[str]:
    """Say something, and break down."""
    yield "First."
    raise LookupError("no second")


@pytest.fixture
def shop(configure, monkeypatch) -> Iterator[Celery]:
    """An app with two tasks, whose checks are asked for."""
    ANSWERS.clear()
    seen.clear()
    app = Celery("shop", set_as_current=False)
    for name in [name for name in app.tasks if not name.startswith("celery.")]:
        # Tasks of other apps of this process, which they share with every app.
        del app.tasks[name]
    for name in ("pack", "send"):
        add(app, name)
    monkeypatch.setattr(sys.modules[__name__], "current", app, raising=False)
    configure(APP="tests.test_task_checks:current", TASK_CHECKER="tests.test_task_checks:checker")
    return app


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """The file of a module of tasks, which the app of the checks imports."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "tasks_to_check.py"
    sys.modules.pop("tasks_to_check", None)


def found() -> list[CheckMessage]:
    """Return what the checks that look at tasks say."""
    ids = ("E013", "E014", "E015", "E017", "W003", "W004", "shop.E001")
    return sorted(
        (message for message in run_checks() if message.id.endswith(ids)),
        key=lambda message: (message.id, str(message.obj)),
    )


def told() -> list[tuple[str, Any, str]]:
    return [(message.id.rpartition(".")[2], message.obj, message.msg) for message in found()]


def test_a_project_checks_each_of_its_tasks_and_none_of_celery_or_ours(shop):
    shop.task(name="celery_admin_runner.tasks.own", shared=False)(nothing)

    assert told() == []
    assert seen == ["shop.pack", "shop.send"]


@pytest.mark.parametrize(
    "answer",
    [
        "No queue.",
        gettext_lazy("No queue."),
        ["No queue."],
        lambda: (text for text in ["No queue."]),
    ],
    ids=["text", "lazy text", "list", "generator"],
)
def test_a_text_of_the_checker_is_a_warning_about_the_task(shop, answer):
    ANSWERS["send"] = answer

    assert told() == [("W003", "shop.send", "No queue.")]
    assert str(found()[0]).startswith("shop.send: (celery_admin_runner.W003) No queue.")


def test_a_message_of_the_checker_is_told_as_it_is_for_each_task(shop):
    ANSWERS.update(pack=SHARED, send=[SHARED, Error("Late.", obj="the van", id="shop.E001")])

    assert told() == [
        ("E001", "shop.pack", "No owner."),
        ("E001", "shop.send", "No owner."),
        ("E001", "the van", "Late."),
    ]
    assert SHARED.obj is None


@pytest.mark.parametrize("answer", [(), [], "", None], ids=repr)
def test_a_checker_that_has_nothing_to_say_is_content(shop, answer):
    ANSWERS["send"] = answer

    assert [identity for identity, *_ in told()] == ([] if answer != "" else ["W003"])


def test_a_checker_that_fails_is_an_error_that_names_the_task_and_the_rest_is_told(shop):
    ANSWERS.update(pack=complaining, send="Slow.")

    [failed, first, slow] = found()

    assert (failed.id, failed.obj) == ("celery_admin_runner.E014", "shop.pack")
    assert "failed at the task 'shop.pack': LookupError: no second (" in failed.msg
    assert "test_task_checks.py, line " in failed.msg
    assert [(message.obj, message.msg) for message in (first, slow)] == [
        ("shop.pack", "First."),
        ("shop.send", "Slow."),
    ]


@pytest.mark.parametrize("answer", [42, [42], b"No queue."], ids=repr)
def test_a_checker_that_says_what_nobody_can_tell_is_an_error(shop, answer):
    ANSWERS["send"] = answer

    [(identity, task, text), *_] = told()

    assert (identity, task) == ("E014", "shop.send")
    assert "TypeError" in text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package:check", "can't be imported: ModuleNotFoundError"),
        ("tests.test_task_checks:gone", "can't be imported: ImportError"),
        ("checker", "can't be imported: ImportError"),
        ("tests.test_task_checks:NOT_CALLABLE", "is 'a text', which can't be called"),
    ],
)
def test_a_checker_that_can_not_be_called_is_an_error(shop, configure, path, words):
    configure(TASK_CHECKER=path)

    [message] = found()

    assert message.id == "celery_admin_runner.E013"
    assert words in message.msg
    assert "shop.checks:check_task" in message.hint


def test_a_checker_may_be_named_with_a_dot(shop, configure):
    configure(TASK_CHECKER="tests.test_task_checks.checker")
    ANSWERS["send"] = "No queue."

    assert told() == [("W003", "shop.send", "No queue.")]


def test_without_a_checker_the_tasks_are_good(shop, configure):
    configure(TASK_CHECKER=None)

    assert told() == []
    assert seen == []


def test_what_can_not_be_a_path_is_told_as_a_wrong_type_only(shop, configure):
    configure(TASK_CHECKER=checker)

    assert told() == []
    assert "celery_admin_runner.E003" in {message.id for message in run_checks()}


@pytest.mark.parametrize("path", ["no_such_package:app", "tests.test_task_checks:NOT_CALLABLE"])
def test_without_an_app_other_checks_tell_of_that(shop, configure, path):
    configure(APP=path)

    assert told() == []
    assert seen == []


def test_a_unique_task_whose_limit_nobody_knows_is_an_error(shop):
    add(shop, "count", base=DjangoTask, unique=True)

    [message] = found()

    assert (message.id, message.obj) == ("celery_admin_runner.E015", "shop.count")
    assert "shop.count" in message.msg
    assert "['UNIQUE_STALE_AFTER']" in message.hint


def test_a_limit_that_is_no_duration_is_an_error(shop):
    add(shop, "count", base=DjangoTask, unique=True, stale_time_limit="1h")

    [(identity, task, text)] = told()

    assert (identity, task) == ("E015", "shop.count")
    assert "can't be used" in text


@pytest.mark.parametrize("limit", [60, 0.5, timedelta(hours=1)])
def test_a_unique_task_with_a_limit_is_good(shop, limit):
    add(shop, "count", base=DjangoTask, unique=True, stale_time_limit=limit)

    assert told() == []


def test_a_limit_for_all_unique_tasks_will_do(shop, configure):
    add(shop, "count", base=DjangoTask, unique=True)
    configure(UNIQUE_STALE_AFTER=timedelta(minutes=5))

    assert told() == []


@pytest.mark.parametrize("names", ["to", ["parcel", "to"]])
def test_to_be_unique_by_what_is_no_parameter_is_an_error(shop, names):
    def pack(parcel, *, fast=False):
        """Pack."""

    app_task = shop.task(
        name="shop.count", shared=False, base=DjangoTask, unique_on=names, stale_time_limit=60
    )
    app_task(pack)

    [message] = found()

    assert (message.id, message.obj) == ("celery_admin_runner.E017", "shop.count")
    assert "names 'to'" in message.msg
    assert message.hint == "Its parameters are parcel, fast."


def test_to_be_unique_by_a_parameter_is_good(shop):
    def pack(parcel, **options):
        """Pack."""

    add = shop.task(name="shop.count", shared=False, base=DjangoTask, unique_on=["parcel", "to"])
    add(pack)
    add = shop.task(
        name="shop.sum",
        shared=False,
        base=DjangoTask,
        unique_on=["to"],
        unique_key_generator=lambda *args: "",
    )
    add(nothing)

    assert told() == []


def test_a_command_that_is_unique_by_what_it_has_not_is_an_error(shop):
    options = {"command": "clearsessions", "unique_on": ["verbosity", "user"]}
    shop.task(name="command.clear", shared=False, base=CommandTask, **options)(nothing)

    assert [(identity, name) for identity, name, _text in told()] == [("E017", "command.clear")]


def test_a_command_that_cannot_be_read_yet_keeps_nobody_from_migrating(shop):
    options = {"command": "try_broken", "unique_on": ["company"]}
    shop.task(name="command.broken", shared=False, base=CommandTask, **options)(nothing)

    assert told() == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package' ("),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError: division by zero ("),
    ],
)
def test_tasks_that_can_not_be_imported_are_a_warning_and_the_others_are_checked(
    shop, module, source, words
):
    module.write_text(source)
    shop.conf.include = ["tasks_to_check"]
    ANSWERS["send"] = "No queue."

    [(queue, _, _), (broken, _, text)] = told()

    assert (queue, broken) == ("W003", "W004")
    assert words in text
    assert "tasks_to_check.py, line 1" in text


def test_a_database_is_migrated_though_a_module_of_tasks_is_broken(shop, module, capsys):
    module.write_text("import no_such_package")
    shop.conf.include = ["tasks_to_check"]

    call_command("migrate", plan=True, skip_checks=False)
    call_command("check")

    assert "No module named 'no_such_package'" in capsys.readouterr().err


def test_a_check_that_fails_is_seen_by_the_command(shop):
    ANSWERS["send"] = SHARED

    with pytest.raises(CommandError, match=r"shop\.send: \(shop\.E001\) No owner\."):
        call_command("check")


def test_the_checks_import_the_tasks_once(shop, module):
    module.write_text(
        "from tests import test_task_checks as here\nhere.add(here.current, 'late')\n"
    )
    shop.conf.include = ["tasks_to_check"]
    ANSWERS["late"] = "Late."

    first, second = told(), told()

    assert first == second == [("W003", "shop.late", "Late.")]
    assert seen == ["shop.late", "shop.pack", "shop.send"] * 2


def test_a_worker_that_has_django_check_itself_while_it_imports_gets_its_tasks(shop, module):
    module.write_text(
        "from tests import test_task_checks as here\n"
        "here.add(here.current, 'late')\n"
        "from celery_admin_runner.registry import get_task\n"
        "here.asked = get_task('shop.pack')\n"
    )
    shop.conf.include = ["tasks_to_check"]

    # As a worker does: Celery's fixup for Django runs the checks in it.
    shop.loader.init_worker()

    assert "shop.late" in with_tasks(shop).tasks
    assert seen == ["shop.late", "shop.pack", "shop.send"]
    asked: ModuleType = sys.modules[__name__]
    assert asked.asked.name == "shop.pack"


def test_a_worker_with_a_broken_module_is_told_by_celery(shop, module):
    module.write_text("import no_such_package")
    shop.conf.include = ["tasks_to_check"]

    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        shop.loader.init_worker()
