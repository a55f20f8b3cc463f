"""A management command's argparse parser as typed parameters, and values as its command line."""

from __future__ import annotations

import argparse
import inspect
import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from itertools import islice
from types import GenericAlias
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from annotated_types import Ge, Le, Len
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils.functional import lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from pydantic import GetCoreSchemaHandler, Secret, SecretStr
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from celery_admin_runner.annotations import union_of
from celery_admin_runner.exceptions import ALL
from celery_admin_runner.parameters import UNREADABLE, Default, Parameter, Signature
from celery_admin_runner.redaction import MASK, is_secret_name

#: What goes wrong in a project's own code while a command is imported, or a text converted.
BROKEN = (
    *UNREADABLE,
    argparse.ArgumentError,
    argparse.ArgumentTypeError,
    CommandError,
    DatabaseError,
    ImproperlyConfigured,
    ValidationError,
)
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
#: Given to each command that knows it: the output goes to a page, and nobody answers there.
_ALWAYS = ("--no-color", "--no-input", "--noinput")
_NO_INPUT = frozenset({"--no-input", "--noinput"})
#: More choices than this make a form slow; they are checked, and not listed.
_CHOICES_MAX = 1000
#: What argparse takes for a value though it begins with a dash.
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
#: A range of numbers up to this long is a list to choose from, a longer one has bounds.
_RANGE_MAX = 25
#: Types of constants that travel as they are, and that a Literal can name.
_PLAIN = (str, int, bool, type(None))
#: What makes a value of a text, and the class of what it makes, which a form has a field for.
_MAKES: tuple[tuple[Any, type], ...] = (
    (str, str),
    (int, int),
    (float, float),
    (bool, bool),
    (Decimal, Decimal),
    (UUID, UUID),
    (date.fromisoformat, date),
)
_MISSING: Any = inspect.Parameter.empty
_LITERAL: Any = Literal
_SECRET: Any = Secret
_YES_AND_NO = {(bool, True), (bool, False)}


class DashedValue(ValueError):
    """argparse would take a value for the name of an option."""


@dataclass(frozen=True)
class Converted:
    """What stands in ``Annotated`` for a ``type=`` of argparse: a text that it must accept."""

    action: Action

    @property
    def annotation_text(self) -> str:
        """The name of the type."""
        return _name_of(self.action.type)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic to convert the text, and to keep it as it was."""
        return core_schema.no_info_after_validator_function(self._accepted, handler(source))

    def _accepted(self, text: str) -> str:
        try:
            value = _converted(self.action, text)
        except BROKEN as error:
            message = str(error) or _name_of(self.action.type)
            raise _refusal(_("This value is not valid: %(error)s") % {"error": message}) from error
        if self.action.choices is not None and value not in self.action.choices:
            raise _refusal(_("This value is not one of the choices."))
        return text


@dataclass(frozen=True, kw_only=True)
class Input:
    """A parameter of the task, and what a value of it is on the command line."""

    parameter: Parameter
    #: Several where options share one destination: ``--list`` and ``--plan``.
    actions: tuple[Action, ...]
    #: Answers the words of a value; none where the value is what counts anyhow.
    words: Callable[[Any], list[str]]

    @property
    def is_positional(self) -> bool:
        """Tell whether it goes by its position."""
        return not self.actions[0].option_strings


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
        return [*self.always, *options, *separator, *positional]

    def problems(self, values: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return what is wrong with values that are valid one by one."""
        found: dict[str, list[str]] = {}
        words: dict[str, list[str]] = {}
        for item in self.inputs:
            name = item.parameter.name
            if name in values:
                try:
                    words[name] = item.words(values[name])
                except DashedValue:
                    found[name] = [_("Of several values none can begin with a dash.")]
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
    always = tuple(_always(parser))
    if _NO_INPUT & set(always):
        text = gettext_lazy("It asks no questions: as a task it always runs with --no-input.")
        description = _joined([description, text], "\n\n")
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
    return CommandLine(is_raw=True, problem=_filled(text, error=repr(error)))


# What there is


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
        if len(actions) > 1 and all(map(_is_plain_constant, actions)):
            yield _constants(parser, actions, dest)
            continue
        yield _input(parser, actions[0], dest)
        for action in actions[1:]:
            name = _plain_name(_option(action) or dest)
            while name in taken:
                name += "_"
            taken.add(name)
            yield _input(parser, action, name)


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
    text = _filled(text, names=group.names)
    help_text = _joined([item.parameter.help_text, text])
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


# One input


