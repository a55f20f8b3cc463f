"""Helpers of the tests of forms: fill one in as a browser would."""

from __future__ import annotations

from typing import Any

from celery import Task
from django.contrib import admin
from django.contrib.auth.models import User
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict

from celery_admin_runner.forms.run import RunForm

#: May do everything, and is asked for nothing in the database.
ROOT = User(pk=0, username="root", is_superuser=True, is_staff=True, is_active=True)


def query(values: dict[str, Any]) -> QueryDict:
    """Return what a browser posts: texts, several of one name as a list."""
    data = QueryDict(mutable=True)
    for name, value in values.items():
        data.setlist(name, value if isinstance(value, list) else [value])
    return data


def filled(task: Task, mode: str = "typed", **values: Any) -> RunForm:
    """Return the form of a task with these parameters filled in, or ``json-args`` and the like."""
    named = {
        name if "-" in name else f"args-{name.replace('__', '.')}": value
        for name, value in values.items()
    }
    return form_of(task, data=query({"mode": mode, **named}))


def form_of(task: Task, **options: Any) -> RunForm:
    """Return the form of a task for a superuser."""
    options = {"user": ROOT, "admin_site": admin.site, **options}
    return RunForm(task, **options)


def arguments_of(form: RunForm) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a valid form sends."""
    assert form.is_valid(), form.errors
    return form.call.args, form.call.kwargs


def shown_data(form: RunForm) -> MultiValueDict[str, str]:
    """Return what a browser posts if an unfilled form is sent as it is shown."""
    data = query({"mode": form.mode})
    for part in (form.parameters, form.json, form.options):
        for bound in part:
            _post(data, bound)
    return data


def _post(data: QueryDict, bound: Any) -> None:
    context = bound.field.widget.get_context(bound.html_name, bound.value(), {})
    for widget in context["widget"].get("subwidgets") or [context["widget"]]:
        if "optgroups" in widget:
            chosen = [
                str(option["value"])
                for _group, options, _index in widget["optgroups"]
                for option in options
                if option["selected"]
            ]
            data.setlist(widget["name"], chosen)
        elif widget.get("type") == "checkbox":
            if "checked" in widget["attrs"]:
                data[widget["name"]] = "on"
        else:
            text = "" if widget["value"] is None else str(widget["value"])
            data[widget["name"]] = text.replace("\r\n", "\n").replace("\n", "\r\n")
