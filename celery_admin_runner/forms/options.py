"""How a run is sent: queue, when, priority, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib.admin import widgets
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_admin_runner.forms.dependencies import runs_field
from celery_admin_runner.forms.moments import EtaField
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.registry import Rule

#: Ten years: what is further away is a slip of the keyboard.
SECONDS_MAX = 10 * 365 * 24 * 60 * 60


class OptionsForm(forms.Form):
    """The options of a run, all of them optional; a reason where the task's rule asks for one."""

    use_required_attribute = False

    queue = forms.CharField(
        label=gettext_lazy("Queue"),
        required=False,
        max_length=255,
        widget=widgets.AdminTextInputWidget,
        help_text=gettext_lazy("Empty: the task's own queue."),
    )
    countdown = forms.IntegerField(
        label=gettext_lazy("Countdown"),
        required=False,
        min_value=0,
        max_value=SECONDS_MAX,
        widget=widgets.AdminIntegerFieldWidget,
        help_text=gettext_lazy(
            "Seconds to wait before it may start. Until then the run is kept in the database: "
            "it can be moved, and cancelled."
        ),
    )
    eta = EtaField(
        label=gettext_lazy("Earliest start"),
        required=False,
        require_all_fields=False,
        widget=widgets.AdminSplitDateTime,
        help_text=gettext_lazy("Instead of a countdown, and kept in the same way."),
    )
    expires = forms.IntegerField(
        label=gettext_lazy("Expires"),
        required=False,
        min_value=1,
        max_value=SECONDS_MAX,
        widget=widgets.AdminIntegerFieldWidget,
        help_text=gettext_lazy(
            "Seconds from now: if it has not started by then, it does not run."
        ),
    )
    priority = forms.IntegerField(
        label=gettext_lazy("Priority"),
        required=False,
        min_value=0,
        max_value=255,
        widget=widgets.AdminIntegerFieldWidget,
        help_text=gettext_lazy("0 to 255 with RabbitMQ, 0 to 9 with Redis."),
    )
    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        required=False,
        widget=widgets.AdminTextareaWidget(attrs={"rows": 2}),
        help_text=gettext_lazy("Why you run it; it is kept with the run."),
    )

    def __init__(self, rule: Rule | None, *, viewer: Viewer, **options: Any) -> None:
        """``rule``: that under which the task can be run; ``viewer``: who fills it in."""
        super().__init__(**options)
        depends_on = runs_field(viewer)
        if depends_on is not None:
            self.fields["depends_on"] = depends_on
        self.fields["reason"].required = rule is not None and rule.reason

    def clean(self) -> dict[str, Any]:
        """Refuse what contradicts itself."""
        options = self.cleaned_data
        eta, countdown, expires = (options.get(name) for name in ("eta", "countdown", "expires"))
        if eta is not None and countdown is not None:
            self.add_error("eta", _("Give an earliest start or a countdown, not both."))
        elif expires is not None and _is_late(eta, countdown, expires):
            self.add_error("expires", _("It would expire before it may start."))
        return options

    @property
    def given(self) -> dict[str, Any]:
        """The options that were filled in."""
        return {
            name: value for name, value in self.cleaned_data.items() if value not in (None, "", [])
        }

    def refuse_secrets(self) -> None:
        """Say at the fields that a call with a secret is sent at once or not at all."""
        for name in ("eta", "countdown", "depends_on"):
            if self.given.get(name):
                self.add_error(
                    name,
                    _(
                        "A secret can't be kept until later: leave this empty, "
                        "and run the task when it shall start."
                    ),
                )


def _is_late(eta: Any, countdown: int | None, expires: int) -> bool:
    """Tell whether a run may start only after it has expired."""
    if countdown is not None:
        return expires <= countdown
    return eta is not None and timezone.now() + timedelta(seconds=expires) <= eta
