"""What can be given to a command, and the words that give it."""

from __future__ import annotations

import argparse
import inspect
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from django.core.management import BaseCommand
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_admin_runner.command_lines.inputs import (
    Input,
    RefusedValue,
    constants_input,
    input_of,
    is_plain_constant,
)
from celery_admin_runner.command_lines.texts import filled, joined, option_of, plain_name
from celery_admin_runner.exceptions import ALL
from celery_admin_runner.parameters import Parameter, Signature

#: Django's options that say how ``manage.py`` itself behaves, not what the command does.
_HIDDEN = frozenset(
    {
        "--version",
        "--settings",
        "--pythonpath",
        "--traceback",
        "--no-color",
        "--force-color",
        "--skip-checks",
    }
)
#: Commands, mostly Django's, that are of no use in a worker, or would never leave it again.
_ON_TERMINALS = frozenset({"changepassword", "dbshell", "runserver", "shell", "testserver"})
#: Given to each command that knows it: the output goes to a page, and nobody answers there.
_ALWAYS = ("--no-color", "--no-input", "--noinput")
_NO_INPUT = frozenset({"--no-input", "--noinput"})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Inputs of which one can be given at most."""

    inputs: tuple[Input, ...]
    is_required: bool

    @property
    def names(self) -> str:
        """The names of its parameters."""
        return ", ".join(item.parameter.name for item in self.inputs)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What can be given to a command."""

    inputs: tuple[Input, ...] = ()
    groups: tuple[Group, ...] = ()
    #: Words that are always given.
    always: tuple[str, ...] = ()
    #: The command takes a list of raw words, because no form can show what it takes.
    is_raw: bool = False
    #: Why the command can't be run as a task at all; "" if it can.
    refusal: Any = ""
    summary: str = ""
    description: str = ""
    problem: str = ""
    signature: Signature = field(init=False)

    def __post_init__(self) -> None:
        """Make the signature."""
        parameters = _ordered([item.parameter for item in self.inputs])
        if self.is_raw:
            kind = inspect.Parameter.VAR_POSITIONAL
            raw = Parameter(
                name="words",
                kind=kind,
                annotation=str,
                has_annotation=True,
                help_text=cast(
                    "str",
                    gettext_lazy("The words that follow the command's name on the command line."),
                ),
            )
            parameters = (raw,)
        signature = Signature(
            parameters, self.summary, self.description, self.problem, self.problems
        )
        object.__setattr__(self, "signature", signature)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the command line that gives these values, by parameter, to the command."""
        if self.is_raw:
            return [*self.always, *map(str, values.get("words", ()))]
        given = [
            (item, item.words(values[item.parameter.name]))
            for item in self.inputs
            if item.parameter.name in values
        ]
        options = [word for item, words in given if not item.is_positional for word in words]
        positional = [word for item, words in given if item.is_positional for word in words]
        takes_rest = any(item.actions[0].nargs == argparse.REMAINDER for item in self.inputs)
        separator = ["--"] if positional and not takes_rest else []
        # What is always given ends the values of an option before it that takes a list.
        return [*options, *self.always, *separator, *positional]

    def problems(self, values: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return what is wrong with values that are valid one by one."""
        if self.refusal:
            return {ALL: [str(self.refusal)]}
        found: dict[str, list[str]] = {}
        words: dict[str, list[str]] = {}
        for item in self.inputs:
            name = item.parameter.name
            if name in values:
                try:
                    words[name] = item.words(values[name])
                except RefusedValue as error:
                    found[name] = [str(error.text)]
        for group in self.groups:
            names = [item.parameter.name for item in group.inputs]
            given = [name for name in names if words.get(name)]
            if len(given) > 1:
                text = _("Give only one of these: %(names)s.") % {"names": group.names}
                found |= {name: [text] for name in given}
            elif group.is_required and not given:
                found[ALL] = [_("Give one of these: %(names)s.") % {"names": group.names}]
        for name in self._gaps(words):
            found.setdefault(name, []).append(_("Give this too: what follows it is given."))
        return found

    def _gaps(self, words: Mapping[str, list[str]]) -> Iterator[str]:
        """Yield the positional parameters whose place the value of a later one would take."""
        optional = [
            item.parameter.name
            for item in self.inputs
            if item.is_positional and not item.parameter.is_required
        ]
        given = [name for name in optional if words.get(name)]
        if given:
            yield from (
                name for name in optional[: optional.index(given[-1])] if name not in given
            )


