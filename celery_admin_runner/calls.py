"""A call of a task: checked against its signature, as it is sent and as it is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from celery.app.task import Task
from celery.utils.saferepr import saferepr
from django.utils.translation import gettext as _
from kombu.exceptions import KombuError
from kombu.serialization import dumps, loads
from kombu.utils.json import dumps as json_dumps
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from celery_admin_runner.binding import Argument, Binding, Place, bind
from celery_admin_runner.encoding import CALL_MAX_BYTES, ForeignCode, readable, to_plain
from celery_admin_runner.exceptions import ALL, InvalidArguments, NotEncodable
from celery_admin_runner.model_keys import (
    Absent,
    NamedObjects,
    ObjectSource,
    absent_of,
    objects_for,
    with_model_keys,
)
from celery_admin_runner.parameters import (
    UNREADABLE,
    Check,
    Parameter,
    Signature,
    has_secret,
    read_signature,
    typed_secrets,
)
from celery_admin_runner.redaction import EVERYTHING, MASK, is_secret_name
from celery_admin_runner.wire import (
    Hidden,
    masked,
    revealed,
    secret_texts,
    secrets_in,
    to_wire,
)

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: Length at which Celery too shortens what it shows of arguments.
_REPR_MAX = 1024
#: A text so short, or a number below this, is simple; so many are never too large together.
_SHORT, _LARGE, _FEW = 1000, 2**53, 100

#: pydantic's errors whose messages never quote the value, by the start of their type.
_DISCREET = ("missing", "string_", "bytes_", "int_", "float_", "bool_", "decimal_", "date_type",
             "greater_than", "less_than", "too_", "list_type", "dict_type", "model_type",
             "dataclass_type", "extra_forbidden", "literal_error", "enum")  # fmt: skip


class InvalidCall(InvalidArguments):
    """The arguments do not fit the task; ``places`` knows where inside of an argument."""

    def __init__(self, places: Mapping[Place, Sequence[str]]) -> None:
        self.places: dict[Place, list[str]] = {
            place: list(texts) for place, texts in places.items()
        }
        errors: dict[str, list[str]] = {}
        for (name, *inside), texts in self.places.items():
            prefix = f"{'.'.join(map(str, inside))}: " if inside else ""
            errors.setdefault(str(name), []).extend(f"{prefix}{text}" for text in texts)
        super().__init__(errors)


class InvalidCalls(InvalidArguments):
    """Some of many calls do not fit; ``calls`` has the error of each, by its place from 0 on.

    ``errors`` names them: ``"3.amount"``, or ``"3"`` for what belongs to no single parameter.
    """

    def __init__(self, calls: Mapping[int, InvalidArguments]) -> None:
        self.calls = dict(calls)
        super().__init__(
            {
                str(number) if name == ALL else f"{number}.{name}": texts
                for number, error in calls.items()
                for name, texts in error.errors.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one run."""

    #: What is sent: exactly what the worker will receive.
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The same as plain JSON (``encoding.to_plain``), secrets masked.
    stored_args: list[Any]
    stored_kwargs: dict[str, Any]
    has_secrets: bool
    #: For Celery's events and logs; "" lets Celery make them of what is sent.
    argsrepr: str
    kwargsrepr: str


def signature_of(task: Task) -> Signature:
    """Return the task's signature, read once; Django models in it stand as ``ModelKey``.

    A task that has a method ``own_signature`` answers by it, and reads it once itself.
    """
    own = getattr(task, "own_signature", None)
    return _signature(task) if own is None else cast("Signature", own())


@cache
def _signature(task: Task) -> Signature:
    signature = read_signature(task.run)
    return replace(signature, parameters=tuple(map(with_model_keys, signature.parameters)))


def is_secret(parameter: Parameter) -> bool:
    """Tell whether an argument is one secret as a whole: by REDACT, or by its type."""
    return is_secret_name(parameter.name) or parameter.is_secret_type


