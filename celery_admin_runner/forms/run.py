"""RunForm: everything that is filled in to run a task."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from celery.app.task import Task
from django import forms
from django.contrib.admin import AdminSite
from django.http import QueryDict

from celery_admin_runner.binding import Place, arrange
from celery_admin_runner.calls import Call, InvalidCall, prepare_call, signature_of
from celery_admin_runner.forms.arguments import ArgumentsForm
from celery_admin_runner.forms.initial import initial_from_query, initial_from_run
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.forms.options import OptionsForm
from celery_admin_runner.forms.parameters import ParametersForm
from celery_admin_runner.registry import rule_for

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

__all__ = ["JSON", "TYPED", "RunForm", "initial_from_query", "initial_from_run"]

#: The two ways to give arguments.
TYPED = "typed"
JSON = "json"


class RunForm:
    """Three forms in one: the typed parameters or the JSON arguments, and the options.

    The names of its inputs begin with ``args-``, ``json-`` and ``options-``, so that a
    parameter may have any name; ``mode`` says which of the two ways counts. What was
    typed in the other one is shown again as it was.
    """

    def __init__(
        self,
        task: Task,
        *,
        user: AnyUser,
        admin_site: AdminSite,
        data: QueryDict | None = None,
        initial: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        """``initial``: what ``initial_from_run`` or ``initial_from_query`` answered."""
        initial = initial or {}
        self.task = task
        self.viewer = Viewer(user=user, admin_site=admin_site)
        self.data = data
        self.prefix = prefix
        self.signature = signature_of(task)
        self.problem = self.signature.problem
        self.has_typed = not self.problem
        values = initial.get("values", {})
        self.parameters = ParametersForm(
            self.signature,
            self.viewer,
            values=values,
            texts=initial.get("texts", {}),
            data=data,
            prefix=f"{prefix}args",
        )
        self.json = ArgumentsForm(
            data=data, initial=initial.get("json", {}), prefix=f"{prefix}json"
        )
        self.options = OptionsForm(
            rule_for(task.name),
            viewer=self.viewer,
            data=data,
            initial=initial.get("options", {}),
            prefix=f"{prefix}options",
        )
        self.mode = self._mode(initial, values)
        self.parameters.is_draft = self.mode == JSON
        self.json.is_draft = self.mode == TYPED
        self._call: Call | None = None

    def _mode(self, initial: Mapping[str, Any], values: Mapping[str, Any]) -> str:
        """Return which way counts: the one posted, else the first that can show the values."""
        if not self.has_typed:
            return JSON
        if self.data is not None:
            return JSON if self.data.get(f"{self.prefix}mode") == JSON else TYPED
        can_show = initial.get("mode") != JSON and self.parameters.can_show(values)
        return TYPED if can_show else JSON

    @property
    def call(self) -> Call:
        """The call that a valid form describes."""
        if self._call is None:
            raise ValueError("There is no call: the form was not validated, or is not valid.")
        return self._call

    @property
    def run_kwargs(self) -> dict[str, Any]:
        """What to give to ``TaskRunner.run`` besides the task's name."""
        return {"args": self.call.args, "kwargs": self.call.kwargs, **self.options.given}

    @property
    def errors(self) -> dict[str, Any]:
        """The errors, by the form they are in."""
        named = {"parameters": self.parameters, "json": self.json, "options": self.options}
        return {name: form.errors for name, form in named.items() if form.errors}

    @property
    def media(self) -> forms.Media:
        """The scripts and styles of the fields."""
        return self.parameters.media + self.json.media + self.options.media

    def is_valid(self) -> bool:
        """Check everything; if all is well there is a ``call``."""
        if self.data is None:
            return False
        self._call = self._checked_call()
        is_valid = self.options.is_valid()
        if self._call is not None and self._call.has_secrets:
            self.options.refuse_secrets()
            is_valid = self.options.is_valid()
        if not is_valid:
            self._call = None
        return self._call is not None

    def _checked_call(self) -> Call | None:
        """Return the call if its arguments are valid; if not, the fields have the errors."""
        form = self._active
        form.full_clean()
        if self.mode == TYPED:
            args, kwargs = arrange(self.signature, self.parameters.arguments())
        else:
            args, kwargs = self.json.given("args") or [], self.json.given("kwargs") or {}
        try:
            call = prepare_call(self.task, args, kwargs, objects=self.viewer.source)
        except InvalidCall as error:
            self._show(error.places, named=kwargs, unless=set(form.errors))
            return None
        return None if form.errors else call

    @property
    def _active(self) -> ParametersForm | ArgumentsForm:
        return self.parameters if self.mode == TYPED else self.json

    def add_errors(self, errors: Mapping[str, list[str]]) -> None:
        """Show the errors of an ``InvalidArguments``: at the parameter, else above the fields."""
        self._call = None
        self._show({(name,): texts for name, texts in errors.items()}, named={}, unless=set())

    def _show(
        self, places: Mapping[Place, list[str]], *, named: Mapping[str, Any], unless: Set[str]
    ) -> None:
        """Show errors where they belong, unless that could not even be read."""
        for place, texts in places.items():
            if self.mode == TYPED:
                self.parameters.add_problem(place, texts, unless=unless)
            elif not unless:
                self._show_in_json(place, texts, named)

    def _show_in_json(self, place: Place, texts: list[str], named: Mapping[str, Any]) -> None:
        """Show an error of the JSON arguments: ``named`` are those given by keyword."""
        if str(place[0]) not in self.signature:
            self.json.add_error(None, texts)
            return
        is_named = place[0] in named or place[-1] in named
        path = ".".join(map(str, place))
        self.json.add_error(
            "kwargs" if is_named else "args", [f"{path}: {text}" for text in texts]
        )
