"""The form by which runs that are kept are moved."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib.admin import widgets
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_admin_runner.forms.moments import EtaField


class MoveForm(forms.Form):
    """The new earliest start of one run, or of several."""

    use_required_attribute = False

    eta = EtaField(
        label=gettext_lazy("Earliest start"),
        require_all_fields=False,
        widget=widgets.AdminSplitDateTime,
    )

    def __init__(self, *, is_optional: bool, **options: Any) -> None:
        """``is_optional``: what is moved waits for other runs, and so needs no moment."""
        super().__init__(**options)
        field = self.fields["eta"]
        field.required = not is_optional
        zone = timezone.get_current_timezone_name()
        texts = [_("In the time zone %(zone)s.") % {"zone": zone}]
        if is_optional:
            texts.append(_("Empty: as soon as all have succeeded that it waits for."))
        field.help_text = " ".join(texts)

    def clean_eta(self) -> datetime | None:
        """Refuse a moment that has passed."""
        eta: datetime | None = self.cleaned_data["eta"]
        if eta is not None and eta <= timezone.now():
            raise ValidationError(
                _("This moment has passed: to start at once, use “Run now”."), code="passed"
            )
        return eta
