"""Django objects in the form: those that the user may view."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Task
from django import forms
from django.contrib.admin import AdminSite, ModelAdmin, widgets
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType

from celery_admin_runner.forms import objects
from tests import typed_tasks
from tests.factories import make_superuser, make_user
from tests.forms import arguments_of, filled, form_of
from tests.typed_tasks import as_task, task_of


@pytest.mark.django_db
def test_an_object_has_admins_autocomplete() -> None:
    parameters = form_of(as_task(typed_tasks.greet), user=make_superuser()).parameters

    assert type(parameters.fields["user"].widget) is widgets.AutocompleteSelect
    assert type(parameters.fields["groups"].widget) is widgets.AutocompleteSelectMultiple
    assert type(parameters.fields["kind"].widget) is forms.Select
    assert 'data-field-name="group"' in str(parameters["groups"])


@pytest.mark.django_db
def test_admins_autocomplete_finds_the_objects(client: Any) -> None:
    client.force_login(make_superuser())
    Group.objects.create(name="Finance")
    widget = form_of(as_task(typed_tasks.greet)).parameters.fields["groups"].widget
    source = widget.field

    answer = client.get(
        widget.get_url(),
        {
            "app_label": source.model._meta.app_label,
            "model_name": source.model._meta.model_name,
            "field_name": source.name,
            "term": "fin",
        },
    )

    assert [item["text"] for item in answer.json()["results"]] == ["Finance"]


def greet(by: User, **values: Any) -> Any:
    return form_of_post(as_task(typed_tasks.greet), by, values)


def form_of_post(task: Task, user: User, values: dict[str, Any]) -> Any:
    form = filled(task, **values)
    return form_of(task, user=user, data=form.data)


@pytest.mark.django_db
def test_objects_are_sent_as_primary_keys() -> None:
    root, group = make_superuser(), Group.objects.create(name="g")
    kind = ContentType.objects.first()

    form = greet(root, user=str(root.pk), groups=[str(group.pk)], kind=str(kind.pk))

    assert arguments_of(form) == ((root.pk, [group.pk]), {"kind": kind.pk})


@pytest.mark.django_db
def test_only_objects_that_the_user_may_view_can_be_chosen() -> None:
    root, clerk = make_superuser(), make_user("auth.view_user")
    group, kind = Group.objects.create(name="hidden"), ContentType.objects.first()

    form = greet(clerk, user=str(root.pk), groups=[str(group.pk)], kind=str(kind.pk))

    assert not form.is_valid()
    assert set(form.parameters.errors) == {"groups", "kind"}
    assert "hidden" not in form.parameters.as_p()


@pytest.mark.django_db
def test_objects_are_limited_as_their_admin_limits_them() -> None:
    class OwnOnly(ModelAdmin):
        search_fields = ("username",)

        def get_queryset(self, request: Any) -> Any:
            return super().get_queryset(request).filter(pk=request.user.pk)

    site = AdminSite("other")
    site.register(User, OwnOnly)
    root, other = make_superuser(), make_superuser()
    task = task_of(User)
    data = filled(task, value=str(other.pk)).data

    form = form_of(task, user=root, admin_site=site, data=data)

    assert not form.is_valid()


@pytest.mark.django_db
def test_as_json_too_objects_are_limited_as_their_admin_limits_them() -> None:
    class Public(ModelAdmin):
        def get_queryset(self, request: Any) -> Any:
            return super().get_queryset(request).exclude(name="hidden")

    site = AdminSite("other")
    site.register(Group, Public)
    task, hidden = task_of(list[Group]), Group.objects.create(name="hidden")
    shown = Group.objects.create(name="shown")
    data = filled(task, "json", **{"json-args": f"[[{shown.pk}, {hidden.pk}]]"}).data

    form = form_of(task, user=make_superuser(), admin_site=site, data=data)

    assert not form.is_valid()
    text = f"value: There is no group with the primary key {hidden.pk}."
    assert form.json.errors == {"args": [text]}


@pytest.mark.django_db
def test_a_plain_select_sends_primary_keys_and_shows_what_is_selected() -> None:
    kind = ContentType.objects.first()
    one, many = task_of(ContentType), task_of(list[ContentType])
    root = make_superuser()

    shown = [form_of(task, user=root) for task in (one, many)]
    again = [form_of_post(task, root, {"value": [str(kind.pk)]}) for task in (one, many)]

    for form in shown:
        assert f'<option value="{kind.pk}">' in str(form.parameters["value"])
    for form in again:
        assert f'<option value="{kind.pk}" selected>' in str(form.parameters["value"])


@pytest.mark.django_db
@pytest.mark.parametrize("typed", ["x", "0", "1\x00", "9" * 40])
def test_an_object_that_does_not_exist_is_an_error(typed: str) -> None:
    for task in (task_of(ContentType), task_of(list[ContentType])):
        form = form_of_post(task, make_superuser(), {"value": typed})

        assert not form.is_valid()
        assert "value" in form.parameters.errors


@pytest.mark.django_db
@pytest.mark.parametrize("typed", ["x", "1\r\n2", "1\x00", "9" * 40])
def test_an_autocomplete_shows_again_only_what_can_be_an_object(typed: str) -> None:
    root = make_superuser()
    one = form_of_post(task_of(User), root, {"value": typed})
    many = form_of_post(task_of(list[User]), root, {"value": [typed, str(root.pk)]})

    for form in (one, many):
        assert not form.is_valid()
        assert "value" in form.parameters.errors
        assert "errorlist" in form.parameters.as_p()
    assert f'<option value="{root.pk}" selected>' in str(many.parameters["value"])


@pytest.mark.django_db
def test_of_many_objects_the_primary_key_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SELECT_MAX", 0)
    root, kind = make_superuser(), ContentType.objects.first()
    one, many = task_of(ContentType), task_of(list[ContentType])

    assert type(form_of(one).parameters.fields["value"].widget) is widgets.AdminTextInputWidget
    assert arguments_of(form_of_post(one, root, {"value": str(kind.pk)})) == ((kind.pk,), {})
    assert arguments_of(form_of_post(many, root, {"value": f"{kind.pk}"})) == (([kind.pk],), {})