def read_command_line(command: BaseCommand, name: str) -> CommandLine:
    """Read what a command can be given from its parser; raises what its code raises."""
    parser = command.create_parser("manage.py", name)
    summary, description = _texts(command, parser)
    if name in _ON_TERMINALS:
        text = gettext_lazy(
            "It can't be run as a task: it talks to somebody at a terminal, or never ends."
        )
        return CommandLine(refusal=text, summary=summary, description=cast("str", text))
    always = tuple(_always(parser))
    if _NO_INPUT & set(always):
        text = gettext_lazy("It asks no questions: as a task it always runs with --no-input.")
        description = joined([description, text], "\n\n")
    known = CommandLine(always=always, summary=summary, description=description)
    if any(action.nargs == argparse.PARSER for action in parser._actions):
        problem = gettext_lazy(
            "The command has subcommands, which no form can show: give the words of its "
            "command line as a list of positional arguments."
        )
        return replace(known, is_raw=True, problem=cast("str", problem))
    inputs = tuple(_inputs(parser))
    groups = tuple(_groups(parser, inputs))
    return replace(
        known,
        inputs=tuple(_with_group(item, groups) for item in inputs),
        groups=groups,
    )


def unreadable(error: BaseException) -> CommandLine:
    """Return the command line of a command that could not be read: any words."""
    text = gettext_lazy("The command can't be read: %(error)s.")
    return CommandLine(is_raw=True, problem=filled(text, error=repr(error)))


def _texts(command: BaseCommand, parser: ArgumentParser) -> tuple[str, str]:
    """Return the first paragraph of the command's help, and the rest."""
    text = inspect.cleandoc(str(command.help or parser.description or ""))
    first, _separator, rest = text.partition("\n\n")
    more = [part for part in (rest.strip(), str(parser.epilog or "").strip()) if part]
    return " ".join(first.split()), "\n\n".join(more)


def _always(parser: ArgumentParser) -> Iterator[str]:
    """Yield the options without a value that a task always gives."""
    for action in parser._actions:
        known = [text for text in _ALWAYS if text in action.option_strings]
        if known and action.nargs == 0:
            yield known[0]


def _is_hidden(action: Action) -> bool:
    """Tell whether an option is not offered: not the command's own, or its author hides it."""
    strings = set(action.option_strings)
    if isinstance(action, argparse._HelpAction | argparse._VersionAction) or strings & _HIDDEN:
        return True
    if strings & _NO_INPUT and action.nargs == 0:
        return True
    return action.help == SUPPRESS and bool(strings) and not action.required


def _inputs(parser: ArgumentParser) -> Iterator[Input]:
    by_dest: dict[str, list[Action]] = {}
    # Django's own come last, as in its --help.
    for action in sorted(parser._actions, key=lambda item: "--verbosity" in item.option_strings):
        if not _is_hidden(action):
            by_dest.setdefault(action.dest, []).append(action)
    taken = set(by_dest)
    for dest, actions in by_dest.items():
        if len(actions) > 1 and all(map(is_plain_constant, actions)):
            yield constants_input(parser, actions, dest)
            continue
        yield input_of(parser, actions[0], dest)
        for action in actions[1:]:
            name = plain_name(option_of(action) or dest)
            while name in taken:
                name += "_"
            taken.add(name)
            yield input_of(parser, action, name)


def _groups(parser: ArgumentParser, inputs: Iterable[Input]) -> Iterator[Group]:
    """Yield the mutually exclusive groups, as far as they are shown."""
    known = tuple(inputs)
    for group in parser._mutually_exclusive_groups:
        actions = group._group_actions
        members = tuple(item for item in known if set(item.actions) & set(actions))
        shown = {action for item in members for action in item.actions}
        is_required = group.required and shown >= set(actions)
        if len(members) > 1 or (members and is_required):
            yield Group(inputs=members, is_required=is_required)


def _with_group(item: Input, groups: Iterable[Group]) -> Input:
    """Say in the help text of a parameter with which others it can't be given."""
    mine = (group for group in groups if any(item is member for member in group.inputs))
    group = next((group for group in mine if group.inputs[1:]), None)
    if group is None:
        return item
    text = gettext_lazy("Only one of these can be given: %(names)s.")
    if group.is_required:
        text = gettext_lazy("Just one of these must be given: %(names)s.")
    help_text = joined([item.parameter.help_text, filled(text, names=group.names)])
    return replace(item, parameter=replace(item.parameter, help_text=help_text))


def _ordered(parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Return the parameters in the order of a signature: positional ones first.

    What is required after what is not goes by its name alone.
    """
    order = [inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY]
    listed = sorted(parameters, key=lambda item: order.index(item.kind))
    found = []
    has_optional = False
    for parameter in listed:
        is_positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if is_positional and parameter.is_required and has_optional:
            parameter = replace(parameter, kind=inspect.Parameter.KEYWORD_ONLY)
        has_optional = has_optional or not parameter.is_required
        found.append(parameter)
    return tuple(found)
