"""Management commands as tasks: COMMAND_TASKS says which, and with which options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from time import monotonic
from typing import Any

from celery import shared_task
from celery.app.task import Task
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import (
    BaseCommand,
    CommandError,
    call_command,
    get_commands,
    load_command_class,
)
from kombu.utils.json import dumps

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.binding import bind
from celery_admin_runner.calls import prepare_call
from celery_admin_runner.command_lines.reading import CommandLine, read_command_line, unreadable
from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import CommandNotConfigured, InvalidArguments
from celery_admin_runner.parameters import Signature
from celery_admin_runner.registry import celery_app
from celery_admin_runner.unattended import no_input

#: The names of all tasks that are commands begin so.
PREFIX = "command."
#: Options of a task that are not COMMAND_TASKS' to say.
RESERVED = frozenset({"app", "base", "bind", "command", "name", "run"})
#: What was read of a command is true for so long: its parser may list what is in the database,
#: or say by default what day it is.
FRESH_SECONDS = 5.0
#: The label of Django's own commands. Many a project has an app called "core": its pattern
#: is not to make a task of ``flush``.
DJANGO = "django"


@dataclass(frozen=True, kw_only=True)
class KnownCommand:
    """A command that Django finds; nothing of it is imported for this."""

    name: str
    #: The label of its app; "django" for Django's own.
    label: str
    #: The options of its task; None: it is none.
    options: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def dotted(self) -> str:
        """Label and name."""
        return f"{self.label}.{self.name}"

    @property
    def task_name(self) -> str:
        """The name of its task."""
        return PREFIX + self.dotted

    @property
    def task_options(self) -> dict[str, Any]:
        """The options of its task, ours included."""
        given = {
            name: value
            for name, value in (self.options or {}).items()
            # What is no name is told by a check, which has to get so far.
            if isinstance(name, str) and name not in RESERVED
        }
        return {**given, "name": self.task_name, "command": self.name}

    def matches(self, pattern: Any) -> bool:
        """Tell whether a key of COMMAND_TASKS means this command."""
        text = str(pattern)
        return fnmatchcase(self.name, text) or fnmatchcase(self.dotted, text)


class CommandTask(DjangoTask):
    """Runs a management command with what it is given, as ``manage.py`` would.

    Its parameters are those of the command's parser. A ``CommandError`` fails the run with its
    message, and so does ``sys.exit``. The result is None: what the command prints is its output.
    """

    abstract = True
    #: Celery would check arguments against the code; the command's parser knows better.
    typing = False
    #: Output is kept for runs that have a row.
    track = True
    #: Of a unique command that says nothing itself. Long, for long runs; each end frees its key.
    stale_time_limit: timedelta | float | None = timedelta(weeks=1)
    #: The command's name.
    command = ""

    def own_signature(self) -> Signature:
        """Return the signature of the command; imports it."""
        return _line_of(self.command).signature

    def unique_key_generator(
        self, prefix: str, task_args: Sequence[Any], task_kwargs: Mapping[str, Any]
    ) -> str:
        """Return what calls have in common that run the same; ``unique_on`` counts."""
        signature = self.own_signature()
        try:
            call = prepare_call(self, task_args, task_kwargs)
        except InvalidArguments:
            # The worker will say so.
            return str(dumps([list(task_args), dict(task_kwargs)], sort_keys=True))
        values = bind(signature, call.args, call.kwargs).by_name()
        told = {
            name: values[name]
            for name in self._unique_names(signature)
            if name in values and values[name] != signature[name].default
        }
        return str(dumps(told, sort_keys=True))

    def _unique_names(self, signature: Signature) -> Sequence[str]:
        """Return the parameters by which calls are the same; raises ImproperlyConfigured."""
        if self.unique_on is None:
            return [item.name for item in signature.parameters]
        names = [self.unique_on] if isinstance(self.unique_on, str) else self.unique_on
        unknown = [name for name in names if name not in signature]
        if unknown:
            raise ImproperlyConfigured(
                f"{self.name}: unique_on names {unknown!r}, and the command has no such parameter."
            )
        return names

    def run_command(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run the command here and now; raises CommandError, and what the command raises."""
        line = _line_of(self.command)
        try:
            call = prepare_call(self, args, kwargs)
        except InvalidArguments as error:
            raise CommandError("\n".join(error.lines)) from error
        words = line.words(bind(line.signature, call.args, call.kwargs).by_name())
        with no_input():
            try:
                call_command(self.command, *words)
            except SystemExit as error:
                # It would end the worker's process, not only the command.
                _tell_exit(error)


