"""The types that the tasks' parameters have."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated

from pydantic import BaseModel, EmailStr, Field


class Warehouse(Enum):
    """Where products lie."""

    VIENNA = "vienna"
    GRAZ = "graz"
    LINZ = "linz"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a parcel goes."""

    name: str
    street: str
    postcode: str
    city: str
    country: str = "AT"


class Newsletter(BaseModel):
    """A letter to every customer."""

    subject: Annotated[str, Field(min_length=3, max_length=80)]
    body: str
    reply_to: EmailStr
    only_buyers: bool = False
    not_before: datetime | None = None
