"""Management commands as tasks: which there are, their forms, and how they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, CommandParser, call_command, get_commands
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from celery_admin_runner import commands, unique
from celery_admin_runner.calls import prepare_call, signature_of
from celery_admin_runner.commands import (
    CommandTask,
    KnownCommand,
    command_task,
    known_commands,
)
from celery_admin_runner.exceptions import CommandNotConfigured, InvalidArguments, TaskNotFound
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.parameters import Default
from celery_admin_runner.redaction import MASK
from celery_admin_runner.registry import all_task_infos, get_task_info, is_internal
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from celery_admin_runner.unattended import Stdin
from tests.celery_app import app
from tests.factories import make_user
from tests.forms import arguments_of, filled, form_of, shown_data
from tests.management.commands import try_broken
from tests.waiting import wait_for_state, wait_until

EVERYTHING = "command.tests.try_everything"
#: What the rest of the form needs.
NEEDED: dict[str, Any] = {"shop": "north", "to_all": "on"}


@pytest.fixture(autouse=True)
def own_stdin() -> Iterator[None]:
    """Leave no standard input of ours behind."""
    before = sys.stdin
    yield
    sys.stdin = before


def form(**fields: Any) -> Any:
    """Return the form of the richest command, filled in as a browser would."""
    task = command_task("try_everything")
    data = shown_data(form_of(task))
    for name, value in (NEEDED | fields).items():
        if value is None:
            data.pop(f"args-{name}", None)
        else:
            data.setlist(f"args-{name}", value if isinstance(value, list) else [value])
    return form_of(task, data=data)


def printed(capsys: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run the richest command here, and return which options it was given."""
    command_task("try_everything").run(*args, **{"shop": "north", "to_all": True, **kwargs})
    return json.loads(capsys.readouterr().out)


# Which commands are tasks


def test_a_command_that_is_named_is_a_task() -> None:
    task = command_task("clearsessions")

    assert task.name == "command.sessions.clearsessions"
    assert isinstance(task, CommandTask)
    assert task.unique is True
    assert task.stale_time_limit == 60


def test_a_unique_command_needs_no_limit_of_its_own() -> None:
    limit = unique.stale_after(command_task("try_ending"))

    assert limit == timedelta(weeks=1)


@pytest.mark.parametrize("name", ["try_ending", "tests.try_ending"])
def test_a_pattern_names_commands_of_an_app(name: str) -> None:
    assert command_task(name).name == "command.tests.try_ending"


def test_the_first_key_that_matches_counts(configure: Any) -> None:
    configure(COMMAND_TASKS={"django.sqlflush": {"priority": 1}, "sql*": {"priority": 2}})

    found = {command.dotted: command.options for command in known_commands()}

    assert found["django.sqlflush"] == {"priority": 1}
    assert found["django.sqlmigrate"] == {"priority": 2}
    assert found["django.migrate"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("migrate", "add 'migrate': {} to CELERY_ADMIN_RUNNER['COMMAND_TASKS']"),
        ("clearsesions", "There is no command 'clearsesions', so it can be no task. Did you mean"),
        ("clearsesions", "'clearsessions'"),
        ("session.clearsessions", "'sessions.clearsessions'"),
        ("zzzzzz", "that its app is in INSTALLED_APPS"),
    ],
)
def test_a_command_that_is_no_task_is_an_error_that_says_what_to_do(name: str, text: str) -> None:
    with pytest.raises(CommandNotConfigured) as caught:
        command_task(name)

    assert isinstance(caught.value, TaskNotFound)
    assert text in str(caught.value)


@pytest.mark.parametrize("value", [{}, None, ["clearsessions"], {"clearsessions": None}])
def test_without_a_mapping_there_is_no_task(configure: Any, value: Any) -> None:
    configure(COMMAND_TASKS=value)

    with pytest.raises(CommandNotConfigured):
        command_task("clearsessions")


