"""The field for the runs that a new one is to wait for."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin import widgets
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy

from celery_admin_runner.forms.keys import run_key
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.models import TaskRunRecord


class RunsField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Runs that the user may see, finished or not, found by admin's autocomplete."""

    def clean(self, value: Any) -> list[TaskRunRecord]:  # type: ignore[override]
        """Return the runs, each once."""
        for key in value or ():
            if run_key(key) is None:
                text = self.error_messages["invalid_choice"]
                raise ValidationError(text, code="invalid_choice", params={"value": key})
        return list(super().clean(value))

    def prepare_value(self, value: Any) -> Any:
        """Return what the widget shows: it asks the database for whatever was posted."""
        return [item for item in super().prepare_value(value) or () if run_key(item) is not None]


def runs_field(viewer: Viewer) -> RunsField | None:
    """Return the field; None on an admin site that does not have the journal."""
    if viewer.model_admin(TaskRunRecord) is None:
        return None
    source: Any = TaskRunRecord._meta.get_field("depends_on")
    return RunsField(
        queryset=viewer.objects(TaskRunRecord),
        label=gettext_lazy("Waits for"),
        required=False,
        widget=widgets.AutocompleteSelectMultiple(source, viewer.admin_site),
        help_text=gettext_lazy(
            "It starts when all these runs have succeeded; if one ends otherwise, it is "
            "skipped. Find them by the beginning of their id, by task or by label."
        ),
    )
