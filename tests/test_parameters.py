"""Signatures as typed parameters."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, NotRequired, TypedDict

import pytest
from annotated_types import Ge
from django.contrib.auth.models import User
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass

from celery_admin_runner.annotations import annotation_text, shape_of
from celery_admin_runner.calls import signature_of
from celery_admin_runner.parameters import Default, fields_of, has_secret, read_signature
from celery_admin_runner.redaction import is_secret_name
from tests import typed_tasks
from tests.typed_tasks import Address, Line, Opaque, Order, Pair, Point, app, as_task, task_of


def names(function: Any) -> list[str]:
    return [parameter.name for parameter in read_signature(function).parameters]


def test_annotations_are_resolved() -> None:
    order, to, at, billing = read_signature(typed_tasks.deliver).parameters

    assert (order.annotation, at.annotation) == (Order, Point)
    assert [item.annotation_text for item in (to, billing)] == ["Address", "Address | None"]
    assert to.has_schema
    assert (order.is_required, at.is_required) == (True, False)
    assert at.default == Point(1, 2)


@pytest.mark.parametrize(
    "doc",
    [
        "Do it.\n\nWith care.\n\nArgs:\n    a: The first,\n        of all.",
        "Do it.\n\nWith care.\n\nParameters\n----------\na : int\n    The first,\n    of all.",
        "Do it.\n\nWith care.\n\n:param a: The first,\n    of all.",
        "Do ``it``.\n\nWith ``care``.\n\n:param a: The ``first``,\n    of all.",
    ],
    ids=["google", "numpy", "rest", "quotes"],
)
def test_a_docstring_becomes_help_texts(doc: str) -> None:
    def run(a: int) -> None: ...

    run.__doc__ = doc

    signature = read_signature(run)

    assert (signature.summary, signature.description) == ("Do it.", "With care.")
    assert signature["a"].help_text == "The first, of all."


@pytest.mark.parametrize(
    "options", [{}, {"pydantic": True}, {"autoretry_for": (ValueError,)}], ids=str
)
def test_a_bound_task_has_no_self(options: dict[str, Any]) -> None:
    def run(self: Any, number: int, line: Line | None = None) -> None:
        """Have a self."""

    task = as_task(run, bind=True, **options)

    signature = read_signature(task.run)

    assert [item.name for item in signature.parameters] == ["number", "line"]
    assert signature["number"].annotation is int
    assert signature.problem == ""


def test_a_function_that_pydantic_wraps_is_read() -> None:
    signature = read_signature(as_task(typed_tasks.checked).run)

    assert [(item.name, item.annotation) for item in signature.parameters] == [
        ("number", int),
        ("text", str),
    ]
    assert signature.summary == "Be checked by pydantic itself."


def test_a_class_based_task_is_read() -> None:
    class Based(app.Task):
        name = "typed.based"

        def run(self, number: int) -> None:
            """Do it."""

    assert names(Based().run) == ["number"]


def test_annotations_that_cannot_be_resolved_are_a_problem_in_words() -> None:
    signature = read_signature(typed_tasks.unresolved)

    assert "can't be resolved" in signature.problem
    assert "Unknown" in signature.problem
    assert [(item.name, item.annotation) for item in signature.parameters] == [
        ("value", Any),
        ("number", Any),
    ]


@pytest.mark.parametrize("annotation", ["1 / 0", "int or", "{}['x']", "'x'.nothing", "[][1]"])
def test_an_annotation_that_is_broken_code_is_a_problem_in_words(annotation: str) -> None:
    def run(a: int) -> None: ...

    run.__annotations__ = {"a": annotation}

    assert read_signature(run).problem


def test_a_function_without_a_signature_takes_everything() -> None:
    signature = read_signature(type)

    assert "can't be read" in signature.problem
    assert [item.kind for item in signature.parameters] == [
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    ]


def test_an_annotation_without_a_schema_takes_any_value() -> None:
    thing, number = read_signature(typed_tasks.partly_opaque).parameters

    assert (thing.has_schema, number.has_schema) == (False, True)
    assert thing.adapter.validate_python([1, {}]) == [1, {}]
    assert thing.json_schema() == {}


def test_a_default_of_none_allows_none() -> None:
    def run(a: int = None) -> None: ...  # noqa: RUF013

    assert shape_of(read_signature(run)["a"].annotation).is_optional


def test_the_json_schema_is_pydantics() -> None:
    assert read_signature(as_task(typed_tasks.checked).run)["number"].json_schema() == {
        "type": "integer"
    }


def test_a_field_is_known_by_the_name_it_is_validated_from() -> None:
    class Aliased(BaseModel):
        one: int = Field(alias="eins")
        two: int = Field(default=2, validation_alias=AliasChoices("zwei", "deux"))
        three: list[int] = Field(default_factory=list)

    class ByName(Aliased):
        model_config = ConfigDict(validate_by_name=True)

    one, two, three = fields_of(Aliased)

    assert (one.name, two.name, three.name) == ("eins", "zwei", "three")
    assert (one.is_required, two.default, three.default) == (True, 2, Default.COMPUTED)
    assert [item.name for item in fields_of(ByName)] == ["one", "two", "three"]


def test_dataclasses_typed_dicts_and_named_tuples_have_fields() -> None:
    class Partial(TypedDict):
        a: int
        b: NotRequired[str]

    assert [(item.name, item.is_required) for item in fields_of(Point)] == [
        ("x", True),
        ("y", False),
    ]
    assert [(item.name, item.is_required) for item in fields_of(Pair)] == [
        ("left", True),
        ("right", False),
    ]
    assert [item.name for item in fields_of(Address)] == ["street", "zip_code"]
    assert fields_of(RootModel[int]) == fields_of(int) == fields_of(list[int]) == ()
    assert Partial.__required_keys__ is not None


class Tree(BaseModel):
    """Holds itself."""

    children: list[Tree] = []


class Hiding(BaseModel):
    """Holds a secret further down."""

    inner: dict[str, tuple[SecretStr, int]] = {}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (SecretStr, True),
        (SecretStr | None, True),
        (list[SecretStr], True),
        (Hiding, True),
        (typed_tasks.Credentials, True),
        (Tree, False),
        (Order, False),
        (Any, False),
    ],
)
def test_a_type_that_may_hold_a_secret_is_known(annotation: Any, expected: bool) -> None:
    assert has_secret(annotation, is_secret_name) is expected


Meters = NewType("Meters", int)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (Annotated[int, Ge(1)], "int"),
        (Literal["a", 1], "Literal['a', 1]"),
        (dict[str, list[Order]], "dict[str, list[Order]]"),
        (typing.Optional[Order], "Order | None"),  # noqa: UP045
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
        (Opaque, "Opaque"),
        (Meters, "Meters"),
    ],
)
def test_an_annotation_is_shown_shortly(annotation: Any, text: str) -> None:
    assert annotation_text(annotation) == text


@pytest.mark.parametrize(
    ("annotation", "base", "bound"),
    [
        (Annotated[int | None, Field(ge=1)], int, 1),
        (Annotated[int, Field(ge=1)] | None, int, 1),
        (Annotated[Annotated[int, Ge(1)], "note"], int, 1),
        (Meters, int, None),
    ],
)
def test_an_annotation_is_taken_apart(annotation: Any, base: Any, bound: Any) -> None:
    shape = shape_of(annotation)

    assert (shape.base, shape.constraint("ge")) == (base, bound)


def test_the_json_schema_of_an_object_is_that_of_its_key() -> None:
    user, groups, kind = signature_of(as_task(typed_tasks.greet)).parameters

    assert user.json_schema() == {"type": "integer", "title": "Primary key of auth.User"}
    assert groups.json_schema()["items"]["title"] == "Primary key of auth.Group"
    assert (user.annotation_text, groups.annotation_text) == ("User", "list[Group]")
    assert kind.annotation_text == "ContentType | None"


def test_an_object_as_default_is_its_key() -> None:
    assert signature_of(task_of(User, User(pk=7))).parameters[0].default == 7


def test_a_docstring_that_is_none_is_no_problem() -> None:
    def run(a: int) -> None: ...

    run.__doc__ = 5  # type: ignore[assignment]

    assert read_signature(run).summary == ""


def test_the_fields_of_a_class_whose_annotations_are_broken_are_known_by_name() -> None:
    @dataclass
    class Broken:
        a: Unknown  # noqa: F821

    assert [(item.name, item.annotation) for item in fields_of(Broken)] == [("a", Any)]


def test_the_defaults_of_a_dataclass_are_pydantics_too() -> None:
    @pydantic_dataclass
    class Mixed:
        one: int = Field(default=1)
        many: list[int] = field(default_factory=list)
        own: int = field(init=False, default=0)

    assert [(item.name, item.default) for item in fields_of(Mixed)] == [
        ("one", 1),
        ("many", Default.COMPUTED),
    ]
