"""Fields for Django objects: only those that the user may view, as admin shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib.admin import AdminSite, ModelAdmin, widgets
from django.contrib.admin.widgets import AutocompleteMixin
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest
from pydantic_core import PydanticCustomError

from celery_admin_runner.forms.fields import LinesField, ParameterField, TextField
from celery_admin_runner.model_keys import ModelKey, objects_for

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: Of more objects than this no plain select is made: their primary key is typed.
SELECT_MAX = 500


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who fills in a form, and on which admin site."""

    user: AnyUser
    admin_site: AdminSite

    def model_admin(self, model: type[models.Model]) -> ModelAdmin[Any] | None:
        """Return the site's admin of the model, if it has one."""
        registered = self.admin_site.is_registered(model)
        return self.admin_site.get_model_admin(model) if registered else None

    def objects(self, model: type[models.Model]) -> models.QuerySet[Any]:
        """Return the objects that the user may view, maybe none."""
        objects = self.source(model)
        return model._default_manager.none() if objects is None else objects

    def source(self, model: type[models.Model]) -> models.QuerySet[Any] | None:
        """Return the objects that the user may view; None without the permission to.

        As the model's admin limits them, if there is one. An ``ObjectSource``.
        """
        model_admin = self.model_admin(model)
        if model_admin is None:
            return objects_for(self.user)(model)
        request = HttpRequest()
        request.user = self.user  # type: ignore[assignment]
        is_allowed = model_admin.has_view_permission(request)
        return model_admin.get_queryset(request) if is_allowed else None

    def autocomplete_source(self, model: type[models.Model]) -> models.ForeignKey[Any, Any] | None:
        """Return a foreign key that lets admin's autocomplete find the model's objects."""
        model_admin = self.model_admin(model)
        if model_admin is None or not model_admin.search_fields:
            return None
        relations = model._meta.get_fields(include_hidden=True)
        keys = (getattr(relation, "field", None) for relation in relations)
        return next((key for key in keys if _is_plain_key(key, model)), None)


def _is_plain_key(key: Any, model: type[models.Model]) -> bool:
    """Tell whether ``key`` points to every object of the model by its primary key."""
    return (
        isinstance(key, models.ForeignKey)
        and key.remote_field.model is model
        and key.target_field.primary_key
        and not key.get_limit_choices_to()
    )


class ObjectField(ParameterField, forms.ModelChoiceField):  # type: ignore[type-arg]
    """An object; its primary key is sent."""

    def __init__(self, *, model: type[models.Model], **options: Any) -> None:
        """``model``: that of the queryset."""
        super().__init__(**options)
        self.model = model

    def parsed(self, value: Any) -> Any:
        """Return the primary key of an object that the user may view."""
        key = _primary_key(self.model, value)
        found = forms.ModelChoiceField.to_python(self, key)
        return None if found is None else found.pk

    def prepare_value(self, value: Any) -> Any:
        """Return what the widget shows; a select asks it for each object too."""
        shown = _key_of(value)
        return shown if _can_look_up(self, shown) else None


class ObjectsField(ParameterField, forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Several objects; their primary keys are sent, in the order in which they were posted."""

    blank: Any = ()

    def __init__(self, *, model: type[models.Model], **options: Any) -> None:
        """``model``: that of the queryset."""
        super().__init__(**options)
        self.model = model

    def parsed(self, value: Any) -> Any:
        """Return the primary keys of objects that the user may view."""
        keys = dict.fromkeys(_primary_key(self.model, text) for text in value)
        forms.ModelMultipleChoiceField.clean(self, list(keys))
        return list(keys)

    def prepare_value(self, value: Any) -> Any:
        """Return what the widget shows; a select asks it for each object too."""
        if isinstance(value, models.Model):
            return _key_of(value)
        return [item for item in map(_key_of, value or ()) if _can_look_up(self, item)]

    def shown(self, value: Any) -> list[Any]:
        """Return the primary keys."""
        return list(value)


def _key_of(value: Any) -> Any:
    """Return the primary key of an object; anything else as it is."""
    return value.pk if isinstance(value, models.Model) else value


def _primary_key(model: type[models.Model], typed: Any) -> Any:
    """Return the primary key that was typed; raises ValidationError before a database does."""
    try:
        return ModelKey(model).primary_key(typed)
    except PydanticCustomError as error:
        raise ValidationError(error.message(), code="primary_key") from error


def _can_look_up(field: ObjectField | ObjectsField, value: Any) -> bool:
    """Tell whether the widget shows this without an error.

    Admin's autocomplete asks the database for the objects of whatever was posted.
    """
    if not isinstance(field.widget, AutocompleteMixin):
        return True
    try:
        _primary_key(field.model, value)
    except ValidationError:
        return False
    return True


def object_field(model: type[models.Model], viewer: Viewer, **options: Any) -> ParameterField:
    """Return the field for one object of the model."""
    queryset = viewer.objects(model)
    source = viewer.autocomplete_source(model)
    if source is not None:
        options["widget"] = widgets.AutocompleteSelect(source, viewer.admin_site)
    elif _is_long(queryset):
        options["widget"] = widgets.AdminTextInputWidget()
    return ObjectField(model=model, queryset=queryset, **options)


def objects_field(model: type[models.Model], viewer: Viewer, **options: Any) -> ParameterField:
    """Return the field for several objects of the model."""
    queryset = viewer.objects(model)
    source = viewer.autocomplete_source(model)
    if source is not None:
        options["widget"] = widgets.AutocompleteSelectMultiple(source, viewer.admin_site)
    elif _is_long(queryset):
        return LinesField(item=TextField(base=object), **options)
    return ObjectsField(model=model, queryset=queryset, **options)


def _is_long(queryset: models.QuerySet[Any]) -> bool:
    """Tell whether there are too many objects for a select."""
    return len(queryset.values_list("pk")[: SELECT_MAX + 1]) > SELECT_MAX
