"""What an action of argparse is in a form, and a value of it on the command line."""

from __future__ import annotations

import argparse
import inspect
import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from django.utils.translation import gettext_lazy

from celery_admin_runner.annotations import union_of
from celery_admin_runner.command_lines.texts import (
    filled,
    help_texts,
    is_secret,
    is_to_tell,
    joined,
    option_of,
)
from celery_admin_runner.command_lines.values import (
    LITERAL,
    MISSING,
    default_of,
    is_file,
    item_of,
    key_of,
    kind_of,
    list_of,
    one_of,
    wire_of,
)
from celery_admin_runner.parameters import Default, Parameter

#: What argparse takes for a value though it begins with a dash.
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
#: So often an option that is counted can be given: each time is a word.
_COUNT_MAX = 100
#: Types of constants that travel as they are, and that a Literal can name.
_PLAIN = (str, int, bool)


class RefusedValue(ValueError):
    """argparse would take a value for something else; ``text`` says for what, to people."""

    text: Any = ""


class DashedValue(RefusedValue):
    """argparse would take one of several values for the name of an option."""

    text = gettext_lazy("Of several values none can begin with a dash.")


class DashedPosition(RefusedValue):
    """argparse would take a positional value for the name of an option."""

    text = gettext_lazy("It can't begin with a dash: the command would take it for an option.")


class FileOfWords(RefusedValue):
    """argparse would read words from the file that a value names (``fromfile_prefix_chars``)."""

    text = gettext_lazy(
        "It can't begin with this character: the command would read a file of that name."
    )


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


