"""A signature as typed parameters. Knows neither Django nor Celery."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Annotated, Any

from docstring_parser import Docstring, ParseError, parse
from pydantic import (
    AliasChoices,
    BaseModel,
    PydanticUserError,
    RootModel,
    Secret,
    TypeAdapter,
)
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, SchemaError
from typing_extensions import is_typeddict

from celery_admin_runner.annotations import (
    UNIONS,
    annotation_text,
    is_class,
    is_secret_type,
    shape_of,
    union_of,
    with_known_dicts,
    without_qualifier,
)

#: What goes wrong when annotations, which are code, are read.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SchemaError,
    SyntaxError,
    TypeError,
    ValueError,
)
#: What pydantic says to an annotation it knows nothing about.
NO_SCHEMA = (*UNREADABLE, PydanticUserError, PydanticUndefinedAnnotation)

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Default(enum.Enum):
    """Defaults that are no value."""

    #: Made anew for each call (``default_factory``), or a key that may be left out.
    COMPUTED = "computed"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a task, or a field of a model that is one."""

    name: str
    #: One of ``inspect.Parameter``'s kinds.
    kind: Any
    #: Any where there is none; of ``*args`` and ``**kwargs`` that of one value.
    annotation: Any = Any
    has_annotation: bool = False
    #: ``inspect.Parameter.empty`` where there is none.
    default: Any = inspect.Parameter.empty
    help_text: str = ""
    #: Of a model's field: its own name and all its aliases.
    names: tuple[str, ...] = ()

    @property
    def is_required(self) -> bool:
        """Tell whether a call must give it."""
        return self.default is inspect.Parameter.empty and not self.is_variadic

    @property
    def is_variadic(self) -> bool:
        """Tell whether it is ``*args`` or ``**kwargs``."""
        return self.kind in _VARIADIC

    @property
    def has_known_default(self) -> bool:
        """Tell whether there is a default that can be shown."""
        return self.default is not inspect.Parameter.empty and self.default is not Default.COMPUTED

    @property
    def collected(self) -> Parameter:
        """The list or dict that ``*args`` or ``**kwargs`` collects; else the parameter itself."""
        one: Any = self.annotation
        if self.kind is inspect.Parameter.VAR_POSITIONAL:
            return dataclasses.replace(self, annotation=list[one])
        if self.kind is inspect.Parameter.VAR_KEYWORD:
            return dataclasses.replace(self, annotation=dict[str, one])
        return self

    @property
    def annotation_text(self) -> str:
        """The annotation for people, or "" where there is none."""
        return annotation_text(self.annotation) if self.has_annotation else ""

    @property
    def has_schema(self) -> bool:
        """Tell whether pydantic knows the annotation; if not, any value is taken."""
        return self._own_adapter is not None

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """What validates a value of this parameter."""
        return self._own_adapter or _ANYTHING

    @cached_property
    def is_secret_type(self) -> bool:
        """Tell whether its type says that a value is one secret as a whole."""
        return is_secret_type(shape_of(self.annotation).base)

    @cached_property
    def _own_adapter(self) -> TypeAdapter[Any] | None:
        try:
            adapter = TypeAdapter(self.annotation)
        except NO_SCHEMA:
            return None
        return adapter if adapter.pydantic_complete else None

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of a value; ``{}`` (anything) where there is none."""
        try:
            return self.adapter.json_schema()
        except NO_SCHEMA:
            return {}


#: What is wrong with the values of a call together, by parameter or ``"__all__"``.
Check = Callable[[Mapping[str, Any]], Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Signature:
    """The parameters of a task, and what its docstring says."""

    parameters: tuple[Parameter, ...]
    #: First line of the docstring.
    summary: str = ""
    #: The rest of it, without the sections about parameters.
    description: str = ""
    #: "", or why the annotations can't be read: then values are taken as they are.
    problem: str = ""
    #: Asked of the values of a call, by parameter, when each alone is valid.
    check: Check | None = None

    def __getitem__(self, name: str) -> Parameter:
        """Return the parameter of this name; raises KeyError."""
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
#: What stands in for a signature that can't be read: it takes everything.
OPEN = Signature(
    (
        Parameter(name="args", kind=inspect.Parameter.VAR_POSITIONAL),
        Parameter(name="kwargs", kind=inspect.Parameter.VAR_KEYWORD),
    )
)


def read_signature(function: Callable[..., Any]) -> Signature:
    """Read a function's parameters, annotations and docstring; never raises.

    A bound method gives its parameters without ``self``. What was wrapped
    (Celery's autoretry_for and pydantic=True, pydantic's validate_call) is
    read, not its wrapper.
    """
    code = inspect.unwrap(function)
    doc = _docstring(code)
    texts = {item.arg_name: item.description or "" for item in doc.params}
    summary, description = doc.short_description or "", doc.long_description or ""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        problem = f"The signature of the task can't be read: {error}."
        return Signature(OPEN.parameters, summary, description, problem)
    try:
        hints = {
            name: with_known_dicts(hint)
            for name, hint in typing.get_type_hints(code, include_extras=True).items()
        }
        problem = ""
    except UNREADABLE as error:
        hints = _readable_hints(code)
        problem = f"The annotations of the task can't be resolved: {error}."
    typed = tuple(
        _parameter(item, hints, texts.get(name) or texts.get(f"*{name}", ""))
        for name, item in parameters.items()
    )
    return Signature(typed, summary, description, problem)


def _readable_hints(code: Any) -> dict[str, Any]:
    """Return those annotations that may hold a secret, though others can't be resolved.

    Which names are secret can change, so every type with fields may hold one. An annotation
    that itself can't be resolved counts as a secret if its text says so.
    """
    hints: dict[str, Any] = {}
    module = sys.modules.get(getattr(code, "__module__", None) or "")
    names = getattr(code, "__globals__", None) or getattr(module, "__dict__", {})
    # getattr would find what a class inherits, too.
    own = vars(code).get if isinstance(code, type) else partial(getattr, code)
    for name, annotation in own("__annotations__", {}).items():
        alone = SimpleNamespace(__annotations__={name: annotation})
        try:
            [hint] = typing.get_type_hints(alone, names, include_extras=True).values()
            hints[name] = hint if has_secret(hint, bool) else Any
        except UNREADABLE:
            hints[name] = Secret[Any] if "secret" in str(annotation).lower() else Any
    return hints


def _parameter(item: inspect.Parameter, hints: Mapping[str, Any], help_text: str) -> Parameter:
    annotation = hints.get(item.name, Any)
    if item.default is None and annotation is not Any and not shape_of(annotation).is_optional:
        # ``name: str = None`` means what it meant before PEP 484 was made stricter.
        annotation = union_of((annotation, None))
    return Parameter(
        name=item.name,
        kind=item.kind,
        annotation=annotation,
        has_annotation=item.name in hints,
        default=item.default,
        help_text=" ".join(help_text.split()),
    )


def _docstring(code: Any) -> Docstring:
    """Parse the docstring in whichever of the usual styles it is written."""
    text = getattr(code, "__doc__", None)
    try:
        # Without the quotes of reStructuredText, which are no words for people.
        return parse(text.replace("``", "") if isinstance(text, str) else "")
    except (ParseError, *UNREADABLE):
        return Docstring()


def fields_of(annotation: Any) -> tuple[Parameter, ...]:
    """Return the fields of a pydantic model, dataclass, TypedDict or named tuple, else ().

    A field's name is the key under which it is validated: its alias, if it has one.
    """
    if is_class(annotation, BaseModel):
        is_root = issubclass(annotation, RootModel)
        return () if is_root else tuple(_model_fields(annotation))
    if not isinstance(annotation, type):
        return ()
    try:
        hints = typing.get_type_hints(annotation, include_extras=True)
    except UNREADABLE:
        hints = {}
        for part in reversed(annotation.__mro__):
            hints |= _readable_hints(part)
    if dataclasses.is_dataclass(annotation):
        return tuple(_dataclass_fields(annotation, hints))
    if is_typeddict(annotation):
        required = annotation.__required_keys__  # type: ignore[attr-defined]
        absent = Default.COMPUTED
        return tuple(
            _field(
                name,
                without_qualifier(hint),
                inspect.Parameter.empty if name in required else absent,
            )
            for name, hint in hints.items()
        )
    if issubclass(annotation, tuple) and hasattr(annotation, "_field_defaults"):
        defaults = annotation._field_defaults
        names = annotation._fields  # type: ignore[attr-defined]
        return tuple(
            _field(name, hints.get(name, Any), defaults.get(name, inspect.Parameter.empty))
            for name in names
        )
    return ()


def _field(name: str, annotation: Any, default: Any, help_text: str = "") -> Parameter:
    return Parameter(
        name=name,
        kind=inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        has_annotation=True,
        default=default,
        help_text=help_text,
    )


def _model_fields(model: type[BaseModel]) -> Iterator[Parameter]:
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        if info.metadata:
            annotation = Annotated[annotation, *info.metadata]
        help_text = info.description or ""
        key = validation_key(model, name, info)
        yield replace(
            _field(key, annotation, _default(info), help_text), names=field_names(name, info)
        )


def _default(info: FieldInfo) -> Any:
    if info.default_factory is not None:
        return Default.COMPUTED
    return inspect.Parameter.empty if info.default is PydanticUndefined else info.default


def validation_key(model: type[BaseModel], name: str, info: FieldInfo) -> str:
    """Return the key by which a model's field is given."""
    config = model.model_config
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    by_name = config.get("validate_by_name") or config.get("populate_by_name")
    return alias if isinstance(alias, str) and not by_name else name


