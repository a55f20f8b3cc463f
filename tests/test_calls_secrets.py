"""Secrets in calls: sent, and never stored, shown or quoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

from celery_admin_runner.calls import prepare_call, secrets_of, signature_of
from celery_admin_runner.exceptions import InvalidArguments
from celery_admin_runner.redaction import MASK
from tests import typed_tasks
from tests.typed_tasks import Colour, Credentials, as_task, task_of


def errors_of(task: Any, *args: Any) -> dict[str, list[str]]:
    with pytest.raises(InvalidArguments) as caught:
        prepare_call(task, args, {})
    return caught.value.errors


SECRETS = {"user": "u", "pin": "1234-5", "api_key": "k-9876"}


def test_secrets_are_sent_and_not_stored() -> None:
    task = as_task(typed_tasks.log_in)

    call = prepare_call(task, [SECRETS, "pass-word"], {"hint": "a-hint"})

    assert call.has_secrets
    assert call.args == (SECRETS, "pass-word")
    assert call.kwargs == {"hint": "a-hint"}
    assert call.stored_args == [{"user": "u", "pin": MASK, "api_key": MASK}, MASK]
    assert call.stored_kwargs == {"hint": MASK}
    shown = json.dumps([call.stored_args, call.argsrepr, call.kwargsrepr])
    assert not any(secret in shown for secret in ("1234-5", "k-9876", "pass-word", "a-hint"))
    assert MASK in call.argsrepr
    assert prepare_call(task, call.args, call.kwargs) == call


def test_a_secret_key_is_masked_at_any_depth() -> None:
    call = prepare_call(task_of(Any), [{"a": [{"db_password": ["x-y", 1]}]}], {})

    assert call.stored_args == [{"a": [{"db_password": MASK}]}]
    assert call.has_secrets


def test_redact_can_be_changed_at_any_time(configure: Callable[..., None]) -> None:
    task = task_of(str)

    configure(REDACT=["VAL*"])

    assert prepare_call(task, ["x"], {}).stored_args == [MASK]


def test_a_call_without_secrets_leaves_its_repr_to_celery() -> None:
    call = prepare_call(task_of(int), [1], {})

    assert (call.has_secrets, call.argsrepr, call.kwargsrepr) == (False, "", "")


def reveal(value: SecretStr) -> str:
    return value.get_secret_value()


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Annotated[SecretStr, AfterValidator(reveal)], "s3cret-77"),
        (dict[str, typed_tasks.Opaque | SecretStr], {"a": "s3cret-77"}),
    ],
)
def test_a_secret_is_hidden_also_where_its_type_is_lost(annotation: Any, value: Any) -> None:
    call = prepare_call(task_of(annotation), [value], {})

    assert call.args == (value,)
    assert call.stored_args == [MASK]
    assert MASK in call.argsrepr


def test_the_mask_is_not_taken_for_a_secret() -> None:
    assert "only stands for it" in errors_of(task_of(SecretStr), MASK)["value"][0]


def refuse(text: str) -> str:
    raise ValueError(f"{text} is weak")


@pytest.mark.parametrize("secret", ["hunter-2", "zz-top"])
@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (Annotated[str, AfterValidator(refuse)], "password"),
        (Annotated[SecretStr, AfterValidator(lambda s: refuse(s.get_secret_value()))], "value"),
        (UUID, "token"),
        (list[UUID], "token"),
        (Colour, "secret_colour"),
        (Group, "group_token"),
    ],
)
def test_an_error_never_quotes_a_secret(annotation: Any, name: str, secret: str) -> None:
    errors = errors_of(task_of(annotation, name=name), [secret] if name == "list" else secret)

    assert set(errors) == {name}
    assert secret not in str(errors)
    assert "`z`" not in str(errors)


def test_the_secrets_of_a_call_are_known_by_their_texts() -> None:
    task = as_task(typed_tasks.log_in)

    assert secrets_of(task, [SECRETS, "pass-word"], {"hint": "a-hint"}) == {
        "1234-5",
        "k-9876",
        "pass-word",
        "a-hint",
    }


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ([], {}, set()),
        ([{"pin": 5}, object()], {"nothing": 1}, {"5"}),
        ([["odd"], ""], {}, {"odd"}),
        ([None, None, SecretStr("inside")], {}, {"inside"}),
        ([Credentials(user="u", pin="inside")], {}, {"inside"}),
        ([1, 2, 3, 4, 5], {"password": "p"}, {"1", "2", "3"}),
    ],
)
def test_the_secrets_of_a_call_that_does_not_fit_are_known_as_well(
    args: list[Any], kwargs: dict[str, Any], expected: set[str]
) -> None:
    found = secrets_of(as_task(typed_tasks.log_in), args, kwargs)

    assert expected <= found


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (list[SecretStr], ["a1", "b2"], {"a1", "b2"}),
        (list[SecretStr], "no list", {"no list"}),
        (dict[str, tuple[int, SecretStr]], {"k": [1, "s3"]}, {"1", "s3"}),
        (list[Credentials], [{"user": "u", "pin": "p4", "more": 1}], {"p4"}),
        (Credentials | int | None, {"pin": "p5"}, {"p5"}),
        (Credentials | int | None, None, set()),
        (Annotated[SecretStr, AfterValidator(refuse)], "s6", {"s6"}),
        (list[int], [7], set()),
        (Any, {"inner": [{"password": "p8"}]}, {"p8"}),
    ],
)
def test_secrets_are_found_without_validating(
    annotation: Any, value: Any, expected: set[str]
) -> None:
    assert secrets_of(task_of(annotation), [value], {}) == expected


class Aliased(BaseModel):
    """Its field is secret by its name, and travels under another one."""

    model_config = ConfigDict(alias_generator=to_camel)
    api_key: str
    size: int = 1


def test_a_field_is_secret_by_its_name_whatever_its_alias() -> None:
    task = task_of(Aliased)

    call = prepare_call(task, [{"apiKey": "Sesame5"}], {})

    assert call.args[0]["apiKey"] == "Sesame5"
    assert call.has_secrets
    assert "Sesame5" not in str((call.stored_args, call.stored_kwargs, call.argsrepr))
    assert "Sesame5" in secrets_of(task, call.args, call.kwargs)


class AnyAlias(BaseModel):
    """Its field is secret by an alias by which it does not travel."""

    value: str = Field(validation_alias=AliasChoices("one", "password"))


class ByName(BaseModel):
    """Its field is secret by its alias, and travels under its name."""

    model_config = ConfigDict(populate_by_name=True)
    value: str = Field(alias="apiPassword")


@pytest.mark.parametrize(
    ("annotation", "key"),
    [(AnyAlias, "one"), (AnyAlias, "password"), (ByName, "value"), (ByName, "apiPassword")],
)
def test_a_field_is_secret_by_any_of_its_aliases(annotation: Any, key: str) -> None:
    task = task_of(annotation)

    call = prepare_call(task, [{key: "Sesame5"}], {})

    assert "Sesame5" in str(call.args)
    assert "Sesame5" not in str((call.stored_args, call.argsrepr))
    assert secrets_of(task, call.args, {}) == {"Sesame5"}


@pytest.mark.parametrize("annotation", [typed_tasks.HalfKnown, typed_tasks.HalfKnownDict])
def test_a_field_that_can_not_be_resolved_uncovers_no_secret(annotation: Any) -> None:
    task = task_of(annotation)

    call = prepare_call(task, [{"pin": "Sesame5", "thing": 1}], {})

    assert call.args == ({"pin": "Sesame5", "thing": 1},)
    assert call.stored_args == [MASK]
    assert "Sesame5" in secrets_of(task, call.args, {})


def test_one_annotation_that_can_not_be_resolved_uncovers_no_secret() -> None:
    def run(first, hint, other, when, model):
        """Have annotations of which some can't be resolved."""

    run.__annotations__ = {
        "first": "Unknown",
        "hint": "SecretStr",
        "other": "MissingSecret",
        "when": "int",
        "model": Aliased,
    }
    task = as_task(run)

    call = prepare_call(task, ["a", "Sesame6", {"b": "Sesame7"}, 5, {"apiKey": "Sesame8"}], {})

    assert signature_of(task).problem
    assert call.args[:4] == ("a", "Sesame6", {"b": "Sesame7"}, 5)
    assert call.args[4]["apiKey"] == "Sesame8"
    assert "Sesame" not in str(call.stored_args)