def may_hold_secret(parameter: Parameter) -> bool:
    """Tell whether a secret may be an argument, or somewhere in it."""
    return is_secret_name(parameter.name) or has_secret(parameter.annotation, is_secret_name)


def prepare_call(
    task: Task,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    user: AnyUser | None = None,
    objects: ObjectSource | None = None,
) -> Call:
    """Check a call against the task's signature, and return what is sent and stored.

    Each argument is validated by pydantic, as laxly as pydantic does. A call made
    of ``Call.args`` and ``Call.kwargs`` gives the same call again. Objects must
    exist, and ``user`` must have the permission to view them; None is trusted code.
    An admin site hides more than permissions do: who acts through one gives
    ``objects``, which then decides alone. Raises InvalidArguments, and TypeError for what
    is no list of arguments, or no dict of named ones.
    """
    [call] = prepare_calls(task, [(args, kwargs)], user=user, objects=objects)
    if isinstance(call, InvalidCall):
        raise call
    return call


def prepare_calls(
    task: Task,
    calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    *,
    user: AnyUser | None = None,
    objects: ObjectSource | None = None,
) -> list[Call | InvalidCall]:
    """Check many calls as ``prepare_call`` does one; return each, or what is wrong with it.

    The objects of all are asked for together.
    """
    checked = [_Checked(task, args, kwargs) for args, kwargs in calls]
    named = [objects for call in checked for objects in call.named if objects.keys]
    absent = absent_of(named, objects or objects_for(user)) if named else {}
    return [call.prepared(absent) for call in checked]


class _Checked:
    """A call of which each argument was checked, but for the objects that it names."""

    def __init__(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable):
            raise TypeError(f"Give the arguments as a list, and not as {type(args).__name__}.")
        if not isinstance(kwargs, Mapping):
            raise TypeError(
                f"Give the named arguments as a dict, and not as {type(kwargs).__name__}."
            )
        signature = signature_of(task)
        bound = bind(signature, args, kwargs)
        self.arguments = bound.arguments
        self.check = signature.check
        self.problems = dict(bound.problems)
        self.trees: list[Any] = []
        #: What each argument names.
        self.named: list[NamedObjects] = []
        for argument in bound.arguments:
            named = NamedObjects()
            try:
                self.trees.append(_checked(task, argument, named))
            except InvalidCall as error:
                self.problems.update(error.places)
                # Nobody is told more of what is wrong itself.
                named = NamedObjects()
            self.named.append(named)

    def prepared(self, absent: Absent) -> Call | InvalidCall:
        """Return the call, or what is wrong with it."""
        problems = self.problems
        for argument, named in zip(self.arguments, self.named, strict=True):
            if named.keys and (texts := named.problems(absent)):
                problems[argument.place] = [_discreet(argument, text) for text in texts]
        if not problems and self.check is not None:
            problems = _problems_together(self.check, self.arguments, self.trees)
        if problems:
            return InvalidCall(problems)
        try:
            return _call(self.arguments, self.trees)
        except InvalidCall as error:
            return error