def connect() -> None:
    """Make a task of each command that COMMAND_TASKS names, in every Celery app."""
    for command in known_commands():
        if command.options is not None:
            _register(command)


def known_commands() -> Iterator[KnownCommand]:
    """Yield each command that Django finds, with the options of its task if it is one.

    Of several matching keys in COMMAND_TASKS the first one counts.
    """
    patterns = settings.COMMAND_TASKS
    if not isinstance(patterns, Mapping) or not patterns:
        # What is no mapping is told by a check; without commands none is looked for.
        return
    for command in _found_commands():
        options = next((patterns[key] for key in patterns if command.matches(key)), None)
        yield replace(command, options=options if isinstance(options, Mapping) else None)


def _found_commands() -> Iterator[KnownCommand]:
    """Yield each command that Django finds, by name."""
    labels = {config.name: config.label for config in apps.get_app_configs()}
    labels["django.core"] = DJANGO
    for name, app_name in sorted(get_commands().items()):
        yield KnownCommand(name=name, label=_label(app_name, labels))


def command_task(name: str) -> Task:
    """Return the task of a command, named ``"clearsessions"`` or ``"sessions.clearsessions"``.

    Raises CommandNotConfigured.
    """
    connect()
    for command in known_commands():
        if command.options is not None and name in (command.name, command.dotted):
            return celery_app().tasks[command.task_name]
    names = [text for command in _found_commands() for text in (command.name, command.dotted)]
    close = get_close_matches(name, names, n=3)
    raise CommandNotConfigured(name, exists=name in names, close=close)


def _label(app_name: Any, labels: Mapping[str, str]) -> str:
    """Return the label of the app that has a command."""
    if isinstance(app_name, BaseCommand):
        app_name = type(app_name).__module__.partition(".management")[0]
    return labels.get(app_name) or str(app_name).rpartition(".")[2]


@cache
def _register(command: KnownCommand) -> None:
    """Register the task with each Celery app there is, and with each that comes, once."""
    shared_task(base=CommandTask, bind=True, **command.task_options)(_code_of(command))


def _code_of(command: KnownCommand) -> Callable[..., None]:
    """Return the function of a task, with a docstring that needs no import of the command."""

    def run(task: CommandTask, /, *args: Any, **kwargs: Any) -> None:
        task.run_command(args, kwargs)

    run.__doc__ = f"Run the management command {command.name} of the app {command.label}."
    return run


#: What was read of a command, and when; one that could not be read is tried again.
_lines: dict[str, tuple[float, CommandLine]] = {}


def _line_of(name: str) -> CommandLine:
    """Return what a command can be given; never raises."""
    known = _lines.get(name)
    if known is not None and monotonic() - known[0] < FRESH_SECONDS:
        return known[1]
    attempt = Attempt()
    try:
        with attempt:
            _lines[name] = monotonic(), _read(name)
    except SystemExit as error:
        # It would end the web server, not only the command.
        return unreadable(error)
    return _lines[name][1] if attempt.error is None else unreadable(attempt.error)


def _read(name: str) -> CommandLine:
    """Read what a command can be given; raises whatever its code raises."""
    app_name: Any = get_commands()[name]
    is_loaded = isinstance(app_name, BaseCommand)
    return read_command_line(app_name if is_loaded else load_command_class(app_name, name), name)


def _tell_exit(error: SystemExit) -> None:
    """Raise CommandError if the exit says that the command failed."""
    if error.code is None or error.code == 0:
        return
    is_text = not isinstance(error.code, int)
    raise CommandError(
        str(error.code) if is_text else f"The command exited with code {error.code}."
    ) from error
