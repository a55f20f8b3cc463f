"""Fields for Django objects: only those that the user may view, as admin shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib.admin import AdminSite, ModelAdmin, widgets
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from celery_admin_runner.forms.fields import LinesField, ParameterField, TextField
from celery_admin_runner.model_keys import may_view

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
        """Return the objects that the user may view; as its admin limits them, if there is one."""
        model_admin = self.model_admin(model)
        if model_admin is None:
            objects = model._default_manager.all()
            return objects if may_view(model, self.user) else objects.none()
        request = HttpRequest()
        request.user = self.user  # type: ignore[assignment]
        objects = model_admin.get_queryset(request)
        return objects if model_admin.has_view_permission(request) else objects.none()

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

    def parsed(self, value: Any) -> Any:
        """Return the primary key of an object that the user may view."""
        found = forms.ModelChoiceField.to_python(self, _storable(value))
        return None if found is None else found.pk


class ObjectsField(ParameterField, forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Several objects; their primary keys are sent, in the order in which they were posted."""

    blank: Any = ()

    def parsed(self, value: Any) -> Any:
        """Return the primary keys of objects that the user may view."""
        objects = forms.ModelMultipleChoiceField.clean(self, [_storable(text) for text in value])
        by_text = {str(item.pk): item.pk for item in objects}
        return [by_text[text] for text in dict.fromkeys(map(str, value)) if text in by_text]

    def shown(self, value: Any) -> list[Any]:
        """Return the primary keys."""
        return list(value)


def _storable(value: Any) -> Any:
    """Return the text; raises ValidationError for one that no database takes."""
    if "\x00" in str(value):
        raise ValidationError(_("Null characters are not allowed."), code="null")
    return value


def object_field(model: type[models.Model], viewer: Viewer, **options: Any) -> ParameterField:
    """Return the field for one object of the model."""
    queryset = viewer.objects(model)
    source = viewer.autocomplete_source(model)
    if source is not None:
        options["widget"] = widgets.AutocompleteSelect(source, viewer.admin_site)
    elif _is_long(queryset):
        options["widget"] = widgets.AdminTextInputWidget()
    return ObjectField(queryset=queryset, **options)


def objects_field(model: type[models.Model], viewer: Viewer, **options: Any) -> ParameterField:
    """Return the field for several objects of the model."""
    queryset = viewer.objects(model)
    source = viewer.autocomplete_source(model)
    if source is not None:
        options["widget"] = widgets.AutocompleteSelectMultiple(source, viewer.admin_site)
    elif _is_long(queryset):
        return LinesField(item=TextField(base=object), **options)
    return ObjectsField(queryset=queryset, **options)


def _is_long(queryset: models.QuerySet[Any]) -> bool:
    """Tell whether there are too many objects for a select."""
    return len(queryset.values_list("pk")[: SELECT_MAX + 1]) > SELECT_MAX