def field_names(name: str, info: FieldInfo) -> tuple[str, ...]:
    """Return the name of a field and all its aliases; of a path to it the keys."""
    alias = info.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    keys = [key for item in choices for key in (getattr(item, "path", None) or [item])]
    aliases = (info.alias, info.serialization_alias, *keys)
    return (name, *(item for item in aliases if isinstance(item, str)))


def _dataclass_fields(annotation: Any, hints: Mapping[str, Any]) -> Iterator[Parameter]:
    for item in dataclasses.fields(annotation):
        if not item.init:
            continue
        default = inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default
        if isinstance(default, FieldInfo):
            default = _default(default)
        if item.default_factory is not dataclasses.MISSING:
            default = Default.COMPUTED
        info = getattr(annotation, "__pydantic_fields__", {}).get(item.name)
        known = _field(item.name, hints.get(item.name, Any), default)
        yield replace(known, names=field_names(item.name, info)) if info else known


def has_secret(annotation: Any, is_secret_name: Callable[[str], bool]) -> bool:
    """Tell whether a value of this type may hold a secret, by type or by the name of a field."""
    return _has_secret(annotation, is_secret_name, frozenset())


def _has_secret(
    annotation: Any, is_secret_name: Callable[[str], bool], seen: frozenset[int]
) -> bool:
    shape = shape_of(annotation)
    if is_secret_type(shape.base):
        return True
    if id(shape.base) in seen:
        return False
    seen |= {id(shape.base)}
    fields = fields_of(shape.base)
    return any(
        any(map(is_secret_name, (field.name, *field.names)))
        or _has_secret(field.annotation, is_secret_name, seen)
        for field in fields
    ) or any(_has_secret(item, is_secret_name, seen) for item in shape.arguments)


def typed_secrets(
    annotation: Any, value: Any, is_secret_name: Callable[[str], bool]
) -> Iterator[Any]:
    """Yield what in a value is secret by its type, or by the name of a field behind its alias.

    All of a value counts where it is not of its type.
    """
    shape = shape_of(annotation)
    fields = {field.name: field for field in fields_of(shape.base)}
    if is_secret_type(shape.base):
        yield value
    elif fields and isinstance(value, Mapping):
        for name, item in value.items():
            if name in fields and any(map(is_secret_name, fields[name].names)):
                yield item
            elif name in fields:
                yield from typed_secrets(fields[name].annotation, item, is_secret_name)
    elif shape.origin in UNIONS:
        for arm in shape.arguments:
            yield from typed_secrets(arm, value, is_secret_name)
    elif shape.arguments and isinstance(value, Mapping | list | set | frozenset):
        for item in value.values() if isinstance(value, Mapping) else value:
            for argument in shape.arguments:
                yield from typed_secrets(argument, item, is_secret_name)
    elif value is not None and has_secret(annotation, _no_name):
        yield value


def _no_name(name: str) -> bool:
    return False