def test_every_celery_app_has_the_tasks() -> None:
    other = Celery("other", set_as_current=False)

    assert "command.sessions.clearsessions" in other.tasks
    assert "command.sessions.clearsessions" in app.tasks
    other.close()


def test_options_that_are_ours_to_say_are_not_taken() -> None:
    given = {"name": "other", "bind": False, "command": "flush", "priority": 3, 1: 2}
    command = KnownCommand(name="clear", label="shop", options=given)

    assert command.task_options == {
        "name": "command.shop.clear",
        "command": "clear",
        "priority": 3,
    }


def test_a_task_is_listed_without_an_import_of_its_command(configure: Any) -> None:
    configure(COMMAND_TASKS={"sendtestemail": {}})
    module = "django.core.management.commands.sendtestemail"
    sys.modules.pop(module, None)
    commands._lines.pop("sendtestemail", None)

    task = command_task("sendtestemail")
    info = get_task_info(task.name)

    assert info.summary == "Run the management command sendtestemail of the app django."
    assert module not in sys.modules
    assert signature_of(task).summary.startswith("Sends a test email")
    assert module in sys.modules


def test_commands_are_runnable_as_other_tasks_are(configure: Any) -> None:
    configure(RUNNABLE_TASKS={"command.sessions.*": {"confirm": True}})

    infos = {info.name: info for info in all_task_infos()}

    assert not is_internal("command.celery_admin_runner.prune_taskruns")
    assert infos["command.sessions.clearsessions"].rule.confirm
    assert not infos[EVERYTHING].is_runnable


# The form of every command

