"""What a parser says of its arguments, for people."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from django.utils.functional import lazy
from django.utils.translation import gettext_lazy

from celery_admin_runner.redaction import MASK, is_secret_name

#: What ends a sentence, or leads to the next text.
_ENDS = ".!?:;,…"
#: So many choices are named in a help text.
_CHOICES_MAX = 1000


def help_texts(parser: ArgumentParser, actions: Sequence[Action], name: str) -> Iterator[Any]:
    """Yield what the parser says of each action, and how it is called there if not ``name``."""
    for action in actions:
        text = _expanded(parser, action)
        called = _called(action)
        is_no = isinstance(action, argparse._StoreConstAction) and action.const is False
        if is_no and len(actions) == 1:
            no = gettext_lazy("No means %(option)s: %(text)s")
            if not text:
                no = gettext_lazy("No means %(option)s.")
            yield filled(no, option=called, text=text)
            continue
        is_alike = plain_name(called) == plain_name(name) and len(actions) == 1
        if text:
            yield text
        if called and not is_alike:
            yield f"({called})"


def _expanded(parser: ArgumentParser, action: Action) -> str:
    """Return the help text of an action as ``--help`` shows it."""
    if not action.help or action.help == SUPPRESS:
        return ""
    values = {name: value for name, value in vars(action).items() if value is not SUPPRESS}
    values |= {"prog": parser.prog, "type": name_of(action.type)}
    if is_secret(action):
        values |= {"default": MASK, "const": MASK}
    text = str(action.help)
    with suppress(KeyError, TypeError, ValueError):
        if action.choices is not None:
            values["choices"] = ", ".join(map(str, islice(action.choices, _CHOICES_MAX)))
        text = text % values
    return " ".join(text.split())


def _called(action: Action) -> str:
    """Return the option, or what stands for a positional argument in the usage."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return action.option_strings[0]
    metavar = action.metavar or ""
    if not action.option_strings:
        return metavar if isinstance(metavar, str) else " ".join(metavar)
    # One name for all values says nothing that the field does not.
    names = metavar if isinstance(metavar, tuple) else ()
    return " ".join((option_of(action), *names))


def option_of(action: Action) -> str:
    """Return the clearest name of an option: the longest."""
    return max(action.option_strings, key=len, default="")


def is_secret(action: Action) -> bool:
    """Tell whether REDACT hides what is given for an argument, by its name or its option's."""
    names = [plain_name(text) for text in (*action.option_strings, action.dest)]
    return any(map(is_secret_name, names))


def is_to_tell(action: Action) -> bool:
    """Tell whether a default that can't be named in a call is worth a word."""
    is_told = "default" in str(action.help).lower()
    is_object = str(action.default).startswith("<")
    return action.default != SUPPRESS and not is_told and not is_object


def plain_name(text: str) -> str:
    """Return the name of an option as a name in Python: ``--dry-run`` is ``dry_run``."""
    return text.lstrip("-").replace("-", "_").lower()


def name_of(kind: Any) -> str:
    """Return the name of a type, or of what makes values of a text."""
    kind = getattr(kind, "func", kind)
    maker = getattr(kind, "__self__", None)
    if isinstance(maker, type):
        # ``Colour.from_name`` makes a Colour.
        kind = maker
    return str(getattr(kind, "__name__", "") or type(kind).__name__).strip("_")


def filled(text: Any, /, **names: str) -> str:
    """Return the text with its placeholders filled, in the language in which it is read."""
    return lazy(lambda: str(text) % names, str)()


def joined(texts: Iterable[Any], separator: str = " ") -> str:
    """Return the texts as one, in the language in which it is read; in a line as sentences."""
    listed = [text for text in texts if text]
    join = _sentences if separator == " " else separator.join
    if all(type(text) is str for text in listed):
        return join(listed)
    return lazy(lambda: join(map(str, listed)), str)()


def _sentences(texts: Iterable[str]) -> str:
    """Return texts in a line, with the full stops that authors of help texts leave out."""
    line = ""
    for text in texts:
        # What stands in brackets at the end is not looked at, nor is it a sentence of its own.
        said = line.rpartition(" (")[0] if line.endswith(")") else line
        stop = "." if said and said[-1] not in _ENDS and text[:1] != "(" else ""
        line = f"{line}{stop} {text}" if line else text
    return line
