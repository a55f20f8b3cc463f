"""Which argument goes to which parameter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

from celery_admin_runner.exceptions import ALL
from celery_admin_runner.parameters import Parameter, Signature

#: Where in a call, or inside of one argument, something is: ``("order", "items", 0)``.
Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A value, and the parameter it is for."""

    parameter: Parameter
    value: Any
    #: The keyword it is given by; "" for a positional argument.
    key: str = ""
    place: Place


@dataclass(frozen=True)
class Binding:
    """The arguments of a call in their order, and what does not fit."""

    arguments: list[Argument] = field(default_factory=list)
    problems: dict[Place, list[str]] = field(default_factory=dict)

    def by_name(self) -> dict[str, Any]:
        """Return the values by parameter: a list for ``*args``, a dict for ``**kwargs``."""
        values: dict[str, Any] = {}
        for argument in self.arguments:
            name = argument.parameter.name
            if argument.parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                values.setdefault(name, []).append(argument.value)
            elif argument.parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values.setdefault(name, {})[argument.key] = argument.value
            else:
                values[name] = argument.value
        return values


def bind(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Binding:
    """Give each argument to its parameter, as a call in Python would; never raises."""
    binding = Binding()
    _bind_args(binding, signature, args)
    _bind_kwargs(binding, signature, kwargs)
    given = {argument.parameter.name for argument in binding.arguments}
    for parameter in signature.parameters:
        if parameter.is_required and parameter.name not in given:
            binding.problems.setdefault((parameter.name,), []).append(_("Field required"))
    return binding


def arrange(signature: Signature, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the call that gives ``values`` to the parameters: the inverse of ``bind``.

    Required parameters go by position, the others by name, unless only a position
    will do; what then stands before them goes by position too, with its default.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    last = _last_position(signature, values)
    for index, parameter in enumerate(signature.parameters):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            args.extend(values.get(parameter.name, ()))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update(values.get(parameter.name, {}))
        elif index <= last:
            args.append(values.get(parameter.name, parameter.default))
        elif parameter.name in values:
            kwargs[parameter.name] = values[parameter.name]
    return args, kwargs


def _last_position(signature: Signature, values: Mapping[str, Any]) -> int:
    """Return the index of the last parameter that goes by position, -1 if none does."""
    last = -1
    for index, parameter in enumerate(signature.parameters):
        if parameter.is_required and parameter.name not in values:
            return last
        is_positional = parameter.kind in _POSITIONAL
        is_position_only = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        is_given = parameter.name in values
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and values.get(parameter.name):
            last = index - 1
        elif is_positional and is_given and (parameter.is_required or is_position_only):
            last = index
    return last


def _bind_args(binding: Binding, signature: Signature, args: Sequence[Any]) -> None:
    positions = _positions(signature)
    for value in args:
        parameter, place = next(positions, (None, ()))
        if parameter is None:
            text = _("The task takes fewer positional arguments than the %(count)s given.")
            binding.problems[(ALL,)] = [text % {"count": len(args)}]
            return
        binding.arguments.append(Argument(parameter=parameter, value=value, place=place))


def _positions(signature: Signature) -> Iterator[tuple[Parameter, Place]]:
    """Yield the parameters that take positional arguments, ``*args`` for ever."""
    for parameter in signature.parameters:
        if parameter.kind in _POSITIONAL:
            yield parameter, (parameter.name,)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            index = 0
            while True:
                yield parameter, (parameter.name, index)
                index += 1


def _bind_kwargs(binding: Binding, signature: Signature, kwargs: Mapping[str, Any]) -> None:
    taken = {argument.parameter.name for argument in binding.arguments}
    named = {item.name: item for item in signature.parameters if item.kind in _NAMED}
    others = [item for item in signature.parameters if item.kind is inspect.Parameter.VAR_KEYWORD]
    for key, value in kwargs.items():
        if key in named and key in taken:
            text = _("This is given twice: by its position and by its name.")
            binding.problems[(key,)] = [text]
        elif key in named:
            argument = Argument(parameter=named[key], value=value, key=key, place=(key,))
            binding.arguments.append(argument)
        elif others:
            place = (others[0].name, key)
            argument = Argument(parameter=others[0], value=value, key=key, place=place)
            binding.arguments.append(argument)
        else:
            text = _("The task has no parameter %(name)s.") % {"name": repr(key)}
            binding.problems.setdefault((ALL,), []).append(text)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
