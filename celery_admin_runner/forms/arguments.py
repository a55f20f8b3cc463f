"""The second tab: the arguments as JSON."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _

from celery_admin_runner.forms.drafts import DraftForm
from celery_admin_runner.forms.fields import Empty, JsonField
from celery_admin_runner.parameters import Parameter

_ANY = Parameter(name="", kind=None)


class ArgumentsForm(DraftForm):
    """Positional and keyword arguments, each as one JSON text."""

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

    def given(self, name: str) -> Any:
        """Return the args or the kwargs, None if they are empty or can't be read."""
        value = self.cleaned_data.get(name, Empty.OMITTED)
        return None if value is Empty.OMITTED else value
