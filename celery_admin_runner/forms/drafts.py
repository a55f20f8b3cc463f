"""Forms of which one counts, while the other only keeps what was typed."""

from __future__ import annotations

from typing import Any

from django import forms
from django.forms.utils import ErrorDict


class DraftForm(forms.Form):
    """A form that, as a draft, is neither checked nor complained about."""

    use_required_attribute = False
    is_draft = False

    def full_clean(self) -> None:
        """Check what was typed, unless it is not what counts."""
        if not self.is_draft:
            super().full_clean()
            return
        self._errors = ErrorDict()
        self.cleaned_data: dict[str, Any] = {}