#: What belongs to a terminal, or to the process in which the command runs.
HIDDEN = {
    *("settings", "pythonpath", "traceback", "no_color", "force_color"),
    *("version", "help", "skip_checks", "interactive"),
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", sorted(get_commands()))
def test_each_command_shows_a_form_or_says_why_not(configure: Any, name: str) -> None:
    configure(COMMAND_TASKS={"*": {}})
    task = command_task(name)

    shown = form_of(task)
    signature = shown.signature

    if signature.problem:
        assert name in ("try_broken", "try_subcommands")
        return
    if name in ("changepassword", "dbshell", "runserver", "shell", "testserver"):
        assert "can't be run as a task" in shown.signature.description
        return
    assert set(shown.parameters.fields) == {item.name for item in signature.parameters}
    assert str(shown.parameters)
    assert not HIDDEN & set(signature._by_name)
    assert_untouched_form_is_valid_or_asks_only_for_what_is_required(task)


def assert_untouched_form_is_valid_or_asks_only_for_what_is_required(task: Any) -> None:
    untouched = form_of(task)
    data = shown_data(untouched)
    for parameter in untouched.signature.parameters:
        options = getattr(untouched.parameters.fields[parameter.name], "options", ["1"])
        if parameter.is_required and not data.get(f"args-{parameter.name}"):
            data[f"args-{parameter.name}"] = next(iter(options))
    if task.name == EVERYTHING:
        data["args-to_all"] = "on"
    filled_in = form_of(task, data=data)

    assert filled_in.is_valid(), filled_in.errors


def test_a_command_with_subcommands_says_so_and_takes_raw_words(capsys: Any) -> None:
    task = command_task("try_subcommands")

    task.run("open", "door", "--wide")

    assert "has subcommands" in signature_of(task).problem
    assert form_of(task).mode == "json"
    call = prepare_call(task, ["open", "door"], {})
    assert call.args == ("open", "door")
    assert capsys.readouterr().out == "open door True False\n"


class Unforeseen(Exception):
    """What only a project knows."""


@pytest.mark.parametrize("error", [Unforeseen("no stock"), SystemExit("no stock")])
def test_a_parser_that_fails_in_whatever_way_ends_no_page(
    monkeypatch: Any, error: BaseException
) -> None:
    def add_arguments(*args: Any) -> None:
        raise error

    monkeypatch.setattr(try_broken.Command, "add_arguments", add_arguments)

    assert "no stock" in signature_of(command_task("try_broken")).problem


def test_a_default_is_not_kept_from_one_day_to_the_next(monkeypatch: Any) -> None:
    days = iter(["monday", "tuesday", "tuesday"])

    def add_arguments(self: Any, parser: CommandParser) -> None:
        parser.add_argument("--day", default=next(days))

    monkeypatch.setattr(try_broken.Command, "add_arguments", add_arguments)
    monkeypatch.setattr(commands, "_lines", {})
    task = command_task("try_broken")
    defaults = [signature_of(task)["day"].default, signature_of(task)["day"].default]
    monkeypatch.setattr(commands, "FRESH_SECONDS", 0)

    assert [*defaults, signature_of(task)["day"].default] == ["monday", "monday", "tuesday"]


def test_what_needs_a_terminal_is_refused_by_the_form_and_by_the_worker(configure: Any) -> None:
    configure(COMMAND_TASKS={"shell": {}})
    task = command_task("shell")

    form = form_of(task, data=shown_data(form_of(task)))

    assert not form.is_valid()
    assert "talks to somebody at a terminal" in str(form.errors) + str(form.parameters.errors)
    with pytest.raises(CommandError, match="can't be run as a task"):
        task.run()


def test_an_app_called_core_has_no_part_in_the_commands_of_django(configure: Any) -> None:
    configure(COMMAND_TASKS={"core.*": {}})

    assert not any(command.options is not None for command in known_commands())


def test_a_command_that_cannot_be_read_says_why() -> None:
    task = command_task("try_broken")

    assert "no parser today" in signature_of(task).problem
    with pytest.raises(CommandError, match="no parser today"):
        task.run()


# What the form shows


def parameter(name: str) -> Any:
    return signature_of(command_task("try_everything"))[name]


def test_the_help_of_the_command_is_the_documentation() -> None:
    signature = signature_of(command_task("try_everything"))

    assert signature.summary == "Print what it was given."
    assert "does nothing with it." in signature.description
    assert "always runs with --no-input" in signature.description


@pytest.mark.parametrize(
    ("name", "annotation", "default"),
    [
        ("numbers", "list[int]", []),
        ("dry_run", "bool", False),
        ("mail", "bool", True),
        ("colour", "bool | None", None),
        ("speed", "Literal['fast', 'slow'] | None", None),
        ("depth", "int", 1),
        ("format", "Literal['csv', 'json']", "csv"),
        ("size", "Literal['s', 'l']", "l"),
        ("weekday", "Literal[1, 2, 3, 4, 5, 6, 7] | None", None),
        ("year", "int", 2026),
        ("rate", "float", 1.5),
        ("price", "Decimal", Decimal("9.90")),
        ("day", "date | None", None),
        ("code", "UUID | None", None),
        ("shade", "Size | None", None),
        ("hex", "int | None", None),
        ("even", "even | None", None),
        ("into", "Path", "out"),
        ("wait", "hours", Default.COMPUTED),
        ("active", "bool", True),
        ("tags", "list[str]", []),
        ("pairs", "list[list[int]]", []),
        ("only", "list[Literal['a', 'b', 'c']]", []),
        ("box", "list[float] | None", None),
        ("trace", "str | None", None),
        ("seed", "Literal[True] | int", Default.COMPUTED),
        ("absent", "str", Default.COMPUTED),
        ("class", "str | None", None),
        ("verbosity", "Literal[0, 1, 2, 3]", 1),
    ],
)
def test_each_kind_of_argument_has_its_type_and_default(
    name: str, annotation: str, default: Any
) -> None:
    found = parameter(name)

    assert (found.annotation_text, found.default) == (annotation, default)
    assert not found.is_required


def test_required_and_hidden_arguments() -> None:
    signature = signature_of(command_task("try_everything"))

    assert [item.name for item in signature.parameters if item.is_required] == ["shop"]
    assert "hidden" not in signature
    assert "interactive" not in signature


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shop", "Which one; 100% needed."),
        ("mail", "No means --no-mail: Tell nobody."),
        ("format", "csv, json"),
        ("rate", "Default: 1.5"),
        ("wait", "Default: 2:00:00."),
        ("tags", "(--tag) Added to: always."),
        ("box", "(--box WIDTH HEIGHT)"),
        ("to_all", "Just one of these must be given: to_file, to_all."),
        ("trace", "Without a value the option means 'stderr'."),
        ("log", "A file where the worker runs."),
        ("all", "Only one of these can be given: since, all."),
        ("password", f"Not {MASK}."),
    ],
)
def test_help_texts_say_what_the_parser_says(name: str, text: str) -> None:
    assert text in str(parameter(name).help_text)


