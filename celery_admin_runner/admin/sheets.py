"""A task and its form, as a page shows, previews and starts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.contrib.admin.helpers import AdminForm, Fieldset
from django.utils import timezone
from django.utils.html import conditional_escape
from django.utils.translation import gettext as _

from celery_admin_runner.calls import signature_of
from celery_admin_runner.encoding import readable_text, to_plain
from celery_admin_runner.forms.run import TYPED, RunForm
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.options import options_again
from celery_admin_runner.parameters import Signature
from celery_admin_runner.registry import TaskInfo, get_task
from celery_admin_runner.runner import TaskRunner

#: What of a call is no option.
_NO_OPTIONS = {"args", "kwargs", "reason"}
#: The options that the form has fields for.
_FORM_OPTIONS = ("queue", "priority", "expires")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What will be sent to a task, as text for people to read; secrets are masked."""

    task_name: str
    args: str
    kwargs: str
    options: str
    reason: str


class Sheet:
    """A task on a page; with its form, if the user may run it."""

    def __init__(
        self, task: CeleryTask, form: RunForm | None, *, retry_of: TaskRunRecord | None = None
    ) -> None:
        """Take a task, the form for its arguments, and the run that is to be run again."""
        self.task = task
        self.form = form
        self.retry_of = retry_of

    @property
    def info(self) -> TaskInfo:
        """What is known of the task."""
        return self.task.info

    @cached_property
    def signature(self) -> Signature:
        """The parameters of the task, and what its docstring says of them."""
        return signature_of(get_task(self.info.name))

    @property
    def typed_fieldsets(self) -> Iterable[Fieldset]:
        """A field for each parameter."""
        return self._fieldsets(self._form.parameters)

    @property
    def json_fieldsets(self) -> Iterable[Fieldset]:
        """The arguments as JSON."""
        return self._fieldsets(self._form.json)

    @property
    def reason_fieldsets(self) -> Iterable[Fieldset]:
        """Why the task is run."""
        return self._fieldsets(self._form.options, ["reason"])

    @property
    def option_fieldsets(self) -> Iterable[Fieldset]:
        """How the run is sent; folded while nothing of it is filled in or wrong."""
        options = self._form.options
        names = [name for name in options.fields if name != "reason"]
        is_used = any(_has_value(options[name].value()) for name in names)
        return self._fieldsets(options, names, _("Options"), [] if is_used else ["collapse"])

    @property
    def preview(self) -> Preview:
        """What the valid form will send."""
        call = self._form.call
        given = self._form.run_kwargs
        options = self._kept_options | {
            name: value
            for name, value in given.items()
            if name not in _NO_OPTIONS and value is not None
        }
        if "depends_on" in options:
            options["depends_on"] = [str(run) for run in options["depends_on"]]
        return Preview(
            task_name=self.info.name,
            args=readable_text(call.stored_args, indent=2),
            kwargs=readable_text(call.stored_kwargs, indent=2),
            options=readable_text(to_plain(options), indent=2) if options else "",
            reason=given.get("reason", ""),
        )

    def start(self, runner: TaskRunner) -> TaskRunRecord:
        """Run the task with what the valid form says; raises what the runner raises."""
        given = self._form.run_kwargs
        if self.retry_of is None:
            return runner.run(self.info.name, **given)
        # A field that was emptied takes its option away.
        options = {name: given.pop(name, None) for name in _FORM_OPTIONS}
        # Nor is there one for what is not stored as it was sent.
        options |= dict.fromkeys(set(self.retry_of.lost_options) - set(_FORM_OPTIONS))
        return runner.retry(self.retry_of, options=options, **given)

    @property
    def _kept_options(self) -> dict[str, Any]:
        """The options of the run that is run again for which the form has no fields."""
        if self.retry_of is None:
            return {}
        options = options_again(self.retry_of, timezone.now())
        replaced = {*_FORM_OPTIONS, *self.retry_of.lost_options}
        return {name: value for name, value in options.items() if name not in replaced}

    def refuse(self, errors: Mapping[str, Sequence[str]]) -> None:
        """Show at the form what the runner refused."""
        self._form.add_errors({name: list(texts) for name, texts in errors.items()})

    def hide_secrets(self) -> bool:
        """Leave the fields of secrets empty on the page; tell whether there are any."""
        widgets = [field.widget for field in self._form.parameters.fields.values()]
        secret = [widget for widget in widgets if isinstance(widget, forms.PasswordInput)]
        for widget in secret:
            widget.render_value = False
        return bool(secret) and self._form.mode == TYPED

    @property
    def _form(self) -> RunForm:
        if self.form is None:
            raise LookupError(f"The user may not run {self.info.name!r}.")
        return self.form

    def _fieldsets(
        self,
        form: forms.Form,
        names: Iterable[str] | None = None,
        title: Any = None,
        classes: Iterable[str] = (),
    ) -> AdminForm:
        """Return the fields as admin's own template shows them; it takes help texts as HTML."""
        names = list(form.fields) if names is None else list(names)
        for name in names:
            form.fields[name].help_text = conditional_escape(form.fields[name].help_text)
        return AdminForm(form, [(title, {"fields": names, "classes": list(classes)})], {})  # type: ignore[arg-type]


def _has_value(value: Any) -> bool:
    """Tell whether a field shows something."""
    if isinstance(value, list | tuple):
        return any(map(_has_value, value))
    return value not in (None, "", False)
