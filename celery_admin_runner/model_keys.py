"""Django models as parameters: what is sent is the primary key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from django.contrib.auth import get_permission_codename
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from celery_admin_runner.annotations import is_class, replaced
from celery_admin_runner.parameters import Parameter

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: More objects than this are asked for by several queries: databases limit parameters.
BATCH_SIZE = 500
#: More objects than this that do not exist are counted, and not named.
MISSING_MAX = 10
#: Answers which objects of a model may be named; None: not one, whichever exist.
ObjectSource = Callable[[type[models.Model]], "models.QuerySet[Any] | None"]
#: The primary keys of named objects that do not exist, by model; None: not one may be named.
Absent = Mapping[type[models.Model], "set[Any] | None"]


@dataclass(frozen=True)
class ModelKey:
    """What stands in ``Annotated`` for a model: validates a primary key, or an instance."""

    model: type[models.Model]

    @property
    def annotation_text(self) -> str:
        """The name of the model's class."""
        return self.model.__name__

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic how a primary key is validated."""
        return core_schema.with_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the primary key."""
        is_number = isinstance(self.model._meta.pk, models.IntegerField)
        return {
            "type": "integer" if is_number else "string",
            "title": f"Primary key of {self.model._meta.label}",
        }

    def _validated(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        """Return the primary key, and note it for ``missing_objects``."""
        pk = self.primary_key(value)
        if isinstance(info.context, NamedObjects):
            info.context.keys.append((self.model, pk))
        return pk

    def primary_key(self, value: Any) -> Any:
        """Return ``value``, an instance or a primary key, as the key has to be.

        Raises PydanticCustomError.
        """
        key = self.model._meta.pk
        try:
            pk = key.to_python(value.pk if isinstance(value, self.model) else value)
            key.run_validators(pk)
        except (ValidationError, TypeError, ValueError, OverflowError):
            pk = None
        if pk is None or isinstance(value, bool) or "\x00" in str(pk):
            raise PydanticCustomError(
                "primary_key",
                _("This is no primary key of {name}."),
                {"name": str(self.model._meta.verbose_name)},
            )
        return pk


@dataclass(frozen=True)
class NamedObjects:
    """The objects that an argument names; a validation context."""

    keys: list[tuple[type[models.Model], Any]] = field(default_factory=list)

    def problems(self, absent: Absent) -> list[str]:
        """Return what is wrong: objects that may not be viewed, or that do not exist."""
        by_model = _by_model([self])
        return [text for model, pks in by_model.items() for text in _problems(model, pks, absent)]


def absent_of(named: Iterable[NamedObjects], source: ObjectSource) -> Absent:
    """Return which of all these objects there are not: one query a model, and 500 objects."""
    absent: dict[type[models.Model], set[Any] | None] = {}
    for model, pks in _by_model(named).items():
        objects = source(model)
        absent[model] = None if objects is None else _missing(objects, pks)
    return absent


def _by_model(named: Iterable[NamedObjects]) -> dict[type[models.Model], set[Any]]:
    by_model: dict[type[models.Model], set[Any]] = {}
    for objects in named:
        for model, pk in objects.keys:
            by_model.setdefault(model, set()).add(pk)
    return by_model


def _problems(model: type[models.Model], pks: set[Any], absent: Absent) -> Iterable[str]:
    opts, absent_pks = model._meta, absent[model]
    if absent_pks is None:
        yield _("You may not view %(name)s.") % {"name": opts.verbose_name_plural}
        return
    missing = sorted(pks & absent_pks, key=str)
    for pk in missing[:MISSING_MAX]:
        yield _("There is no %(name)s with the primary key %(pk)s.") % {
            "name": opts.verbose_name,
            "pk": pk,
        }
    rest = len(missing) - MISSING_MAX
    if rest > 0:
        text = ngettext("And %(count)s more.", "And %(count)s more.", rest)
        yield text % {"count": rest}


def _missing(objects: models.QuerySet[Any], pks: set[Any]) -> set[Any]:
    """Return the primary keys of which there is no object."""
    missing, asked = set(pks), list(pks)
    for start in range(0, len(asked), BATCH_SIZE):
        part = objects.filter(pk__in=asked[start : start + BATCH_SIZE])
        missing.difference_update(part.values_list("pk", flat=True))
    return missing


def objects_for(user: AnyUser | None) -> ObjectSource:
    """Return the source of all objects of the models that ``user`` may view; None may view all."""

    def source(model: type[models.Model]) -> models.QuerySet[Any] | None:
        is_allowed = user is None or may_view(model, user)
        return model._default_manager.all() if is_allowed else None

    return source


def may_view(model: type[models.Model], user: AnyUser) -> bool:
    """Tell whether ``user`` may view objects of the model, as admin asks it."""
    opts = model._meta
    names = (
        f"{opts.app_label}.{get_permission_codename(verb, opts)}" for verb in ("view", "change")
    )
    return any(user.has_perm(name) for name in names)


def with_model_keys(parameter: Parameter) -> Parameter:
    """Return the parameter with each Django model in its annotation as its primary key."""
    annotation = replaced(parameter.annotation, _key_for)
    if annotation == parameter.annotation:
        return parameter
    default = parameter.default
    if isinstance(default, models.Model):
        default = default.pk
    return replace(parameter, annotation=annotation, default=default)


def _key_for(annotation: Any) -> Any:
    if not is_class(annotation, models.Model):
        return annotation
    opts = annotation._meta
    if opts.abstract or isinstance(opts.pk, models.CompositePrimaryKey):
        return annotation
    return Annotated[Any, ModelKey(annotation)]