def test_an_untouched_form_sends_only_what_is_needed() -> None:
    assert arguments_of(form()) == (("north",), {"to_all": True})


@pytest.mark.parametrize(
    ("fields", "name", "text"),
    [
        ({"shop": ""}, "shop", "at least 1 character"),
        ({"format": "xml"}, "format", "'csv' or 'json'"),
        ({"year": "1980"}, "year", "greater than or equal to 1990"),
        ({"depth": "0"}, "depth", "greater than or equal to 1"),
        ({"even": "3"}, "even", "This value is not valid: 3 is odd"),
        ({"even": "x"}, "even", "This value is not valid: invalid literal"),
        ({"day": "2026-02-30"}, "day", "valid date"),
        ({"hex": "ff"}, "hex", "This value is not one of the choices."),
        ({"shade": "xl"}, "shade", "This value is not valid: 'xl' is not a valid Size"),
        ({"numbers": "1\nx"}, "numbers", "Value 2: Input should be a valid integer"),
        ({"box": "1\n2\n3"}, "box", "at most 2 items"),
        ({"names": "a\n-b"}, "names", "none can begin with a dash"),
        ({"since": "2026-01-01", "all": "on"}, "since", "Give only one of these: since, all."),
        ({"since": "2026-01-01", "all": "on"}, "all", "Give only one of these: since, all."),
        ({"to_all": None}, "__all__", "Give one of these: to_file, to_all."),
    ],
)
def test_what_the_parser_would_refuse_is_said_at_the_field(
    fields: dict[str, Any], name: str, text: str
) -> None:
    refused = form(**fields)

    assert not refused.is_valid()
    assert text in " ".join(refused.errors["parameters"][name])


def test_the_runner_refuses_what_the_form_refuses() -> None:
    with pytest.raises(InvalidArguments) as caught:
        TaskRunner().run(EVERYTHING, ["north"], {"since": "2026-01-01", "all": True})

    assert caught.value.errors["since"] == ["Give only one of these: since, all."]
    assert caught.value.errors["__all__"] == ["Give one of these: to_file, to_all."]


def test_a_positional_argument_is_not_given_without_the_one_before_it(configure: Any) -> None:
    configure(COMMAND_TASKS={"migrate": {}})
    task = command_task("migrate")

    form = filled(task, migration_name="0001", app_label="")

    assert not form.is_valid()
    assert "what follows it is given" in str(form.errors["parameters"]["app_label"])


@pytest.mark.parametrize("name", ["password", "credential"])
def test_secrets_are_masked_by_the_name_of_the_parameter_or_its_option(name: str) -> None:
    call = prepare_call(
        command_task("try_everything"), ["north"], {"to_all": True, name: "s3cret"}
    )

    assert call.kwargs[name] == "s3cret"
    assert call.stored_kwargs[name] == MASK
    field = form_of(command_task("try_everything")).parameters.fields[name]
    assert field.widget.input_type == "password"


def test_a_secret_default_is_not_shown() -> None:
    assert "hunter2" not in str(form_of(command_task("try_everything")).parameters)


# How a command runs


