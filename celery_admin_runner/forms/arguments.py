"""The second tab: the arguments as JSON."""

from __future__ import annotations

from typing import Any

from django import forms
from django.forms.utils import ErrorDict
from django.utils.translation import gettext_lazy as _

from celery_admin_runner.forms.fields import Empty, JsonField
from celery_admin_runner.parameters import Parameter

_ANY = Parameter(name="", kind=None)


class ArgumentsForm(forms.Form):
    """Positional and keyword arguments, each as one JSON text."""

    use_required_attribute = False
    #: Neither checked nor complained about: the arguments are given in the typed form.
    is_draft = False

    args = JsonField(
        parameter=_ANY,
        kind=list,
        when_empty=Empty.OMITTED,
        label=_("Positional arguments"),
        help_text=_("A JSON list."),
        initial="[]",
    )
    kwargs = JsonField(
        parameter=_ANY,
        kind=dict,
        when_empty=Empty.OMITTED,
        label=_("Keyword arguments"),
        help_text=_("A JSON object."),
        initial="{}",
    )

    def full_clean(self) -> None:
        """Check what was typed, unless it is not what counts."""
        if not self.is_draft:
            super().full_clean()
            return
        self._errors = ErrorDict()
        self.cleaned_data: dict[str, Any] = {}

    def given(self, name: str) -> Any:
        """Return the args or the kwargs, None if they are empty or can't be read."""
        value = self.cleaned_data.get(name, Empty.OMITTED)
        return None if value is Empty.OMITTED else value
