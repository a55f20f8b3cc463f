"""The table of a list of runs: the HTML that admin makes, a row at once instead of a cell.

For each cell admin finds out anew of what kind its column is, and for each link the address; that
takes longer than all else on a page. Here it is found out once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from django.contrib.admin.templatetags.admin_list import items_for_result, result_headers
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.views.main import ChangeList
from django.db.models import CharField, TextField
from django.utils.html import format_html
from django.utils.http import RFC3986_SUBDELIMS
from django.utils.safestring import SafeString

#: Stands for a primary key in an address.
_ANY_KEY = "31415926535897932384"
#: What Django leaves as it is in the part of an address.
_SAFE = f"{RFC3986_SUBDELIMS}/~:@"


class Row(list[SafeString]):
    """The cells of a row, as admin's template takes them; all in one piece, it may be."""

    #: Nothing in it is edited.
    form = None


class Table:
    """The table of a list."""

    def __init__(self, cl: ChangeList) -> None:
        """Take a list that has read its objects."""
        self._cl = cl
        #: The heads of the columns.
        self.headers = list(result_headers(cl))

    @property
    def templates(self) -> list[str]:
        """Those among which admin chooses the template of the table."""
        app, name = self._cl.opts.app_label, "change_list_results.html"
        return [
            f"admin/{app}/{self._cl.opts.model_name}/{name}",
            f"admin/{app}/{name}",
            f"admin/{name}",
        ]

    @property
    def sorted_columns(self) -> int:
        """By how many columns it is sorted."""
        return sum(1 for header in self.headers if header["sortable"] and header["sorted"])

    @property
    def rows(self) -> Iterator[Row]:
        """The rows."""
        columns = [_column(self._cl, name) for name in self._cl.list_display]
        shows = [column for column in columns if column is not None]
        if self._cl.is_popup or len(shows) < len(columns):
            # Something that admin alone can show.
            yield from map(self._as_admin_does, self._cl.result_list)
            return
        html = self._html()
        before, after = self._address()
        for each in self._cl.result_list:
            texts = [show(each) for show in shows]
            if all(isinstance(text, str) for text in texts):
                key = quote(str(each.pk), safe=_SAFE)
                yield Row([format_html(html, *texts, url=f"{before}{key}{after}")])
            else:
                yield self._as_admin_does(each)

    def _as_admin_does(self, each: Any) -> Row:
        return Row(items_for_result(self._cl, each, None))

    def _html(self) -> str:
        """Return the HTML of a row, with a place for each column, and for the address."""
        cells = []
        links = self._cl.list_display_links
        has_link = False
        for place, name in enumerate(self._cl.list_display):
            kind = "action-checkbox" if name == "action_checkbox" else f"field-{name}"
            tag, cell = "td", "{}"
            if links is not None and (name in links or (not place and not links)):
                tag, cell = "td" if has_link else "th", '<a href="{url}">{}</a>'
                has_link = True
            cells.append(f'<{tag} class="{kind}">{cell}</{tag}>')
        return "".join(cells)

    def _address(self) -> tuple[str, str]:
        """Return the address of an object's page: what stands before its key, and after it."""
        url = self._cl.url_for_result(self._cl.model(pk=_ANY_KEY))
        context: Any = {"preserved_filters": self._cl.preserved_filters, "opts": self._cl.opts}
        before, _key, after = add_preserved_filters(context, url).partition(_ANY_KEY)
        return before, after


def _column(cl: ChangeList, name: Any) -> Callable[[Any], Any] | None:
    """Return what shows a column of plain texts; None for another, which admin has to show.

    What it gives is no text if the column turns out to be another one.
    """
    empty = cl.model_admin.get_empty_value_display()
    field = next((field for field in cl.lookup_opts.fields if field.name == name), None)
    method = getattr(cl.model_admin, name, None) if isinstance(name, str) else None
    if field is not None:
        if not isinstance(field, CharField | TextField) or field.choices:
            return None
        return lambda each: _text(getattr(each, name) or "", empty)
    if not callable(method) or getattr(method, "boolean", False):
        return None
    empty = getattr(method, "empty_value_display", empty)
    return lambda each: _text(method(each), empty)


def _text(value: Any, empty: str) -> Any:
    if isinstance(value, SafeString):
        return value or empty
    return value.strip() or empty if isinstance(value, str) else value