def secrets_of(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
    """Return the texts of the secrets in a call, to scrub them from other texts; never raises.

    Nothing is validated: validators are the project's own code. Where a value is not
    what its parameter says, all of it counts as secret; all there is where the
    project's own types raise something: EVERYTHING.
    """
    try:
        with ForeignCode():
            return _secrets_of(task, args, kwargs)
    except NotEncodable:
        return {EVERYTHING}


def _secrets_of(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
    texts: set[str] = set()
    for argument in bind(signature_of(task), args, kwargs).arguments:
        is_named_secret = is_secret_name(argument.parameter.name) or is_secret_name(argument.key)
        try:
            tree = to_wire(argument.value)
        except NotEncodable:
            is_doubtful = is_named_secret or may_hold_secret(argument.parameter)
            texts |= secret_texts(Hidden(argument.value)) if is_doubtful else set()
            continue
        wire = revealed(tree)
        secrets = list(typed_secrets(argument.parameter.annotation, wire, is_secret_name))
        texts |= secret_texts([tree, Hidden(wire if is_named_secret else secrets)])
    return texts


def wire_of(parameter: Parameter, value: Any) -> Any:
    """Return what is sent for one value, secrets too.

    Raises pydantic's ValidationError, NotEncodable, and what validators raise.
    """
    argument = Argument(parameter=parameter, value=value, place=(parameter.name,))
    return revealed(_tree(argument, None))


def _problems_together(
    check: Check, arguments: Sequence[Argument], trees: Sequence[Any]
) -> dict[Place, list[str]]:
    """Return what is wrong with arguments of which each alone is valid."""
    checked = [
        replace(argument, value=revealed(tree))
        for argument, tree in zip(arguments, trees, strict=True)
    ]
    found = check(Binding(checked).by_name())
    return {(name,): list(texts) for name, texts in found.items()}


def _call(arguments: Sequence[Argument], trees: Sequence[Any]) -> Call:
    """Build the call of arguments that were checked; raises InvalidCall if it is too large."""
    positional = [
        tree for argument, tree in zip(arguments, trees, strict=True) if not argument.key
    ]
    named = {
        argument.key: tree for argument, tree in zip(arguments, trees, strict=True) if argument.key
    }
    if len(trees) <= _FEW and all(map(_is_simple, (*trees, *named))):
        return Call(
            args=tuple(positional),
            kwargs=named,
            stored_args=positional,
            stored_kwargs=dict(named),
            has_secrets=False,
            argsrepr="",
            kwargsrepr="",
        )
    sent_args, sent_kwargs = revealed(positional), revealed(named)
    if len(json_dumps((sent_args, sent_kwargs))) > CALL_MAX_BYTES:
        text = _("The arguments are too large: more than %(limit)s bytes of JSON.")
        raise InvalidCall({(ALL,): [text % {"limit": CALL_MAX_BYTES}]})
    has_secrets = any(True for tree in trees for _secret in secrets_in(tree))
    stored_args, stored_kwargs = to_plain(masked(positional)), to_plain(masked(named))
    return Call(
        args=tuple(sent_args),
        kwargs=sent_kwargs,
        stored_args=stored_args,
        stored_kwargs=stored_kwargs,
        has_secrets=has_secrets,
        argsrepr=saferepr(tuple(readable(stored_args)), _REPR_MAX) if has_secrets else "",
        kwargsrepr=saferepr(readable(stored_kwargs), _REPR_MAX) if has_secrets else "",
    )


def _checked(task: Task, argument: Argument, named: NamedObjects) -> Any:
    """Return the wire tree of an argument, as it arrives at a worker; raises InvalidCall.

    What it names is noted, and not looked for.
    """
    try:
        tree = _tree(argument, named)
        if not _is_simple(tree):
            # In a list, as the row holds it: that is one level more.
            to_plain([revealed(tree)])
        _refuse_changes(task, tree)
    except ValidationError as error:
        raise InvalidCall(_messages(argument, error)) from error
    except NotEncodable as error:
        raise InvalidCall({argument.place: [_discreet(argument, str(error))]}) from error
    except (*UNREADABLE, PydanticUserError) as error:
        text = _("This value could not be checked: %(error)s.") % {"error": repr(error)}
        raise InvalidCall({argument.place: [_discreet(argument, text)]}) from error
    if MASK in secrets_in(tree):
        text = _("Give the secret again: %(mask)s only stands for it.") % {"mask": MASK}
        raise InvalidCall({argument.place: [text]})
    return tree


def _tree(argument: Argument, context: NamedObjects | None) -> Any:
    """Return the validated argument as a wire tree that validates to itself.

    Defaults inside of models are sent too, unless they are not valid themselves, or
    others each time (a new UUID): then what was confirmed would not be what is sent.
    """
    adapter = argument.parameter.adapter
    validated = _validated(adapter, argument.value, context)
    if _is_simple(validated) and same(validated, argument.value):
        # It has validated to itself just now.
        return Hidden(validated) if _is_hidden(argument) else validated
    again = _validated(adapter, argument.value, None)
    for only_set in (False, True):
        tree = to_wire(validated, only_set=only_set)
        is_repeated = same(revealed(to_wire(again, only_set=only_set)), revealed(tree))
        if is_repeated and _is_stable(adapter, tree, only_set=only_set):
            return Hidden(revealed(tree)) if _is_hidden(argument) else tree
    raise NotEncodable(
        _("This value changes each time it is validated, so it can't be sent as it was given.")
    )


def _is_simple(value: Any) -> bool:
    """Tell whether JSON carries a value as it is, whoever writes, stores and reads it.

    So is most of what is sent: it needs not be tried out.
    """
    kind = type(value)
    if kind is str:
        return len(value) <= _SHORT and value.isascii() and "\x00" not in value
    if kind is int:
        return bool(-_LARGE < value < _LARGE)
    return value is None or kind is bool


def _is_hidden(argument: Argument) -> bool:
    """Tell whether all of an argument is secret.

    Also where a validator took the secret out of its type, or where pydantic does
    not know the type, so that nobody can tell which part of the value is the secret.
    """
    parameter = argument.parameter
    if is_secret(parameter) or is_secret_name(argument.key):
        return True
    return not parameter.has_schema and may_hold_secret(parameter)


def _validated(adapter: TypeAdapter[Any], value: Any, context: NamedObjects | None) -> Any:
    """Validate a value; what only the strict JSON rules accept (an Enum by its value) too."""
    try:
        return adapter.validate_python(value, context=context)
    except ValidationError:
        try:
            return adapter.validate_json(to_json(value), context=context)
        except (ValidationError, PydanticSerializationError, ValueError, RecursionError):
            pass
        raise


def _is_stable(adapter: TypeAdapter[Any], tree: Any, *, only_set: bool) -> bool:
    """Tell whether what is sent validates to itself."""
    wire = revealed(tree)
    try:
        again = to_wire(_validated(adapter, wire, None), only_set=only_set)
    except ValidationError:
        return False
    return same(revealed(again), wire)


def as_received(value: Any, serializer: str) -> Any:
    """Return what a worker receives of a value; raises what the serializer raises."""
    content_type, content_encoding, payload = dumps(value, serializer=serializer)
    return loads(payload, content_type, content_encoding, accept=[content_type])


def same(one: Any, other: Any) -> bool:
    """Tell whether two values on the wire are the same: 1, 1.0 and True are not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def _refuse_changes(task: Task, tree: Any) -> None:
    """Raise NotEncodable if the task's serializer does not carry the value as it is."""
    wire = revealed(tree)
    serializer = task.serializer or task.app.conf.task_serializer
    if serializer == "json" and _is_simple(wire):
        return
    try:
        arrived = as_received(wire, serializer)
    except KombuError as error:
        text = _("The serializer %(serializer)s can't carry this: %(error)s")
        raise NotEncodable(text % {"serializer": repr(serializer), "error": error}) from error
    if not same(arrived, wire):
        text = _("The serializer %(serializer)s can't carry this: it would arrive changed.")
        raise NotEncodable(text % {"serializer": repr(serializer)})


def _messages(argument: Argument, error: ValidationError) -> dict[Place, list[str]]:
    """Return pydantic's messages by place."""
    places: dict[Place, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        is_discreet = item["type"].startswith(_DISCREET)
        text = item["msg"] if is_discreet else _discreet(argument, item["msg"])
        places.setdefault((*argument.place, *item["loc"]), []).append(text)
    return places


def _discreet(argument: Argument, text: str) -> str:
    """Return the message, or, as it might quote a secret, another."""
    if may_hold_secret(argument.parameter) or is_secret_name(argument.key):
        return _("This value is not valid.")
    return text