@pytest.mark.parametrize(
    ("given", "name", "received"),
    [
        ({"numbers": [1, -2]}, "numbers", [1, -2]),
        ({"shop": "-north"}, "shop", "-north"),
        ({"dry_run": True}, "dry_run", True),
        ({"mail": False}, "mail", False),
        ({"mail": True}, "mail", True),
        ({"colour": False}, "colour", False),
        ({"speed": "slow"}, "speed", "slow"),
        ({"depth": 3}, "depth", 3),
        ({"size": "s"}, "size", "s"),
        ({"weekday": 7}, "weekday", 7),
        ({"rate": -2.5}, "rate", -2.5),
        ({"price": "-1.20"}, "price", "-1.20"),
        ({"even": "4"}, "even", 4),
        ({"day": date(2026, 2, 28)}, "day", "2026-02-28"),
        ({"shade": "s"}, "shade", "s"),
        ({"hex": "A"}, "hex", 10),
        ({"code": "00000000-0000-0000-0000-000000000007"}, "code", str(UUID(int=7))),
        ({"wait": "1.5"}, "wait", "1:30:00"),
        ({"active": False}, "active", False),
        ({"tags": ["a b", "--tag", "-x"]}, "tags", ["always", "a b", "--tag", "-x"]),
        ({"pairs": [[1, -2], [3, 4]]}, "pairs", [[1, -2], [3, 4]]),
        ({"only": ["a", "c"]}, "only", ["a", "c"]),
        ({"box": [1.5, -2]}, "box", [1.5, -2.0]),
        ({"names": ["-b"]}, "names", ["-b"]),
        ({"trace": "stderr"}, "trace", "stderr"),
        ({"seed": True}, "seed", None),
        ({"seed": 7}, "seed", 7),
        ({"absent": "here"}, "absent", "here"),
        ({"class": ""}, "class", ""),
        ({"since": "2026-01-01"}, "since", "2026-01-01"),
        ({"verbosity": 3}, "verbosity", 3),
        ({}, "interactive", False),
        ({}, "no_color", True),
        ({}, "wait", "2:00:00"),
    ],
)
def test_the_command_receives_what_was_given(
    capsys: Any, given: dict[str, Any], name: str, received: Any
) -> None:
    assert printed(capsys, **given)[name] == received


def test_a_default_that_is_suppressed_is_not_given(capsys: Any) -> None:
    assert "absent" not in printed(capsys)


def test_positional_arguments_can_be_given_by_position(capsys: Any) -> None:
    task = command_task("try_everything")

    task.run("south", [1, 2], to_all=True)

    assert json.loads(capsys.readouterr().out)["shop"] == "south"


def test_what_does_not_fit_fails_in_the_worker_too() -> None:
    with pytest.raises(CommandError, match="has no parameter 'nme'"):
        command_task("try_everything").run("north", to_all=True, nme=1)


def test_arguments_of_code_mean_in_the_worker_what_they_mean_in_a_form(capsys: Any) -> None:
    received = printed(capsys, dry_run="no", depth="2")

    assert (received["dry_run"], received["depth"]) == (False, 2)


def test_a_command_error_fails_with_its_message() -> None:
    with pytest.raises(CommandError) as caught:
        command_task("try_ending").run("error", text="No %s, no <b>.")

    assert str(caught.value) == "No %s, no <b>."


def test_exit_code_zero_is_a_success() -> None:
    command_task("try_ending").run("exit", code=0)
    command_task("try_ending").run("exit")


@pytest.mark.parametrize(
    ("given", "text"),
    [({"code": 3}, "The command exited with code 3."), ({"text": "Too late."}, "Too late.")],
)
def test_another_exit_is_a_failure(given: dict[str, Any], text: str) -> None:
    with pytest.raises(CommandError) as caught:
        command_task("try_ending").run("exit", **given)

    assert str(caught.value) == text


def test_nothing_waits_for_an_answer(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("yes\n"))

    with pytest.raises(EOFError, match="asks for input"):
        command_task("try_ending").run("ask")

    assert isinstance(sys.stdin, Stdin)
    assert input() == "yes"


@pytest.mark.django_db
def test_each_call_of_a_command_has_a_row_for_what_it_prints() -> None:
    result = command_task("try_ending").delay("print")

    assert TaskRunRecord.objects.get(task_id=result.id).args == ["print"]