def _input(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return what an action of argparse is in a form."""
    if isinstance(action, argparse._CountAction):
        return _count(parser, action, name)
    if isinstance(action, argparse.BooleanOptionalAction):
        return _yes_or_no(parser, action, name)
    if _is_plain_constant(action):
        return _constants(parser, [action], name)
    if action.nargs == 0:
        return _flag(parser, action, name)
    if isinstance(action, argparse._AppendAction):
        return _appended(parser, action, name)
    return _value(parser, action, name)


def _flag(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return the yes or no of whether an option is given."""
    return Input(
        parameter=_parameter(parser, [action], name, bool, False),
        actions=(action,),
        words=lambda value: [_option(action)] if value else [],
    )


def _is_plain_constant(action: Action) -> bool:
    """Tell whether an option stands for a constant that can be named in a call."""
    return isinstance(action, argparse._StoreConstAction) and type(action.const) in _PLAIN


def _constants(parser: ArgumentParser, actions: Sequence[Action], name: str) -> Input:
    """Return the choice between the constants of the options with one destination."""
    options = {_key(action.const): _option(action) for action in reversed(actions)}
    consts = [action.const for action in actions]
    default = actions[0].default
    if len(consts) == 1 and isinstance(consts[0], bool) and default in (None, SUPPRESS):
        # Not given is as good as the other answer.
        default = not consts[0]
    if default != SUPPRESS and type(default) in _PLAIN:
        consts.append(default)
    elif len(consts) == 1:
        return _flag(parser, actions[0], name)
    else:
        default = Default.COMPUTED
    return Input(
        parameter=_parameter(parser, actions, name, _one_of(consts), default),
        actions=tuple(actions),
        words=lambda value: [options[_key(value)]] if _key(value) in options else [],
    )


def _key(const: Any) -> tuple[type, Any]:
    """Return what tells 1 from True."""
    return type(const), const


def _one_of(values: Iterable[Any]) -> Any:
    """Return the annotation of one of these: a yes or no, or a Literal, and None if it is one."""
    listed = list(values)
    consts = tuple(value for _kind, value in dict.fromkeys(map(_key, listed)) if value is not None)
    annotation: Any = bool if set(map(_key, consts)) == _YES_AND_NO else _LITERAL[consts]
    return union_of((annotation, None)) if None in listed else annotation


def _yes_or_no(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return the yes or no of ``--colour`` and ``--no-colour``."""
    strings = action.option_strings
    no = next((text for text in strings if text.startswith("--no-")), strings[-1])
    yes = next(text for text in strings if text != no)
    default = action.default if isinstance(action.default, bool) else None
    annotation: Any = bool
    if default is None and not action.required:
        annotation = union_of((bool, None))
    return Input(
        parameter=_parameter(parser, [action], name, annotation, default),
        actions=(action,),
        words=lambda value: [] if value is None else [yes if value else no],
    )


def _count(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return the number of ``-vvv``, which argparse counts from the default on."""
    start = action.default if isinstance(action.default, int) else 0
    at_least = start + 1 if action.required else start
    return Input(
        parameter=_parameter(parser, [action], name, Annotated[int, Ge(at_least)], start),
        actions=(action,),
        words=lambda value: [_option(action)] * (value - start),
    )


def _appended(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return the list of ``--tag a --tag b``."""
    is_extended = isinstance(action, argparse._ExtendAction)
    is_single = action.nargs in (None, argparse.OPTIONAL)
    is_nested = not is_single and not is_extended
    item = _list_of(_item(action), action.nargs) if is_nested else _item(action)
    # argparse adds to the default; it does not replace it.
    start = action.default if isinstance(action.default, list | tuple) else ()
    text = gettext_lazy("Added to: %(values)s.")
    notes = [_filled(text, values=", ".join(map(str, start)))] if start else []

    def words(value: Any) -> list[str]:
        if is_extended and not is_single:
            return _words(parser, action, value) if value else []
        parts = value if is_nested else [[part] for part in value]
        return [word for part in parts for word in _words(parser, action, part)]

    annotation = _list_of(item, "+" if action.required else "*")
    return Input(
        parameter=_parameter(parser, [action], name, annotation, [], notes),
        actions=(action,),
        words=words,
    )


def _value(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return a value, or a list of some."""
    is_list = action.nargs not in (None, argparse.OPTIONAL)
    annotation = _list_of(_item(action), action.nargs) if is_list else _item(action)
    if annotation is str and _is_required(action):
        # An empty field is no answer.
        annotation = Annotated[str, Len(1)]
    has_bare = bool(action.option_strings) and action.nargs == argparse.OPTIONAL
    notes: list[Any] = []
    if has_bare and _wire(action, action.const, annotation) is not _MISSING:
        text = gettext_lazy("Without a value the option means %(value)s.")
        notes.append(_filled(text, value=repr(action.const)))
    elif has_bare and action.const != action.default:
        annotation = union_of((_LITERAL[True], annotation))
        notes.append(gettext_lazy("true gives the option without a value."))
    if _is_file(action):
        notes.append(gettext_lazy("A file where the worker runs."))
    default = _default(action, annotation, is_list=is_list)
    if default is None and not _is_required(action):
        annotation = union_of((annotation, None))
    if default is Default.COMPUTED and _is_to_tell(action):
        notes.append(_filled(gettext_lazy("Default: %(value)s."), value=str(action.default)))

    def words(value: Any) -> list[str]:
        if value is None:
            return []
        if value is True and has_bare:
            return [_option(action)]
        return _words(parser, action, value if is_list else [value])

    return Input(
        parameter=_parameter(parser, [action], name, annotation, default, notes),
        actions=(action,),
        words=words,
    )


# Types


def _kind(action: Action) -> Any:
    """Return the class of an action's values, None if it is the project's own to make them."""
    if action.type is None or not callable(action.type) or _is_file(action):
        return str
    return next((base for made_by, base in _MAKES if action.type == made_by), None)


def _is_file(action: Action) -> bool:
    """Tell whether argparse would open a file: that is for the worker alone to do."""
    return isinstance(action.type, argparse.FileType) or action.type is open


def _item(action: Action) -> Any:
    """Return the annotation of one value."""
    annotation = _choice(action) if action.choices is not None else _kind(action)
    if annotation is None:
        annotation = Annotated[str, Converted(action)]
    names = [_plain_name(text) for text in action.option_strings or [action.dest]]
    if any(map(is_secret_name, names)) and not is_secret_name(action.dest):
        # Hidden by its option's name; the parameter has another.
        return SecretStr if annotation is str else _SECRET[annotation]
    return annotation


def _choice(action: Action) -> Any:
    """Return the annotation of one of the choices, None where they can't be listed."""
    choices: Any = action.choices
    kind = _kind(action)
    is_long = isinstance(choices, range) and len(choices) > _RANGE_MAX
    if is_long and kind is int and abs(choices.step) == 1:
        return Annotated[int, Ge(min(choices[0], choices[-1])), Le(max(choices[0], choices[-1]))]
    try:
        listed = list(islice(choices, _CHOICES_MAX + 1))
        wires = [
            item if kind in (str, int) and type(item) is kind else str(item) for item in listed
        ]
        is_same = all(
            _converted(action, str(wire)) == item for wire, item in zip(wires, listed, strict=True)
        )
    except BROKEN:
        return None
    return _one_of(wires) if wires and is_same and len(listed) <= _CHOICES_MAX else None


def _list_of(item: Any, nargs: Any) -> Any:
    """Return the annotation of as many values as ``nargs`` says."""
    annotation: Any = GenericAlias(list, (item,))
    if isinstance(nargs, int):
        return Annotated[annotation, Len(nargs, nargs)]
    return Annotated[annotation, Len(1)] if nargs == argparse.ONE_OR_MORE else annotation


def _converted(action: Action, text: str) -> Any:
    """Return what argparse makes of a text; raises what the project's own type raises."""
    return action.type(text) if callable(action.type) and not _is_file(action) else text


def _wire(action: Action, value: Any, annotation: Any) -> Any:
    """Return what is sent so that argparse makes ``value`` of it, _MISSING if nothing is."""
    kind = _kind(action)
    try:
        if isinstance(value, str) and kind not in (None, str):
            # argparse converts a default that is a text.
            value = _converted(action, value)
        if kind is None and not isinstance(value, str):
            text = str(value)
            value = text if _converted(action, text) == value else _MISSING
        adapter = Parameter(name="", kind=None, annotation=annotation).adapter
        return adapter.dump_python(adapter.validate_python(value, strict=True))
    except BROKEN:
        return _MISSING


def _default(action: Action, annotation: Any, *, is_list: bool) -> Any:
    """Return the default as a call names it; what can't be named is COMPUTED."""
    default = action.default
    if default is SUPPRESS or default == SUPPRESS:
        return Default.COMPUTED
    if default is None:
        is_rest = action.nargs in (argparse.ZERO_OR_MORE, argparse.REMAINDER)
        return [] if is_rest and not action.option_strings else None
    if not is_list:
        wire = _wire(action, default, annotation)
        return Default.COMPUTED if wire is _MISSING else wire
    if not isinstance(default, list | tuple):
        return Default.COMPUTED
    wires = [_wire(action, item, _item(action)) for item in default]
    return Default.COMPUTED if _MISSING in wires else wires


# Words


def _option(action: Action) -> str:
    """Return the clearest name of an option: the longest."""
    return max(action.option_strings, key=len, default="")


def _words(parser: ArgumentParser, action: Action, values: Iterable[Any]) -> list[str]:
    """Return the words by which an action gets these values; raises DashedValue."""
    is_bool = _kind(action) is bool
    texts = [("True" if value else "") if is_bool else str(value) for value in values]
    if not action.option_strings:
        return texts
    if len(texts) == 1:
        return [f"{_option(action)}={texts[0]}"]
    if any(_looks_like_option(parser, text) for text in texts):
        raise DashedValue
    return [_option(action), *texts]


def _looks_like_option(parser: ArgumentParser, text: str) -> bool:
    """Tell whether argparse takes a word for the name of an option."""
    if len(text) < 2 or text[0] not in parser.prefix_chars:
        return False
    if _NEGATIVE_NUMBER.fullmatch(text) and not parser._has_negative_number_optionals:
        return False
    return " " not in text or "=" in text


# Texts


def _parameter(
    parser: ArgumentParser,
    actions: Sequence[Action],
    name: str,
    annotation: Any,
    default: Any,
    notes: Sequence[Any] = (),
) -> Parameter:
    """Return the parameter of actions with one destination; what is required has no default."""
    is_required = any(map(_is_required, actions))
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(
        name=name,
        kind=inspect.Parameter.KEYWORD_ONLY if actions[0].option_strings else positional,
        annotation=annotation,
        has_annotation=True,
        default=_MISSING if is_required else default,
        help_text=_joined([*_help_texts(parser, actions, name), *notes]),
    )


def _is_required(action: Action) -> bool:
    """Tell whether a value must be given: ``required`` says nothing of positional arguments."""
    if action.option_strings:
        return action.required
    return action.nargs not in (argparse.OPTIONAL, argparse.ZERO_OR_MORE, argparse.REMAINDER)


def _help_texts(parser: ArgumentParser, actions: Sequence[Action], name: str) -> Iterator[Any]:
    """Yield what the parser says of each action, and how it is called there if not ``name``."""
    for action in actions:
        text = _expanded(parser, action)
        called = _called(action)
        if len(actions) == 1 and _is_plain_constant(action) and action.const is False:
            no = gettext_lazy("No means %(option)s: %(text)s")
            yield _filled(no, option=called, text=text)
            continue
        is_alike = _plain_name(called) == _plain_name(name) and len(actions) == 1
        if text:
            yield text
        if called and not is_alike:
            yield f"({called})"


def _expanded(parser: ArgumentParser, action: Action) -> str:
    """Return the help text of an action as ``--help`` shows it."""
    if not action.help or action.help == SUPPRESS:
        return ""
    values = {name: value for name, value in vars(action).items() if value is not SUPPRESS}
    names = [_plain_name(text) for text in (*action.option_strings, action.dest)]
    if any(map(is_secret_name, names)):
        values |= {"default": MASK, "const": MASK}
    if action.choices is not None:
        values["choices"] = ", ".join(map(str, islice(action.choices, _CHOICES_MAX)))
    values |= {"prog": parser.prog, "type": _name_of(action.type)}
    text = str(action.help)
    with suppress(KeyError, TypeError, ValueError):
        text = text % values
    return " ".join(text.split())


def _called(action: Action) -> str:
    """Return the option, or what stands for a positional argument in the usage."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return action.option_strings[0]
    is_tuple = isinstance(action.metavar, tuple)
    names = tuple(action.metavar or ()) if is_tuple else (action.metavar or "",)
    if action.option_strings:
        # One name for all values says nothing that the field does not.
        names = (_option(action), *(names if is_tuple else ()))
    return " ".join(names)


def _plain_name(text: str) -> str:
    """Return the name of an option as a name in Python: ``--dry-run`` is ``dry_run``."""
    return text.lstrip("-").replace("-", "_").lower()


def _name_of(kind: Any) -> str:
    maker = getattr(kind, "__self__", None)
    if isinstance(maker, type):
        # ``Colour.from_name`` makes a Colour.
        kind = maker
    return str(getattr(kind, "__name__", "") or type(kind).__name__).strip("_")


def _is_to_tell(action: Action) -> bool:
    """Tell whether a default that can't be named in a call is worth a word."""
    is_told = "default" in str(action.help).lower()
    is_object = str(action.default).startswith("<")
    return action.default != SUPPRESS and not is_told and not is_object


def _filled(text: Any, /, **names: str) -> str:
    """Return the text with its placeholders filled, in the language in which it is read."""
    return lazy(lambda: str(text) % names, str)()


def _joined(texts: Iterable[Any], separator: str = " ") -> str:
    """Return the texts as one, in the language in which it is read."""
    listed = [text for text in texts if text]
    if all(type(text) is str for text in listed):
        return separator.join(listed)
    return lazy(lambda: separator.join(map(str, listed)), str)()


def _refusal(text: str) -> PydanticCustomError:
    return PydanticCustomError("command_argument", "{text}", {"text": text})
