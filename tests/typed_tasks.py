"""Tasks of every kind of parameter, in an app of their own: nothing else sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

from annotated_types import Ge, Le
from celery import Celery, Task
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db.models import TextChoices
from pydantic import (
    AnyUrl,
    BaseModel,
    EmailStr,
    Field,
    SecretStr,
    field_validator,
    model_validator,
    validate_call,
)

if TYPE_CHECKING:
    from nowhere import Unknown

_numbers = count(1)

app = Celery("typed_tasks", set_as_current=False)


def as_task(function: Callable[..., Any], **options: Any) -> Task:
    """Make a task of a function, under a name of its own."""
    name = f"typed.{function.__name__}_{next(_numbers)}"
    return app.task(function, name=name, lazy=False, **options)


class Size(TextChoices):
    """Choices with labels."""

    SMALL = "s", "Small one"
    LARGE = "l", "Large one"


class Level(IntEnum):
    """Numbers with names."""

    LOW = 1
    HIGH = 2


class Colour(Enum):
    """Texts with names."""

    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    """One level down."""

    sku: str
    quantity: Annotated[int, Field(ge=1)] = 1


class Order(BaseModel):
    """A model with most things in it."""

    customer: str = Field(description="Who ordered it.")
    size: Size = Size.SMALL
    due: date | None = None
    is_gift: bool = False
    lines: list[Line] = []
    tags: list[str] = []

    @field_validator("customer")
    @classmethod
    def has_no_digits(cls, value: str) -> str:
        """Refuse digits."""
        if any(map(str.isdigit, value)):
            raise ValueError("a customer has no digits")
        return value

    @model_validator(mode="after")
    def large_is_due(self) -> Order:
        """Refuse large orders without a date."""
        if self.size is Size.LARGE and self.due is None:
            raise ValueError("a large order needs a date")
        return self


class Credentials(BaseModel):
    """A model with secrets."""

    user: str
    pin: SecretStr
    api_key: str = ""


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: int = 0


class Address(TypedDict):
    """A typed dict."""

    street: str
    zip_code: str


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: int = 2


def deliver(
    order: Order,
    to: Address,
    at: Point = Point(1, 2),  # noqa: B008
    billing: Address | None = None,
) -> None:
    """Deliver an order.

    Only once.

    Args:
        order: What was ordered,
            whole.
        to: Where to.
    """


def log_in(credentials: Credentials, password: str, hint: SecretStr | None = None) -> None:
    """Log in."""


def greet(user: User, groups: list[Group], kind: ContentType | None = None) -> None:
    """Greet somebody."""


def odd_names(
    task: str, csrfmiddlewaretoken: int, action: str, args: int, data: str, errors: str = "e"
) -> None:
    """Have names that others have too."""


def anything(value, other=5, *rest: int, flag: bool = False, **more: str) -> None:
    """Take anything."""


def positions(a: int, b: int = 2, c: int = 3, /, d: int = 4, *, e: int = 5) -> None:
    """Take some by position only."""


def unresolved(value: Unknown, number: int = 1) -> None:
    """Have an annotation that can't be resolved."""


@dataclass
class HalfKnown:
    """A dataclass with a secret, and a field of an unknown type."""

    pin: SecretStr
    thing: Unknown


class HalfKnownDict(TypedDict):
    """The same as a dict."""

    pin: SecretStr
    thing: Unknown


class Opaque:
    """Something pydantic knows nothing of."""


def partly_opaque(thing: Opaque, number: int) -> None:
    """Have one annotation without a schema."""


@validate_call
def checked(number: int, text: str = "t") -> None:
    """Be checked by pydantic itself."""


#: Annotations of single values, and of lists of them.
SCALARS: dict[str, Any] = {
    "bool": bool,
    "bool or None": bool | None,
    "int": int,
    "int with bounds": Annotated[int, Ge(0), Le(10)],
    "int or None": int | None,
    "float": float,
    "Decimal": Annotated[Decimal, Field(ge=0, decimal_places=2)],
    "str": str,
    "str or None": str | None,
    "UUID": UUID,
    "EmailStr": EmailStr,
    "AnyUrl": AnyUrl,
    "SecretStr": SecretStr,
    "bytes": bytes,
    "date": date,
    "time": time,
    "datetime": datetime,
    "timedelta": timedelta,
    "Literal": Literal["a", 1, None],
    "TextChoices": Size,
    "IntEnum": Level,
    "Enum": Colour,
}


def task_of(annotation: Any, default: Any = ..., name: str = "value") -> Task:
    """Make a task with one parameter of this type."""

    def run(value: Any) -> None:
        """Do nothing."""

    run.__annotations__ = {"value": annotation}
    if default is not ...:
        run.__defaults__ = (default,)
    if name != "value":
        run = _renamed(name, run)
    return as_task(run)


def _renamed(name: str, run: Callable[..., None]) -> Callable[..., None]:
    """Return a function like ``run`` whose parameter has another name."""
    renamed = type(run)(run.__code__.replace(co_varnames=(name,)), {}, "run", run.__defaults__)
    renamed.__annotations__ = {name: run.__annotations__["value"]}
    return renamed