def input_of(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return what an action of argparse is in a form."""
    if isinstance(action, argparse._CountAction):
        return _count(parser, action, name)
    if isinstance(action, argparse.BooleanOptionalAction):
        return _yes_or_no(parser, action, name)
    if is_plain_constant(action):
        return constants_input(parser, [action], name)
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
        words=lambda value: [option_of(action)] if value else [],
    )


def is_plain_constant(action: Action) -> bool:
    """Tell whether an option stands for a constant that can be named in a call."""
    return isinstance(action, argparse._StoreConstAction) and type(action.const) in _PLAIN


def constants_input(parser: ArgumentParser, actions: Sequence[Action], name: str) -> Input:
    """Return the choice between the constants of the options with one destination."""
    options = {key_of(action.const): option_of(action) for action in actions}
    consts = [action.const for action in actions]
    default = actions[0].default
    if len(consts) == 1 and isinstance(consts[0], bool) and default in (None, SUPPRESS):
        # Not given is as good as the other answer.
        default = not consts[0]
    if any(map(is_required, actions)):
        # Then none of them is no answer.
        default = None
    elif default is None or (default != SUPPRESS and type(default) in _PLAIN):
        consts.append(default)
    elif len(consts) == 1:
        return _flag(parser, actions[0], name)
    else:
        default = Default.COMPUTED
    return Input(
        parameter=_parameter(parser, actions, name, one_of(consts), default),
        actions=tuple(actions),
        words=lambda value: [options[key_of(value)]] if key_of(value) in options else [],
    )


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
    annotation: Any = Annotated[int, Ge(at_least), Le(start + _COUNT_MAX)]
    return Input(
        parameter=_parameter(parser, [action], name, annotation, start),
        actions=(action,),
        words=lambda value: [option_of(action)] * (value - start),
    )


def _appended(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return the list of ``--tag a --tag b``."""
    is_extended = isinstance(action, argparse._ExtendAction)
    is_single = action.nargs in (None, argparse.OPTIONAL)
    is_nested = not is_single and not is_extended
    item = list_of(item_of(action), action.nargs) if is_nested else item_of(action)
    # argparse adds to the default; it does not replace it.
    start = action.default if isinstance(action.default, list | tuple) else ()
    text = gettext_lazy("Added to: %(values)s.")
    notes = [filled(text, values=", ".join(map(str, start)))] if start else []

    def words(value: Any) -> list[str]:
        if is_extended and not is_single:
            return _words(parser, action, value) if value else []
        parts = value if is_nested else [[part] for part in value]
        return [word for part in parts for word in _words(parser, action, part)]

    annotation = list_of(item, "+" if action.required else "*")
    return Input(
        parameter=_parameter(parser, [action], name, annotation, [], notes),
        actions=(action,),
        words=words,
    )


def _value(parser: ArgumentParser, action: Action, name: str) -> Input:
    """Return a value, or a list of some."""
    is_list = action.nargs not in (None, argparse.OPTIONAL)
    annotation = list_of(item_of(action), action.nargs) if is_list else item_of(action)
    if annotation is str and is_required(action):
        # An empty field is no answer.
        annotation = Annotated[str, Len(1)]
    has_bare = bool(action.option_strings) and action.nargs == argparse.OPTIONAL
    notes: list[Any] = []
    if has_bare and wire_of(action, action.const, annotation) is not MISSING:
        text = gettext_lazy("Without a value the option means %(value)s.")
        notes.append(filled(text, value=repr(action.const)))
    elif has_bare and action.const != action.default:
        annotation = union_of((LITERAL[True], annotation))
        notes.append(gettext_lazy("true gives the option without a value."))
    if is_file(action):
        notes.append(gettext_lazy("A file where the worker runs."))
    default = default_of(action, annotation, is_list=is_list)
    if default is None and not is_required(action):
        annotation = union_of((annotation, None))
    if default is Default.COMPUTED and is_to_tell(action):
        notes.append(filled(gettext_lazy("Default: %(value)s."), value=str(action.default)))

    def words(value: Any) -> list[str]:
        if value is None:
            return []
        if value is True and has_bare:
            return [option_of(action)]
        return _words(parser, action, value if is_list else [value])

    return Input(
        parameter=_parameter(parser, [action], name, annotation, default, notes),
        actions=(action,),
        words=words,
    )


def _words(parser: ArgumentParser, action: Action, values: Iterable[Any]) -> list[str]:
    """Return the words by which an action gets these values; raises RefusedValue."""
    is_bool = kind_of(action) is bool
    texts = [("True" if value else "") if is_bool else str(value) for value in values]
    if "--" in texts and action.nargs != argparse.REMAINDER:
        # argparse takes it away, from ``--name=--`` too in Python 3.12: the command gets a [].
        raise DashedPosition
    if action.option_strings and len(texts) == 1:
        return [f"{option_of(action)}={texts[0]}"]
    if any(text.startswith(tuple(parser.fromfile_prefix_chars or ())) for text in texts):
        # Whoever may run the command may not read each file of the worker's by that.
        raise FileOfWords
    if not action.option_strings:
        if any(_looks_like_option(parser, text) for text in _bare(parser, action, texts)):
            raise DashedPosition
        return texts
    if any(_looks_like_option(parser, text) for text in texts):
        raise DashedValue
    return [option_of(action), *texts]


def _bare(parser: ArgumentParser, action: Action, texts: list[str]) -> list[str]:
    """Return those of a positional argument's words that argparse looks at as at any others.

    A ``--`` before them tells it that they are no options, but not where the rest of the line
    is an argument, to which the ``--`` would belong.
    """
    positional = parser._get_positional_actions()
    if not any(item.nargs == argparse.REMAINDER for item in positional):
        return []
    if action.nargs != argparse.REMAINDER:
        return texts
    return texts[:1] if action is positional[0] else []


def _looks_like_option(parser: ArgumentParser, text: str) -> bool:
    """Tell whether argparse takes a word for the name of an option."""
    if len(text) < 2 or text[0] not in parser.prefix_chars:
        return False
    if _NEGATIVE_NUMBER.fullmatch(text) and not parser._has_negative_number_optionals:
        return False
    # ``-x some text`` is the option ``-x`` with a value.
    return " " not in text or "=" in text or text[:2] in parser._option_string_actions


def _parameter(
    parser: ArgumentParser,
    actions: Sequence[Action],
    name: str,
    annotation: Any,
    default: Any,
    notes: Sequence[Any] = (),
) -> Parameter:
    """Return the parameter of actions with one destination; what is required has no default."""
    # A note may quote a value.
    told = () if any(map(is_secret, actions)) else notes
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(
        name=name,
        kind=inspect.Parameter.KEYWORD_ONLY if actions[0].option_strings else positional,
        annotation=annotation,
        has_annotation=True,
        default=MISSING if any(map(is_required, actions)) else default,
        help_text=joined([*help_texts(parser, actions, name), *told]),
    )


def is_required(action: Action) -> bool:
    """Tell whether a value must be given: ``required`` says nothing of positional arguments."""
    if action.option_strings:
        return action.required
    return action.nargs not in (argparse.OPTIONAL, argparse.ZERO_OR_MORE, argparse.REMAINDER)
