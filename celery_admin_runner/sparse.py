"""An index of few rows: those in which a column is not null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Q


class SparseIndex(models.Index):
    """An index that leaves out the rows in which the column ``known`` is null.

    Such a row is inserted without it, and whatever compares the column is found by it. MariaDB
    and MySQL have all rows in it, and need that for a foreign key; so the condition is none of
    Django's own, of which they warn.
    """

    def __init__(self, *, fields: Sequence[str], name: str, known: str) -> None:
        """Take the columns, and which of them is not null."""
        super().__init__(fields=fields, name=name)
        self.known = known

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        """Return how to make it again, for a migration."""
        path, arguments, options = super().deconstruct()
        return path, arguments, {**options, "known": self.known}

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **options: Any,
    ) -> Any:
        """Return the SQL that makes it."""
        condition = Q(**{f"{self.known}__isnull": False})
        partial = models.Index(fields=self.fields, name=self.name, condition=condition)
        return partial.create_sql(model, schema_editor, using=using, **options)