# With a worker


def texts(run: TaskRunRecord) -> dict[str, str]:
    """Return what a run wrote, by stream."""
    found: dict[str, str] = {}
    for piece in run.output.all():
        found[piece.stream] = found.get(piece.stream, "") + piece.text
    return found


def test_a_worker_runs_a_command_and_keeps_its_output(worker: Any) -> None:
    run = TaskRunner().run("command.tests.try_ending", ["print"], {"text": "by print"})

    wait_for_state(run, State.SUCCESS)

    assert run.result is None
    assert texts(run)["stdout"].splitlines() == ["to stdout", "by print"]
    assert texts(run)["stderr"] == "to stderr\n"


@pytest.mark.parametrize(
    ("args", "kwargs", "exception"),
    [
        (["error"], {"text": "No such shop."}, "CommandError: No such shop."),
        (["exit"], {"code": 3}, "CommandError: The command exited with code 3."),
        (["ask"], {}, "there is nobody to answer"),
    ],
)
def test_a_command_that_fails_does_not_end_the_worker(
    worker: Any, args: list[str], kwargs: dict[str, Any], exception: str
) -> None:
    failed = TaskRunner().run("command.tests.try_ending", args, kwargs)
    wait_for_state(failed, State.FAILURE)

    following = TaskRunner().run("command.tests.try_ending", ["well"])
    wait_for_state(following, State.SUCCESS)

    assert exception in failed.exception
    assert texts(failed)["stdout"].startswith("to stdout\n")


def test_clearsessions_clears_sessions_whoever_calls_it(worker: Any) -> None:
    Session.objects.create(
        session_key="old", session_data="", expire_date=timezone.now() - timedelta(days=1)
    )

    result = command_task("clearsessions").delay()
    wait_until(lambda: TaskRunRecord.objects.filter(task_id=result.id).exists())
    run = wait_for_state(TaskRunRecord.objects.get(task_id=result.id), State.SUCCESS)

    assert run.task_name == "command.sessions.clearsessions"
    assert not Session.objects.exists()


def test_a_unique_command_can_be_the_same_by_some_of_its_parameters() -> None:
    task = command_task("clearsessions")
    task.unique_on = "verbosity"

    keys = [
        task.unique_key_generator("", [], kwargs) for kwargs in ({}, {"verbosity": 1}, {"x": 1})
    ]
    task.unique_on = ["database"]
    with pytest.raises(ImproperlyConfigured, match="no such parameter"):
        task.unique_key_generator("", [], {})
    del task.unique_on

    assert keys[0] == keys[1] != keys[2]


@pytest.mark.django_db(transaction=True)
def test_a_unique_command_is_joined_however_its_arguments_are_written() -> None:
    task = command_task("clearsessions")

    first = task.delay()
    second = task.delay(verbosity=1)
    third = task.delay_on_commit()
    other = task.delay(verbosity=2)

    assert first.id == second.id == third.id
    assert other.id != first.id


def test_the_page_of_a_command_runs_it(worker: Any, client: Client) -> None:
    operator: User = make_user("run_celerytask")
    client.force_login(operator)
    page = reverse("admin:celery_admin_runner_celerytask_run", args=[EVERYTHING])

    shown = client.get(page)
    data = dict(shown_data(form_of(command_task("try_everything"))).items())
    posted = client.post(
        page, {**data, "args-shop": "north", "args-to_all": "on", "args-numbers": "1\n2"}
    )
    run = wait_for_state(TaskRunRecord.objects.get(), State.SUCCESS)

    assert "Print what it was given." in shown.content.decode()
    assert posted.status_code == 302
    assert run.args == ["north"]
    assert run.kwargs == {"numbers": [1, 2], "to_all": True}
    assert json.loads(texts(run)["stdout"])["numbers"] == [1, 2]


def test_a_command_can_still_be_called_as_ever(capsys: Any) -> None:
    call_command("try_everything", "north", "--to-all")

    assert json.loads(capsys.readouterr().out)["shop"] == "north"
